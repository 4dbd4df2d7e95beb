package driver

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// departure is one migration of a domain to another host, from Begin to Confirm.
// It holds the domain's job.
type departure struct {
	*change
	owner   *client // who has to come back for the next phase
	how     migration
	session runtime.Session
	offer   runtime.MigrationOffer
	env     *xml.Environment
	control *runtime.MigrationControl
	address string // of the destination, once that is known
	phase   atomic.Int32
}

// Phases of a departure.
const (
	departureBegun int32 = iota
	departurePerforming
	departureSent     // only the destination knows what becomes of it
	departureSettling // and somebody does here what follows, who gives the job back
	departureOver
)

// beginMigration tells whether a domain can move, and what the destination has
// to know.
func (r *request) beginMigration(d *domain, how migration) (doc string, out []byte, err error) {
	p, doc, out, err := r.depart(d, how)
	if err != nil {
		return "", nil, err
	}
	if !how.has(protocol.MigrateChangeProtection) {
		p.leave(departureBegun)
	}
	return doc, out, nil
}

// depart takes the domain's job for a migration.
func (r *request) depart(d *domain, how migration) (p *departure, doc string, out []byte, err error) {
	c, err := d.change(r.ctx, r.client, functionName(r.info))
	if err != nil {
		return nil, "", nil, err
	}
	p = &departure{change: c, owner: r.client, how: how, session: runtime.NewSession()}
	doc, out, err = p.begin()
	if err != nil {
		p.leave(departureBegun)
		return nil, "", nil, err
	}
	d.leaving.Store(p)
	if r.client != nil && r.client.conn.Context().Err() != nil { // it has gone meanwhile
		p.forsake()
	}
	return p, doc, out, nil
}

func (p *departure) begin() (doc string, out []byte, err error) {
	v := p.view()
	offline := p.how.has(protocol.MigrateOffline)
	switch {
	case offline && v.state.active():
		return "", nil, errorf(protocol.ErrOperationInvalid, "domain is running: shut it down, or migrate it with its processes: without --offline")
	case !offline && !v.state.active():
		return "", nil, errorf(protocol.ErrOperationInvalid, "domain is not running")
	case len(v.snapshots.all) > 0: // qemuMigrationSrcIsAllowed
		return "", nil, errorf(protocol.ErrOperationInvalid, "cannot migrate domain with %d snapshots", len(v.snapshots.all))
	case v.saved:
		return "", nil, p.refuseSaved("migrate")
	}
	if v.instance != nil {
		if err := v.instance.RefuseLeaving(); err != nil {
			return "", nil, err
		}
	}
	def := v.definition(offline)
	if p.how.xml != "" {
		if def, err = p.drv.migratedDefinition(p.how.xml, def); err != nil {
			return "", nil, err
		}
	}
	if p.env, err = xml.NewEnvironment(v.definition(offline)); err != nil {
		return "", nil, err
	}
	if offline {
		p.offer, err = p.drv.rt.OfferDisk(p.env)
	} else {
		p.offer, err = v.instance.Offer(p.ctx, p.env)
	}
	if err != nil {
		return "", nil, errMigration("cannot migrate", err)
	}
	runtime.ShareRoot(&p.offer.Root, p.session)
	c := cookie{Session: p.session, Offer: &p.offer}
	if p.how.has(protocol.MigratePersistDest) {
		if c.Persistent, err = p.persistentThere(v); err != nil {
			return "", nil, err
		}
	}
	if offline && !p.how.has(protocol.MigratePeer2peer) {
		if _, c.Pull, err = p.drv.waitForMigration(migration{flags: p.how.flags}); err != nil {
			return "", nil, err
		}
		c.Pull = p.drv.reachable(c.Pull)
		p.control = runtime.NewMigrationControl(p.drv.bandwidth(p.domain, p.how), 0)
		p.drv.rt.AwaitPull(runtime.Outgoing{Session: p.session, Root: p.offer.Root, Control: p.control, Compress: p.how.has(protocol.MigrateCompressed)})
	}
	if out, err = c.encode(); err != nil {
		return "", nil, err
	}
	doc, err = xml.Format(def, xml.FormatOptions{Migratable: true, Secure: true})
	return doc, out, err
}

// persistentThere is the definition that the destination keeps.
func (p *departure) persistentThere(v *view) (string, error) {
	def := v.config
	if def == nil {
		def = v.live
	}
	if p.how.persistent != "" {
		var err error
		if def, err = p.drv.migratedDefinition(p.how.persistent, def); err != nil {
			return "", err
		}
	}
	return xml.Format(def, xml.FormatOptions{Inactive: true, Secure: true, Migratable: true})
}

