package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// Recover takes over the environments that ran while no daemon did, and does
// for those that ended meanwhile what their definitions ask for. Call it once,
// before clients come.
func (drv *Driver) Recover(ctx context.Context, stored map[string]*os.File) error {
	running, ended, err := drv.rt.Recover(ctx, stored)
	if err != nil {
		drv.log.Error("cannot take over or clean up after every environment", "error", err)
	}
	byUUID, ends := map[protocol.UUID]*runtime.Instance{}, map[protocol.UUID]*runtime.Ended{}
	for _, inst := range running {
		byUUID[inst.UUID()] = inst
	}
	for _, e := range ended {
		ends[e.UUID] = &e
		if e.Started {
			drv.log.Warn("environment ended while the daemon was not running", "domain", e.Name, "cause", e.Exit.Cause)
		}
	}
	if err := drv.defineArrived(); err != nil {
		drv.log.Error("cannot define a domain that came here", "error", err)
	}
	err = drv.store.statuses(func(id protocol.UUID, s savedStatus) {
		inst := byUUID[id]
		if inst == nil {
			if err := drv.endedMeanwhile(id, s, ends[id]); err != nil {
				drv.log.Error("cannot finish what the end of an environment asks for", "domain", s.Name, "error", err)
			}
			return
		}
		delete(byUUID, id)
		if err := drv.adopt(id, s, inst); err != nil {
			drv.log.Error("cannot take over a running environment: it runs on, unmanaged", "domain", s.Name, "error", err)
		}
	}, func(path string, err error) {
		drv.log.Error("status skipped", "file", path, "error", err)
	})
	drv.migrations.waitAgain(drv.rt.Asked())
	for _, inst := range byUUID {
		if err := drv.adoptWithoutStatus(inst); err != nil {
			drv.log.Error("cannot take over a running environment whose status is lost: it runs on, unmanaged",
				"domain", inst.Name(), "uuid", protocol.UUID(inst.UUID()), "scope", inst.Scope(), "error", err)
		}
	}
	if err := drv.recoverLeft(running); err != nil {
		drv.log.Error("it is not known of every domain whether it was sent to another host", "error", err)
	}
	// A layer can be as large as a disk, and nobody is served before we are back.
	go drv.collect(drv.giveUpUnfinished())
	return err
}

// recoverLeft has the destinations asked of domains that may run there, whether
// they are frozen here or have ended, with this host or since.
func (drv *Driver) recoverLeft(running []*runtime.Instance) error {
	list, err := drv.rt.AllLeft()
	for _, l := range list {
		if n := slices.IndexFunc(running, func(i *runtime.Instance) bool { return i.UUID() == l.UUID }); n >= 0 && running[n].Leaving() == nil {
			_, failed := drv.rt.ForgetLeft(l.UUID) // it goes on here
			err = errors.Join(err, failed)
			continue
		}
		drv.log.Warn("a domain was sent to another host, which is asked what became of it there", "domain", l.Name, "destination", l.Address)
		go drv.settleLater(*l)
	}
	return err
}

// collect removes what layers of environments that were given up hold.
func (drv *Driver) collect(owners []protocol.UUID) {
	for _, id := range owners {
		if err := drv.layers.Collect(id); err != nil {
			drv.log.Error("the data of a snapshot that was not finished is left", "uuid", id, "error", err)
		}
	}
}

// giveUpUnfinished gives up the layers of snapshots in the making of which an
// earlier daemon was killed. What a snapshot names is kept: it was killed right
// after that. It returns whose they are, for collect.
func (drv *Driver) giveUpUnfinished() (owners []protocol.UUID) {
	layers, err := drv.layers.Unfinished()
	if err != nil {
		drv.log.Error("cannot tell of every layer whether a snapshot is of it", "error", err)
	}
	for _, layer := range layers {
		id, err := protocol.ParseUUID(layer.Of)
		readable := true
		known := drv.storedSnapshots(id, func(string, error) { readable = false })
		switch {
		case err != nil:
		case slices.ContainsFunc(known.all, func(snap *xml.Snapshot) bool { return snap.Layer == layer.ID }):
			err = drv.layers.Keep(id, layer.ID)
		case !readable: // it may be the one
			err = errors.New("not every snapshot of its domain can be read: mend or remove them")
		default:
			drv.log.Warn("a snapshot was not finished, and its layer is given up", "uuid", id, "layer", layer.ID)
			owners = append(owners, id)
			err = drv.layers.GiveUp(id, layer.ID)
		}
		if err != nil {
			drv.log.Error("cannot give up the data of a snapshot that was not finished", "uuid", layer.Of, "layer", layer.ID, "error", err)
		}
	}
	return owners
}

// adopt makes a domain of a running environment and its saved status.
func (drv *Driver) adopt(id protocol.UUID, s savedStatus, inst *runtime.Instance) error {
	live, err := drv.parseLive(s)
	if err != nil {
		return err
	}
	c, err := drv.recovered(id, s.Name)
	if err != nil {
		return err
	}
	defer c.release()
	err = c.takeOver(inst, live, s)
	if err == nil && s.Autodestroy && c.view().state.active() {
		return c.destroy(0) // its client lost the connection with the daemon
	}
	return err
}

