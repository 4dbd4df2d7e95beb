package driver

import (
	"context"
	"errors"
	"strconv"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// snapshotCreateFlags are those that can be honoured. All processes of a running
// environment are held still while its disk is copied, which is more than
// QUIESCE and ATOMIC ask for.
var snapshotCreateFlags = []uint32{
	protocol.DomainSnapshotCreateRedefine, protocol.DomainSnapshotCreateCurrent,
	protocol.DomainSnapshotCreateHalt, protocol.DomainSnapshotCreateDiskOnly,
	protocol.DomainSnapshotCreateQuiesce, protocol.DomainSnapshotCreateAtomic,
	protocol.DomainSnapshotCreateLive, protocol.DomainSnapshotCreateValidate,
}

func createSnapshot(c *change, a *protocol.DomainSnapshotCreateXMLArgs) (ret protocol.DomainSnapshotCreateXMLRet, err error) {
	if a.Flags&(protocol.DomainSnapshotCreateNoMetadata|protocol.DomainSnapshotCreateReuseExt) != 0 {
		return ret, errorf(protocol.ErrArgumentUnsupported, "a snapshot of an environment is a layer that the daemon keeps: --no-metadata and --reuse-external have no meaning for it")
	}
	if err := checkFlags(a.Flags, snapshotCreateFlags...); err != nil {
		return ret, err
	}
	redefine := a.Flags&protocol.DomainSnapshotCreateRedefine != 0
	facts := c.drv.facts()
	facts.Templates = nil
	snap, err := xml.ParseSnapshot(a.XMLDesc, facts, redefine, xml.ParseOptions{Validate: a.Flags&protocol.DomainSnapshotCreateValidate != 0})
	if err != nil {
		return ret, err
	}
	all := c.view().snapshots
	if len(all.all) >= maxSnapshots && all.find(snap.Name) == nil {
		return ret, errorf(protocol.ErrOperationFailed, "domain '%s' has %d snapshots already: delete some first", c.view().name, len(all.all))
	}
	if redefine {
		err = c.redefineSnapshot(snap, a.Flags)
	} else {
		err = c.takeSnapshot(snap, a.Flags)
	}
	if err != nil {
		return ret, err
	}
	ret.Snap = c.snapshotRef(snap.Name)
	return ret, nil
}

// redefineSnapshot changes what is known of a snapshot, or makes known again one
// that was forgotten.
func (c *change) redefineSnapshot(snap *xml.Snapshot, flags uint32) error {
	all := c.view().snapshots
	if flags&protocol.DomainSnapshotCreateDiskOnly != 0 && snap.State != xml.SnapshotDiskOnly {
		return errorf(protocol.ErrInvalidArg, "disk-only flag for snapshot %s requires disk-snapshot state", snap.Name)
	}
	if snap.Domain != nil && snap.Domain.UUID != c.uuid.String() {
		return errorf(protocol.ErrInvalidArg, "definition for snapshot %s must use uuid %s", snap.Name, c.uuid)
	}
	if err := all.with(snap).checkParent(snap); err != nil {
		return err
	}
	if old := all.find(snap.Name); old != nil {
		if old.HasMemory() != snap.HasMemory() { // virDomainSnapshotRedefineValidate
			return errorf(protocol.ErrInvalidArg, "cannot change between online and offline snapshot state in snapshot %s", snap.Name)
		}
		if snap.Layer == "" {
			snap.Layer = old.Layer
		}
		if snap.Domain == nil {
			snap.Domain = old.Domain
		}
	}
	if snap.Domain != nil {
		if err := c.allowClone(c.view().config, snap.Domain); err != nil {
			return err
		}
	}
	if _, err := c.drv.layers.Of(c.uuid, snap.Layer); err != nil {
		return errorf(protocol.ErrInvalidDomainSnapshot, "the <layer> in the <cookie> of snapshot %s cannot be used: %v; redefine what snapshot-dumpxml printed", snap.Name, err)
	}
	if snap.HasMemory() {
		if _, err := runtime.ReadSaved(c.drv.layers.Memory(snap.Layer)); err != nil {
			return errorf(protocol.ErrInvalidDomainSnapshot, "the memory of snapshot %s is lost: %v", snap.Name, err)
		}
	}
	if err := c.keepSnapshot(snap); err != nil {
		return err
	}
	if flags&protocol.DomainSnapshotCreateCurrent != 0 {
		return c.setCurrentSnapshot(snap.Name)
	}
	return nil
}

// takeSnapshot keeps the disk as it is, the definition, and the processes if
// there are any and they are wanted.
func (c *change) takeSnapshot(snap *xml.Snapshot, flags uint32) error {
	v := c.view()
	halt := flags&protocol.DomainSnapshotCreateHalt != 0
	now := time.Now()
	if snap.Name == "" {
		snap.Name = strconv.FormatInt(now.Unix(), 10)
	}
	switch {
	case v.snapshots.find(snap.Name) != nil:
		return errorf(protocol.ErrOperationInvalid, "domain snapshot %s already exists", snap.Name)
	case v.state == Stopping:
		return errorf(protocol.ErrOperationInvalid, "domain is shutting down: make the snapshot when it is shut off")
	case halt && !v.persistent:
		return errorf(protocol.ErrOperationInvalid, "cannot halt after transient domain snapshot")
	}
	snap.Created, snap.Parent = now.Unix(), v.snapshots.current
	snap.Domain = xml.Copy(v.definition(true))
	env, err := xml.NewEnvironment(v.definition(false)) // what the disk is of
	if err != nil {
		return err
	}
	if err := c.drv.layers.Prepare(c.ctx, env); err != nil {
		return err
	}
	switch {
	case !v.state.active():
		snap.State = xml.SnapshotShutoff
		snap.Layer, err = c.drv.layers.Push(c.uuid)
	case snap.DiskOnly || flags&protocol.DomainSnapshotCreateDiskOnly != 0:
		snap.State = xml.SnapshotDiskOnly
		snap.Layer, err = c.copyDisk(halt)
	default:
		snap.State = xml.SnapshotRunning
		if v.state == Paused {
			snap.State = xml.SnapshotPaused
		}
		snap.Layer, err = c.copyAll(env, halt)
	}
	if err != nil {
		return err
	}
	if err := c.keepSnapshot(snap); err != nil {
		return errors.Join(err, c.drv.layers.Release(c.uuid, snap.Layer))
	}
	if err := c.drv.layers.Keep(c.uuid, snap.Layer); err != nil {
		return errors.Join(err, c.dropSnapshot(snap, false))
	}
	c.drv.log.Info("snapshot made", "domain", v.name, "snapshot", snap.Name, "layer", snap.Layer)
	return c.setCurrentSnapshot(snap.Name)
}

// copyDisk copies the disk of an environment whose processes are held still
// meanwhile; with halt it ends there.
func (c *change) copyDisk(halt bool) (layer string, err error) {
	inst := c.view().instance
	held := false
	err = c.working(protocol.DomainJobOperationSnapshot, func(ctx context.Context, w *work) error {
		hold := func(do func() error) (err error) {
			if held, err = c.hold(); err != nil {
				return err
			}
			if err = do(); halt && err == nil {
				return nil // to its end
			}
			err = errors.Join(err, c.letGo(held))
			held = false
			return err
		}
		layer, err = c.drv.layers.Copy(ctx, c.uuid, hold, w.progress)
		return err
	})
	if err != nil {
		return "", errors.Join(err, c.letGo(held))
	}
	if !halt {
		return layer, nil
	}
	return c.halted(inst, layer)
}

// copyAll copies the disk and the processes of an environment, which stand still
// meanwhile; with halt they end there.
func (c *change) copyAll(env *xml.Environment, halt bool) (layer string, err error) {
	v := c.view()
	doc, err := xml.Format(v.live, xml.FormatOptions{Migratable: true, Secure: true})
	if err != nil {
		return "", err
	}
	header := runtime.SavedHeader{Name: v.name, XML: doc, Paused: v.state == Paused}
	held, err := c.holdSeen(protocol.DomainPausedSnapshot, halt)
	if err != nil {
		return "", err
	}
	err = c.working(protocol.DomainJobOperationSnapshot, func(ctx context.Context, w *work) error {
		layer, err = v.instance.Snapshot(ctx, header, env.Interfaces, halt, w.progress)
		return err
	})
	if err == nil && halt {
		return c.halted(v.instance, layer)
	}
	if held {
		err = errors.Join(err, c.enter(Running, protocol.DomainRunningUnpaused, nil, lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedUnpaused)))
	}
	return layer, unsupportedMode(err)
}

// halted ends an environment with its snapshot.
func (c *change) halted(inst *runtime.Instance, layer string) (string, error) {
	if err := c.controlled(inst.Kill(c.ctx)); err != nil {
		return "", errors.Join(err, c.drv.layers.Release(c.uuid, layer))
	}
	return layer, c.stopped(inst, protocol.DomainShutoffFromSnapshot, protocol.DomainEventStoppedFromSnapshot)
}

// hold freezes a running environment, which clients see, and tells whether it
// has to be let go: one that was paused stays so.
func (c *change) hold() (bool, error) {
	if c.view().state != Running {
		return false, nil
	}
	if err := c.view().instance.Suspend(c.ctx); err != nil {
		return false, err
	}
	return true, c.enter(Paused, protocol.DomainPausedSnapshot, nil,
		lifecycleEvent(protocol.DomainEventSuspended, protocol.DomainEventSuspendedPaused))
}

func (c *change) letGo(held bool) error {
	if !held {
		return nil
	}
	if err := c.view().instance.Resume(c.ctx); err != nil {
		return c.controlled(err)
	}
	return c.enter(Running, protocol.DomainRunningUnpaused, nil,
		lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedUnpaused))
}
