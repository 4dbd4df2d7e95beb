package driver

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// arriving is a domain on its way here, from Prepare to Finish. It holds the
// domain's job.
type arriving struct {
	*change
	owner      *client
	how        migration
	in         *runtime.Incoming
	def        *libvirtxml.Domain // to run
	persistent *libvirtxml.Domain // to keep; nil: none
	pull       string             // where a disk waits to be asked for
	over       atomic.Bool
}

// prepareMigration makes room for a domain, and tells where it is waited for.
func (r *request) prepareMigration(how migration, in []byte, tunnel bool) (uri string, out []byte, err error) {
	told, err := decodeCookie(in)
	if err != nil {
		return "", nil, err
	}
	if told.Offer == nil || how.xml == "" {
		return "", nil, errorf(protocol.ErrInvalidArg, "the source has not said what is to come")
	}
	a, err := r.arrive(how, told)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			a.leave()
		}
	}()
	address := ""
	if !tunnel {
		if uri, address, err = r.drv.waitForMigration(how); err != nil {
			return "", nil, err
		}
	}
	env, err := xml.NewEnvironment(a.def)
	if err != nil {
		return "", nil, err
	}
	keep, err := a.toKeep()
	if err != nil {
		return "", nil, err
	}
	a.in, err = r.drv.rt.PrepareMigration(r.ctx, env, *told.Offer, runtime.IncomingOptions{
		Session: told.Session, Address: address, Paused: how.has(protocol.MigratePaused), Unsafe: how.has(protocol.MigrateUnsafe),
		Definition: keep,
	})
	if err != nil {
		return "", nil, errMigration("the domain cannot come here", err)
	}
	if tunnel {
		stream := r.call.OpenStream()
		go r.drv.rt.ServeMigration(context.WithoutCancel(r.ctx), streamLink{stream})
	}
	a.arriving.Store(a)
	go a.await()
	if r.client.conn.Context().Err() != nil { // it has gone meanwhile
		go a.forsake()
	}
	out, err = cookie{Session: told.Session}.encode()
	return uri, out, err
}

// arrive takes the job of the domain that is to come, and makes it known.
func (r *request) arrive(how migration, told cookie) (*arriving, error) {
	facts := r.drv.facts()
	facts.Templates = nil
	parse := func(doc string) (*libvirtxml.Domain, error) {
		def, err := xml.Parse(doc, facts, xml.ParseOptions{
			Stored: true,
			Allow:  func(name string, id [16]byte) error { return r.allowNew(orElse(how.name, name), protocol.UUID(id)) },
		})
		if err == nil && how.name != "" {
			err = xml.CheckName(how.name)
			def.Name = how.name
		}
		return def, err
	}
	a := &arriving{owner: r.client, how: how, pull: told.Pull}
	var err error
	if a.def, err = parse(how.xml); err != nil {
		return nil, err
	}
	if told.Persistent != "" && how.has(protocol.MigratePersistDest) {
		if a.persistent, err = parse(told.Persistent); err != nil {
			return nil, err
		}
	}
	if how.has(protocol.MigrateOffline) && a.persistent == nil {
		return nil, errorf(protocol.ErrInvalidArg, "the source has not said what is to be defined")
	}
	id, err := protocol.ParseUUID(a.def.UUID)
	if err != nil {
		return nil, err
	}
	if a.change, err = r.drv.claim(r.ctx, r.client, id, a.def.Name, functionName(r.info)); err != nil {
		return nil, err
	}
	if v := a.view(); v.state.active() {
		err = errorf(protocol.ErrOperationInvalid, "domain '%s' is already active", v.name)
	} else if n := len(v.snapshots.all); n > 0 {
		err = errorf(protocol.ErrOperationInvalid, "domain '%s' has %d snapshots here, which the disk that comes would make useless: delete them first", v.name, n)
	} else {
		err = errors.Join(a.refuseSaved("replace"), a.allowCome())
	}
	if err != nil {
		a.release()
		return nil, err
	}
	return a, nil
}

// allowCome checks what the definitions ask for that the domain brings.
func (a *arriving) allowCome() error {
	err := a.allowClone(a.view().config, a.def)
	if err == nil && a.persistent != nil {
		err = a.allowClone(a.view().config, a.persistent)
	}
	return err
}

