package driver

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// settleAgain is how long a destination that cannot be asked is left alone.
const settleAgain = 5 * time.Second

// settle asks the destination what became of the domain, and does here what
// follows from that. If the destination cannot be asked the domain stays
// frozen, and is asked about again until somebody says what to do: that
// returns an error the first time. call asks over libvirt, where there is such a
// connection.
func (p *departure) settle(call func(context.Context) (runtime.Outcome, error)) error {
	outcome, err := p.ask(call)
	if outcome.Moved() || outcome == runtime.Aborted {
		return p.follow(outcome)
	}
	p.drv.log.Error("it is not known whether a domain that was sent to another host runs there: it stays frozen here, and is asked about again",
		"domain", p.view().name, "destination", p.address, "error", err)
	inst := p.view().instance
	p.leave(departureSettling)
	if l := inst.Leaving(); l != nil {
		go p.drv.settleLater(*l)
	}
	return errorf(protocol.ErrOperationFailed, "it is not known whether domain '%s' runs at %s (%v): it stays paused until that host answers; 'virsh resume' if it does not run there, 'virsh destroy' if it does", p.view().name, p.address, err)
}

// follow does what follows from an answer.
func (p *departure) follow(outcome runtime.Outcome) error {
	switch outcome {
	case runtime.Committed:
		return p.gone()
	case runtime.Lost:
		if !p.how.has(protocol.MigratePersistDest) { // else it is defined nowhere any more
			p.how.flags &^= protocol.MigrateUndefineSource
		}
		return errors.Join(p.lost(), p.gone())
	}
	defer p.leave(departureSettling)
	inst := p.view().instance
	if inst == nil {
		return p.stays()
	}
	if err := inst.EndMigration(p.ctx, outcome, p.env.Interfaces); err != nil {
		return errMigration("the domain did not move, and cannot go on here", err)
	}
	if frozen, err := inst.Frozen(); frozen || err != nil {
		return err // it was paused before
	}
	p.goOn(Running)
	return nil
}

// lost tells of a domain that its destination had, and has no more.
func (p *departure) lost() error {
	name := p.view().name
	p.drv.log.Error("a domain that moved was lost: some of its memory was still here when its destination lost the connection or its daemon",
		"domain", name, "destination", p.address)
	return errorf(protocol.ErrOperationFailed, "domain '%s' moved to %s and was lost there: some of its memory was still here when that host lost the connection or its daemon; its disk is there", name, p.address)
}

func (p *departure) ask(call func(context.Context) (runtime.Outcome, error)) (runtime.Outcome, error) {
	outcome, err := p.view().instance.SettleMigration(p.ctx, func(ctx context.Context) (io.ReadWriteCloser, error) {
		return p.drv.dialMigration(ctx, p.address)
	})
	if (err != nil || outcome == runtime.Forgotten) && call != nil {
		return call(p.ctx)
	}
	return outcome, err
}

// settleLater asks again what became of a domain, also for a daemon that has died
// since, or a host that has, until that is known or somebody has said what to do.
func (drv *Driver) settleLater(l runtime.Leave) {
	for {
		select {
		case <-drv.stopping:
			return
		case <-time.After(settleAgain):
		}
		now := drv.unsettled(l)
		if now == nil {
			return
		}
		outcome := now.Outcome
		if !outcome.Moved() {
			var err error
			if outcome, err = drv.askAgain(l); err != nil || !outcome.Moved() && outcome != runtime.Aborted {
				continue
			}
		}
		drv.settled(l, outcome)
		return
	}
}

// unsettled is what there is on the disk of a migration; nil: it is settled.
func (drv *Driver) unsettled(l runtime.Leave) *runtime.Leave {
	now, err := drv.rt.Left(l.UUID)
	if err != nil {
		drv.log.Error("a domain that was sent to another host is not asked about any more", "domain", l.Name, "error", err)
	}
	if now != nil && now.Session != l.Session {
		return nil
	}
	return now
}

// askAgain asks a destination on a connection of its own, or over libvirt.
func (drv *Driver) askAgain(l runtime.Leave) (runtime.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if strings.HasPrefix(l.Address, "tcp://") || strings.HasPrefix(l.Address, "tls://") {
		return runtime.AskDestination(ctx, l.Session, func(ctx context.Context) (io.ReadWriteCloser, error) { return drv.dialMigration(ctx, l.Address) })
	}
	told, err := cookie{Session: l.Session}.encode()
	if err != nil {
		return runtime.Forgotten, err
	}
	return askOver(ctx, l.Address, drv.config.Migration.Certificates, &protocol.DomainMigrateFinish3ParamsArgs{
		Params: migration{name: l.Name}.params(), CookieIn: told, Cancelled: 1,
	})
}

// settled does what follows from an answer that came late.
func (drv *Driver) settled(l runtime.Leave, outcome runtime.Outcome) {
	d := drv.domains.lookup(l.UUID)
	if d == nil { // it was transient, or was undefined since: nothing of it can be started
		if _, err := drv.rt.ForgetLeft(l.UUID); err != nil {
			drv.log.Error("a migration has not ended as it should", "domain", l.Name, "outcome", outcome, "error", err)
		}
		return
	}
	c := d.changeAlways("migration")
	if drv.unsettled(l) == nil {
		c.done() // somebody has said what to do
		return
	}
	p := &departure{change: c, how: migration{flags: l.Flags}, session: l.Session, address: l.Address, control: runtime.NewMigrationControl(0, 0)}
	p.phase.Store(departureSettling)
	d.leaving.Store(p)
	var err error
	if p.env, err = xml.NewEnvironment(c.view().definition(false)); err == nil {
		p.offer.Root = c.drv.rt.RootOf(p.env)
		err = p.follow(outcome)
	}
	p.leave(departureSettling)
	if err != nil {
		drv.log.Error("a migration has not ended as it should", "domain", c.view().name, "outcome", outcome, "error", err)
	}
}