// migratedDefinition reads a definition for the destination: what it names is
// there and not here.
func (drv *Driver) migratedDefinition(doc string, of *libvirtxml.Domain) (*libvirtxml.Domain, error) {
	def, err := drv.savedDefinition(doc, of)
	if err != nil {
		return nil, err
	}
	return def, nil
}

// leave gives the domain's job back.
func (p *departure) leave(from int32) {
	if !p.phase.CompareAndSwap(from, departureOver) {
		return
	}
	runtime.UnshareRoot(p.offer.Root)
	p.drv.rt.ForgetPull(p.session)
	p.leaving.CompareAndSwap(p, nil)
	p.done()
}

// settling takes it upon the caller to end it: nobody else does so then.
func (p *departure) settling(from int32) bool {
	return p.phase.CompareAndSwap(from, departureSettling)
}

// forsake is for a client that has gone without saying how it ends.
func (p *departure) forsake() {
	switch p.phase.Load() {
	case departureBegun:
		p.leave(departureBegun)
	case departurePerforming:
		p.job.abort()
	case departureSent:
		if p.settling(departureSent) {
			go p.settle(nil)
		}
	}
}

// performMigration sends the domain to where it is waited for.
func (r *request) performMigration(d *domain, how migration, destination string, in []byte) ([]byte, error) {
	if how.has(protocol.MigratePeer2peer) {
		return nil, r.migrateP2P(d, how, destination)
	}
	told, err := decodeCookie(in)
	if err != nil {
		return nil, err
	}
	if how.uri == "" {
		return nil, errorf(protocol.ErrInvalidArg, "the URI to which the domain is to be sent is missing")
	}
	p := d.leaving.Load()
	if how.has(protocol.MigrateOffline) || p != nil && p.owner == r.client && p.how.has(protocol.MigrateOffline) {
		return nil, errorf(protocol.ErrOperationInvalid, "domain '%s' does not run: its destination asks for its disk", d.view().name)
	}
	if p == nil { // whoever began it asked for no protection
		if p, _, _, err = r.depart(d, how); err != nil {
			return nil, err
		}
	}
	if p.owner != r.client || !p.phase.CompareAndSwap(departureBegun, departurePerforming) {
		return nil, errorf(protocol.ErrOperationInvalid, "domain '%s' is not being migrated", d.view().name)
	}
	p.how.uri, p.session = how.uri, told.Session
	if err := p.send(func(ctx context.Context) (io.ReadWriteCloser, error) { return r.drv.dialMigration(ctx, p.address) }); err != nil {
		return nil, err
	}
	p.phase.Store(departureSent)
	if r.client.conn.Context().Err() != nil {
		p.forsake()
	}
	return cookie{Session: p.session, Sent: newSent(p.control)}.encode()
}

// send is Perform: after an error the domain goes on here, and its job is given
// back.
func (p *departure) send(dial func(context.Context) (io.ReadWriteCloser, error)) (err error) {
	defer func() {
		if err != nil {
			p.leave(departurePerforming)
		}
	}()
	if p.address == "" {
		if p.address, err = migrationAddress(p.how); err != nil {
			return err
		}
	}
	inst, was := p.view().instance, p.view().state
	p.control = runtime.NewMigrationControl(p.drv.bandwidth(p.domain, p.how), p.drv.downtime(p.domain))
	p.control.SetPostCopyBandwidth(cmp.Or(p.how.following, p.settings().following) << 20)
	if p.how.has(protocol.MigratePostcopy) {
		p.control.AllowPostCopy()
	}
	err = p.working(protocol.DomainJobOperationMigrationOut, func(ctx context.Context, w *work) error {
		w.migration.Store(p.control)
		return inst.Migrate(ctx, runtime.Outgoing{
			Session: p.session, Address: p.address, Flags: p.how.flags, Dial: dial, Interfaces: p.env.Interfaces, Root: p.offer.Root,
			Live: p.how.has(protocol.MigrateLive), Strict: p.how.has(protocol.MigrateAbortOnError),
			Compress: p.how.has(protocol.MigrateCompressed), Control: p.control,
			Begun:  func(round int) { p.drv.events.emit(p.domain, iterationEvent(round)) },
			Frozen: func() { p.standStill(was) },
		})
	})
	if err != nil {
		p.goOn(was)
		return errMigration("migration failed", err)
	}
	return nil
}