// leave gives the domain's job back, and forgets the domain if it did not come.
func (a *arriving) leave() {
	if a.over.CompareAndSwap(false, true) {
		a.giveBack()
	}
}

func (a *arriving) giveBack() {
	a.change.arriving.CompareAndSwap(a, nil)
	a.release()
}

// await gives the job back when the source gives up.
func (a *arriving) await() {
	<-a.in.Ended()
	if a.over.CompareAndSwap(false, true) {
		a.drv.log.Info("a domain that was to come does not", "domain", a.def.Name)
		a.giveBack()
	}
}

// forsake is for a client that has gone without saying how it ends: it cannot
// have told the source that the domain runs here.
func (a *arriving) forsake() {
	if err := a.in.Abort(context.Background()); err != nil {
		a.drv.log.Error("cannot give up a domain that was to come", "domain", a.def.Name, "error", err)
	}
}

// errNotCome is what a cancelled Finish answers when nothing is left of the
// domain, as libvirt's drivers do.
func errNotCome(name string) error {
	return errorf(protocol.ErrMigrateFinishOk, "migration of domain '%s' was given up", name)
}

// finishMigration lets the domain go that came, or gives it up.
func (r *request) finishMigration(name string, in []byte, cancelled bool) (ref protocol.NonnullDomain, err error) {
	began := time.Now()
	d := r.drv.domains.lookupName(name)
	if d == nil {
		d = r.drv.domains.claimed(name)
	}
	var a *arriving
	if d != nil {
		a = d.arriving.Load()
	}
	if a == nil || a.owner != r.client {
		return r.finishedBefore(name, in, cancelled)
	}
	if cancelled {
		if err := a.in.Abort(r.ctx); err != nil {
			return ref, errMigration("cannot give up the domain", err)
		}
		return ref, errNotCome(name)
	}
	if a.how.has(protocol.MigrateOffline) {
		if err := a.fetch(r.ctx); err != nil {
			return ref, errors.Join(errMigration("migration failed", err), a.in.Abort(r.ctx))
		}
	}
	if ref, err = a.commit(); err == nil {
		if told, err := decodeCookie(in); err == nil && told.Sent != nil {
			a.job.endWork(told.Sent.arrived(began))
		}
	}
	return ref, err
}

// finishedBefore answers for a migration that was decided already, for a source
// that asks over libvirt what became of it.
func (r *request) finishedBefore(name string, in []byte, cancelled bool) (ref protocol.NonnullDomain, err error) {
	told, err := decodeCookie(in)
	if err != nil || !cancelled {
		return ref, errorf(protocol.ErrNoDomain, "no domain with matching name '%s' is on its way here: the migration was given up", name)
	}
	outcome, err := r.drv.rt.SettleSession(r.ctx, told.Session)
	switch {
	case err != nil:
		return ref, errMigration("it is not known what became of the domain", err)
	case outcome == runtime.Aborted:
		return ref, errNotCome(name)
	case outcome == runtime.Lost: // libvirt's code for what moved and did not stay, which nothing else answers
		return ref, errorf(protocol.ErrMigratePersistFailed, "domain '%s' moved here and was lost: some of its memory was still at the source", name)
	case outcome != runtime.Committed:
		return ref, errorf(protocol.ErrOperationFailed, "nothing is known here of a migration of domain '%s'", name)
	}
	if d := r.drv.domains.lookupName(name); d != nil {
		return d.ref(d.view()), nil
	}
	return protocol.NonnullDomain{Name: name, ID: -1}, nil
}

// fetch has the source send the disk of a domain that does not run: nobody calls
// Perform for such a one.
func (a *arriving) fetch(ctx context.Context) error {
	if a.pull == "" { // a source that is its own client has sent it
		return nil
	}
	address := "tcp://" + a.pull
	if host, _, err := net.SplitHostPort(a.pull); err == nil && a.how.has(protocol.MigrateTls) {
		address = "tls://" + a.pull + "#" + host
	}
	conn, err := a.drv.dialMigration(ctx, address)
	if err != nil {
		return err
	}
	return a.in.Pull(ctx, conn)
}

