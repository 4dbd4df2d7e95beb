package driver

import (
	"cmp"
	"context"
	"errors"
	"io"
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