// standStill has clients see that the domain is frozen until it is decided where
// it goes on.
func (p *departure) standStill(was State) {
	if was != Running {
		return
	}
	err := p.enter(Paused, protocol.DomainPausedMigration, nil, lifecycleEvent(protocol.DomainEventSuspended, protocol.DomainEventSuspendedMigrated))
	if err != nil {
		p.drv.log.Error("cannot save the status of a domain that is about to move", "domain", p.view().name, "error", err)
	}
}

// goOn has clients see that it runs here again.
func (p *departure) goOn(was State) {
	v := p.view()
	if was != Running || v.state != Paused {
		return
	}
	select {
	case <-v.instance.Exited():
		return // whoever watches it says so
	default:
	}
	if frozen, err := v.instance.Frozen(); frozen && err == nil {
		return // it could not be let go, and 'virsh resume' tries that again
	}
	err := p.enter(Running, protocol.DomainRunningMigrationCanceled, nil, lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedMigrated))
	if err != nil {
		p.drv.log.Error("cannot save the status of a domain that did not move", "domain", v.name, "error", err)
	}
}

// confirmMigration ends the domain here, or lets it go on.
func (r *request) confirmMigration(d *domain, how migration, cancelled bool) error {
	p := d.leaving.Load()
	if p == nil || p.owner != r.client {
		if cancelled && !how.has(protocol.MigrateOffline) {
			return nil // it never left
		}
		return errorf(protocol.ErrOperationInvalid, "domain '%s' is not being migrated", d.view().name)
	}
	switch {
	case p.settling(departureBegun):
		return p.confirmOffline(cancelled)
	case !p.settling(departureSent):
		return errorf(protocol.ErrOperationInvalid, "the migration of domain '%s' cannot be confirmed now", d.view().name)
	case !cancelled:
		return p.gone()
	}
	return p.settle(nil)
}

func (p *departure) confirmOffline(cancelled bool) error {
	defer p.leave(departureSettling)
	if cancelled || !p.how.has(protocol.MigrateOffline) || !p.how.has(protocol.MigrateUndefineSource) {
		return nil
	}
	if err := p.forgetHere(); err != nil {
		return err
	}
	return undefine(p.change, protocol.DomainUndefineManagedSave|protocol.DomainUndefineSnapshotsMetadata)
}

// gone is for a domain that runs at the destination.
func (p *departure) gone() error {
	defer p.leave(departureSettling)
	p.control.Moved(time.Now())
	s := p.control.Stats()
	p.drv.log.Info("the domain has moved", "domain", p.view().name, "rounds", s.Round, "stood_still", s.Down,
		"freezing", s.Freezing, "dumping", s.Dumping, "restoring", s.Restoring)
	p.job.completedAgain(p.control)
	undefined := p.how.has(protocol.MigrateUndefineSource) && p.view().persistent
	err := p.endHere()
	if p.view().state.active() {
		return errMigration("the domain runs at its destination, and could not be ended here", err)
	}
	if p.how.has(protocol.MigrateUndefineSource) {
		err = errors.Join(err, p.forgetHere())
	}
	if undefined {
		err = errors.Join(err, undefine(p.change, protocol.DomainUndefineManagedSave|protocol.DomainUndefineSnapshotsMetadata))
	}
	if err == nil { // else what is left of it here is not to be started
		_, err = p.drv.rt.ForgetLeft(p.uuid)
	}
	return err
}

// endHere ends what is here of a domain that runs at the destination.
func (p *departure) endHere() error {
	inst := p.view().instance
	if inst == nil { // it ended with this host
		return p.enter(Shutoff, protocol.DomainShutoffMigrated, nil)
	}
	if err := p.controlled(inst.EndMigration(p.ctx, runtime.Committed, p.env.Interfaces)); err != nil {
		return err
	}
	return p.stopped(inst, protocol.DomainShutoffMigrated, protocol.DomainEventStoppedMigrated)
}

// stays is for a domain that is not at the destination, and of which nothing runs
// here: it ended with this host, with which it would have been started again.
func (p *departure) stays() error {
	if _, err := p.forgetLeft("does not run there"); err != nil {
		return err
	}
	if v := p.view(); !v.autostart && !v.once {
		return nil
	}
	return p.startMarked()
}

// forgetHere deletes the disk that is at the destination now.
func (p *departure) forgetHere() error {
	if root := p.offer.Root; root.Type != "template" || root.Template.Digest == "" {
		return nil // a directory of the host's belongs to whoever made it
	}
	return p.drv.layers.Remove(p.uuid)
}

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
