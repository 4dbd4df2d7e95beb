package runtime

import (
	"context"
	"errors"
	"os"

	"virtvzd/xml"
)

// Snapshot makes a layer of the disk, and keeps the processes beside it as they
// were at the same moment: Layers.Memory is the image, for Restore once the disk
// is what it was. The environment goes on, also after an error; with end it is
// left frozen and cut off if all went well, for Kill. progress is told of bytes.
func (i *Instance) Snapshot(ctx context.Context, h SavedHeader, interfaces []xml.Interface, end bool, progress func(done, total uint64)) (layer string, err error) {
	if err := i.RefuseLeaving(); err != nil { // its checkpoint is not what goOn is for
		return "", err
	}
	dir, err := i.r.workDir(i.uuid, "snapshot")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	goOn := func() error {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return i.AbandonCheckpoint(undo, interfaces)
	}
	var disk uint64
	layers := i.r.Layers()
	layer, err = layers.Copy(ctx, i.uuid, func(copy func() error) error {
		if err := i.Checkpoint(ctx, dir, interfaces, end); err != nil {
			return err
		}
		atStep("snapshot copy")
		err := copy()
		if err == nil && end {
			return nil // nothing may change any more
		}
		return errors.Join(err, goOn())
	}, func(done, total uint64) {
		disk = total
		progress(done, total)
	})
	if err == nil {
		atStep("snapshot memory")
		h.ID, h.UUID = layer, formatUUID(i.uuid)
		err = layers.keepMemory(ctx, layer, h, dir, func(done, total uint64) { progress(disk+done, disk+total) })
	}
	if err != nil {
		err = errors.Join(err, goOn())
		if layer != "" {
			err = errors.Join(err, layers.Release(i.uuid, layer))
		}
		return "", err
	}
	return layer, nil
}
