package driver

import (
	"errors"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// revertToSnapshot makes disk and definition what they were. The environment
// is shut off after that, as it was, unless it is to run or to be paused.
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
		if v.state.active() && start {
			return errorf(protocol.ErrSnapshotRevertRisky, "the environment has to be ended and started anew")
		}
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
		def.Name = v.name // it may have been renamed since
		if err := c.defineAs(def, protocol.DomainEventDefinedFromSnapshot); err != nil {
			return err
		}
	}
	if err := c.setCurrentSnapshot(snap.Name); err != nil {
		return err
	}
	c.drv.log.Info("domain reverted", "domain", v.name, "snapshot", snap.Name)
	if !start {
		return nil
	}
	return c.startReverted(a.Flags&protocol.DomainSnapshotRevertPaused != 0)
}

func (c *change) startReverted(paused bool) error {
	flags, state, reason := uint32(0), Running, int32(protocol.DomainRunningFromSnapshot)
	if paused {
		flags, state, reason = protocol.DomainStartPaused, Paused, protocol.DomainPausedFromSnapshot
	}
	if err := c.start(c.view().config, flags, nil); err != nil {
		return err
	}
	return c.enter(state, reason, nil)
}