// commit is the moment from which on the domain runs here.
func (a *arriving) commit() (ref protocol.NonnullDomain, err error) {
	if !a.over.CompareAndSwap(false, true) {
		return ref, errorf(protocol.ErrOperationFailed, "migration of domain '%s' was given up by its source", a.def.Name)
	}
	defer a.giveBack() // and not before all is undone, should it fail
	fail := func(err error) (protocol.NonnullDomain, error) {
		undo := a.in.Abort(a.ctx)
		return ref, errors.Join(errMigration("migration failed", err), undo, a.drv.store.removeStatus(a.uuid))
	}
	// A domain that does not run stays defined at its source until that is told
	// that it is here: a daemon that is killed before leaves a disk, no second one.
	if a.how.has(protocol.MigrateOffline) {
		if _, err := a.in.Commit(a.ctx); err != nil {
			return fail(err)
		}
		if err := a.define(a.persistent); err != nil {
			return ref, errMigration("migration failed: its disk is here and can be sent again, it is not defined", err)
		}
		return a.ref(a.view()), nil
	}
	inst := a.in.Instance()
	if inst == nil {
		return fail(errors.New("the domain is not here yet"))
	}
	// What a later daemon needs to know is there before it is decided, and of no
	// effect until then; the definition is, too (toKeep).
	live := xml.Live(a.def, liveFacts(inst))
	status, err := statusOf(&view{name: a.def.Name, state: Running, persistent: a.view().persistent, live: live})
	if err == nil {
		err = a.drv.store.saveStatus(a.uuid, status)
	}
	if err != nil {
		return fail(err)
	}
	if inst, err = a.in.Commit(a.ctx); inst == nil {
		return fail(err)
	}
	if a.persistent != nil {
		e := a.define(a.persistent)
		if e == nil {
			e = a.in.Defined()
		}
		err = errors.Join(err, e)
	}
	if err != nil { // it is decided: what went wrong is for here
		a.drv.log.Error("a domain came here, and something of it has to be mended", "domain", a.def.Name, "error", err)
	}
	a.arrived(inst, live, err != nil)
	if !a.in.Follows() {
		return a.ref(a.view()), nil
	}
	switch err := a.in.AwaitMemory(); {
	case a.in.Outcome() == runtime.Lost:
		a.drv.log.Error("a domain came here and was lost", "domain", a.def.Name, "error", err)
		return ref, errMigration("the domain moved and was lost", err)
	case err != nil:
		a.drv.log.Error("a domain came here, and something of it has to be mended", "domain", a.def.Name, "error", err)
	}
	return a.ref(a.view()), a.enter(a.view().state, protocol.DomainRunningMigrated, nil)
}

// toKeep is the definition that is on the disk with the decision that the domain
// runs here: its source deletes its own, and this host may crash before it is
// defined. One that does not run is defined before its source is told.
func (a *arriving) toKeep() (string, error) {
	if a.persistent == nil || a.how.has(protocol.MigrateOffline) {
		return "", nil
	}
	return xml.Format(a.persistent, xml.FormatOptions{Inactive: true, Secure: true})
}

// arrived announces a domain that runs here.
func (a *arriving) arrived(inst *runtime.Instance, live *libvirtxml.Domain, stuck bool) {
	state, reason := Running, int32(protocol.DomainRunningMigrated)
	happened := []event{
		lifecycleEvent(protocol.DomainEventStarted, protocol.DomainEventStartedMigrated),
		lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedMigrated),
	}
	if a.in.Follows() {
		reason = protocol.DomainRunningPostcopy
		happened[1] = lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedPostcopy)
	}
	if frozen, err := inst.Frozen(); frozen || err != nil {
		state, reason = Paused, protocol.DomainPausedUser
		if stuck {
			reason = protocol.DomainPausedMigration
		}
		happened[1] = lifecycleEvent(protocol.DomainEventSuspended, protocol.DomainEventSuspendedPaused)
	}
	err := a.enter(state, reason, func(v *view) { v.instance, v.live = inst, live }, happened...)
	if err != nil {
		a.drv.log.Error("cannot save the status of a domain that came here", "domain", a.def.Name, "error", err)
	}
	go a.domain.watch(inst)
}

// streamLink is a stream of a client as a connection with the source.
type streamLink struct{ *rpc.Stream }

func (l streamLink) Close() error {
	l.Finish()
	return nil
}

var _ io.ReadWriteCloser = streamLink{}
