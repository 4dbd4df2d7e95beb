package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"virtvzd/xml"
)

// GrowDisk makes a disk that is an image a number of bytes large, of an
// environment that runs as i, or of none that runs. What is on it is the
// environment's to make use of that.
func (r *Runtime) GrowDisk(ctx context.Context, i *Instance, d xml.Device, size uint64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("disk %s: %w", d.Source, err)
		}
	}()
	var disk recordedDisk
	if i != nil {
		n := slices.IndexFunc(i.disks(), func(have recordedDisk) bool { return have.Device == d })
		if n < 0 {
			return fmt.Errorf("it is not attached to %s", i.Name())
		}
		disk = i.disks()[n]
	} else if disk.Path = d.Source; d.Volume {
		if disk.Path, err = r.VolumePath(ctx, d.Source); err != nil {
			return err
		}
	}
	info, err := os.Stat(disk.Path)
	switch {
	case err != nil:
		return errnoOf(err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("it is the host's: resize it there, the environment sees its new size: %w", ErrUnsupported)
	case d.ReadOnly:
		return fmt.Errorf("it is read-only: %w", ErrUnsupported)
	}
	now, err := ImageSpace(disk.Path, d.Image == "qcow2")
	switch {
	case err != nil || size == now.Capacity:
		return err
	case size < now.Capacity:
		return fmt.Errorf("it has %d KiB already, and a disk does not shrink: %w", kib(now.Capacity), ErrUnsupported)
	case size > maxImageSize:
		return fmt.Errorf("%d KiB are more than a disk can have", kib(size))
	}
	grow := func() error { return r.growImage(ctx, disk.Path, d.Image, size) }
	if i == nil {
		if _, err := servedPath(disk.Path, d.Image, false); err != nil {
			return err
		}
		return grow()
	}
	return i.growServedDisk(ctx, disk, grow)
}

// growServedDisk is growServed of a disk. Nobody has to be frozen: what a server
// has not answered the next one is asked again. All that it has answered is in the
// image when it ends. QEMU 7.2 ends with the next request only, and is killed if
// there is none for ten seconds.
func (i *Instance) growServedDisk(ctx context.Context, d recordedDisk, grow func() error) error {
	s := recordedServer{ID: d.ID, Image: d.Path, Index: uint32(d.Number), Disk: d.Device.Image}
	if !d.serves() {
		return errors.New("what serves it has ended: detach it, and attach it again")
	}
	if err := i.noteServer(&s); err != nil {
		return err
	}
	atStep("image grows")
	device, err := os.Open(d.node())
	if err == nil {
		// Only before: a daemon that waits for a server itself cannot end.
		err = errors.Join(device.Sync(), s.wait(true), device.Close())
	}
	if err == nil {
		err = i.r.endServer(ctx, s.ID)
	}
	atStep("image ended")
	if err == nil {
		err = grow()
	}
	later, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, i.serveAgain(later))
}