// adoptWithoutStatus keeps an environment whose status was lost: its
// definition serves for both, if there is one.
func (drv *Driver) adoptWithoutStatus(inst *runtime.Instance) error {
	d := drv.domains.lookup(inst.UUID())
	if d == nil {
		return errors.New("no definition of it is left")
	}
	c := d.changeAlways("recover")
	defer c.done()
	return c.takeOver(inst, c.view().config, savedStatus{State: Running, Reason: protocol.DomainRunningUnknown})
}

// takeOver goes on with what an earlier daemon did for a running environment.
func (c *change) takeOver(inst *runtime.Instance, live *libvirtxml.Domain, s savedStatus) error {
	env, err := xml.NewEnvironment(live)
	if err != nil {
		return err
	}
	if err := inst.FinishMigration(c.ctx, env.Interfaces); err != nil {
		c.drv.log.Error("a domain came here, and something of it has to be mended", "domain", c.view().name, "error", err)
	}
	state, reason, err := observed(inst, s)
	if err != nil {
		return err
	}
	err = c.enter(state, reason, func(v *view) {
		v.instance, v.live, v.rebooting, v.updated = inst, xml.Live(live, liveFacts(inst)), s.Rebooting, s.Updated
	})
	go c.domain.watch(inst)
	if len(inst.Kept()) > 0 {
		c.domain.runningAgent() // goes on with what they read and write
	}
	if err := inst.Enforce(c.ctx, env); err != nil {
		c.drv.log.Error("cannot put the limits in force again that were being changed", "domain", c.view().name, "error", err)
	}
	if l := inst.Leaving(); l != nil {
		c.publish(func(v *view) { v.state, v.reason = Paused, protocol.DomainPausedMigration })
		return err // recoverLeft has it asked about
	}
	if err == nil {
		err = c.finishSave()
	}
	if err == nil && c.view().state.active() {
		err = c.dropManagedSave() // what it was made from
	}
	if err == nil && c.view().state == Paused && (reason == protocol.DomainPausedSnapshot || reason == protocol.DomainPausedStartingUp) {
		err = c.letGo(true) // the daemon was killed while it copied the disk, or while it went on from an image
	}
	return err
}

// defineArrived keeps the definitions of domains that came here from other hosts,
// and that an earlier daemon could not keep. What cannot be kept is tried again by
// the next.
func (drv *Driver) defineArrived() error {
	docs, err := drv.rt.Undefined()
	for session, doc := range docs {
		e := drv.defineStored(doc)
		if e == nil {
			e = drv.rt.Defined(session)
		}
		err = errors.Join(err, e)
	}
	return err
}

// defineStored keeps a definition that the daemon itself has written down.
func (drv *Driver) defineStored(doc string) error {
	facts := drv.facts()
	facts.Templates = nil
	def, err := xml.Parse(doc, facts, xml.ParseOptions{Stored: true})
	if err != nil {
		return err
	}
	id, err := protocol.ParseUUID(def.UUID)
	if err != nil {
		return err
	}
	c, err := drv.recovered(id, def.Name)
	if err != nil {
		return err
	}
	defer c.release()
	return c.define(def)
}

// observed is the state an environment is in. The kernel is right where the
// saved status is not: a daemon may have been killed between freezing and
// saving.
func observed(inst interface {
	Frozen() (bool, error)
	Started() bool
}, s savedStatus) (State, int32, error) {
	frozen, err := inst.Frozen()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		err = nil // it ends just now, which who watches it will notice
	}
	switch paused := frozen || !inst.Started(); {
	case paused && s.State != Paused:
		return Paused, protocol.DomainPausedUnknown, err
	case !paused && s.State == Paused:
		return Running, protocol.DomainRunningUnpaused, err
	}
	return s.State, s.Reason, err
}

// endedMeanwhile is for a domain whose status says that it runs, and which
// does not. e tells how it ended, if there was a record of it left.
func (drv *Driver) endedMeanwhile(id protocol.UUID, s savedStatus, e *runtime.Ended) error {
	live, err := drv.parseLive(s)
	if err != nil {
		return errors.Join(err, drv.store.removeStatus(id))
	}
	then := endedAs{reason: protocol.DomainShutoffUnknown}
	switch {
	case e != nil && e.Started:
		then = consequence(e.Exit.Cause, s.Rebooting, live)
	case e != nil:
		then.reason = protocol.DomainShutoffFailed // its start was cut off
	}
	// The daemon was killed between an environment and the next of a restart. Once
	// more is enough: a start that kills it must not do so for ever.
	then.restart = (then.restart || s.Restarting) && !s.Autodestroy
	c, err := drv.recovered(id, s.Name)
	if err != nil {
		return errors.Join(err, drv.store.removeStatus(id))
	}
	defer c.release()
	if then.restart {
		drv.log.Info("domain restarts", "domain", s.Name)
		if err = c.launchAgain(live); err == nil {
			return nil
		}
		then.reason = protocol.DomainShutoffFailed
	}
	return errors.Join(err, c.enter(Shutoff, then.reason, nil))
}

// recovered takes the job of a domain that is known by its status, whether it
// has a definition or not.
func (drv *Driver) recovered(id protocol.UUID, name string) (*change, error) {
	d, err := drv.domains.claim(drv, id, name)
	if err != nil {
		return nil, err
	}
	c := d.changeAlways("recover")
	if c.view().undefined() {
		c.loadSnapshots()
	}
	return c, nil
}

func (drv *Driver) parseLive(s savedStatus) (*libvirtxml.Domain, error) {
	facts := drv.facts()
	facts.Templates = nil
	return xml.Parse(s.Live, facts, xml.ParseOptions{Stored: true, Live: true})
}
