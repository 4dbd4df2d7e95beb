package driver

import (
	"errors"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// revertToSnapshot makes disk and definition what they were, and goes on with
// the processes if they are in the snapshot. If they are not, the environment is
// shut off after that, unless it is to run or to be paused.
func revertToSnapshot(c *change, a *protocol.DomainRevertToSnapshotArgs) error {
	if err := checkFlags(a.Flags, protocol.DomainSnapshotRevertRunning, protocol.DomainSnapshotRevertPaused,
		protocol.DomainSnapshotRevertForce, protocol.DomainSnapshotRevertResetNvram); err != nil {
		return err
	}
	snap, err := c.view().snapshots.get(a.Snap.Name)
	if err != nil {
		return err
	}
	if err := errors.Join(c.requirePersistent("revert"), c.refuseSaved("revert")); err != nil {
		return err
	}
	if _, err := c.drv.layers.Of(c.uuid, snap.Layer); err != nil {
		return errorf(protocol.ErrInvalidDomainSnapshot, "the disk of snapshot '%s' is lost: %v", snap.Name, err)
	}
	v := c.view()
	start := a.Flags&(protocol.DomainSnapshotRevertRunning|protocol.DomainSnapshotRevertPaused) != 0
	if a.Flags&protocol.DomainSnapshotRevertForce == 0 {
		// As qemuSnapshotRevertValidate has it.
		if snap.Domain == nil {
			return errorf(protocol.ErrSnapshotRevertRisky, "snapshot '%s' lacks domain '%s' rollback info", snap.Name, v.name)
		}
		if v.state.active() && start && !snap.HasMemory() {
			return errorf(protocol.ErrSnapshotRevertRisky, "the environment has to be ended and started anew")
		}
	}
	var live *libvirtxml.Domain
	memory := c.drv.layers.Memory(snap.Layer)
	if snap.HasMemory() { // what is lost is to be told while there is still what runs now
		if live, _, err = c.savedOwn(memory); err == nil {
			err = runtime.CheckSaved(memory)
		}
		if err != nil {
			return errorf(protocol.ErrInvalidDomainSnapshot, "the memory of snapshot '%s' is lost: %v", snap.Name, err)
		}
		live.Name = v.name // it may have been renamed since
	}
	if v.state.active() {
		if err := c.controlled(v.instance.Kill(c.ctx)); err != nil {
			return err
		}
		if err := c.stopped(v.instance, protocol.DomainShutoffFromSnapshot, protocol.DomainEventStoppedFromSnapshot); err != nil {
			return err
		}
	}
	if err := c.drv.layers.Revert(c.uuid, snap.Layer); err != nil {
		return err
	}
	if snap.Domain != nil {
		def := xml.Copy(snap.Domain)
		def.Name = v.name
		if err := c.defineAs(def, protocol.DomainEventDefinedFromSnapshot); err != nil {
			return err
		}
	}
	if err := c.setCurrentSnapshot(snap.Name); err != nil {
		return err
	}
	c.drv.log.Info("domain reverted", "domain", v.name, "snapshot", snap.Name)
	paused := a.Flags&protocol.DomainSnapshotRevertPaused != 0
	switch {
	case snap.HasMemory():
		paused = paused || snap.State == xml.SnapshotPaused && a.Flags&protocol.DomainSnapshotRevertRunning == 0
		return c.restoreFrom(memory, live, paused, nil, fromSnapshot)
	case start:
		flags := uint32(0)
		if paused {
			flags = protocol.DomainStartPaused
		}
		return c.start(c.view().config, flags, nil, fromSnapshot)
	}
	return nil
}
