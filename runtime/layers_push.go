package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// Prepare makes the disk of an environment that never started, so that a
// snapshot can be made of it. The error of a root that has no layers says so.
func (l *Layers) Prepare(ctx context.Context, env *xml.Environment) error {
	if len(env.Filesystems) == 0 || env.Filesystems[0].Type != "template" {
		return fmt.Errorf("%w: the root of %s is a directory of the host; snapshots are of roots of type 'template'", ErrUnsupported, env.Name)
	}
	_, err := l.templates.pin(ctx, env.Filesystems[0].Source, l.privateDir(formatUUID(env.UUID)))
	return err
}

// Push makes a layer of what an environment that is shut off has written, and
// returns its ID. Nothing is copied: the directory, or a snapshot of it where
// it is a subvolume, becomes the layer, and the environment goes on with an
// empty one above it. The layer is for Keep or Release, as Copy's is.
func (l *Layers) Push(uuid [16]byte) (id string, err error) {
	name := formatUUID(uuid)
	dir := l.privateDir(name)
	if err := l.collect(name); err != nil {
		return "", err
	}
	if err := syncTree(dir); err != nil {
		return "", err
	}
	err = l.locked(func() error {
		d, err := l.settledIdle(name)
		if err != nil {
			return err
		}
		if err := l.room(d); err != nil {
			return err
		}
		id, err = l.push(name, d, false)
		return err
	})
	return id, err
}

// push is Push with the lock held. A released layer stays only as long as
// others stand on it.
func (l *Layers) push(name string, d disk, released bool) (id string, err error) {
	dir := l.privateDir(name)
	id = newLayerID()
	atStep("push layer")
	upper, err := makeLayerDir(dir, l.layerDir(id))
	if err != nil {
		return "", err
	}
	layer := Layer{ID: id, Of: name, Below: d.Layer, Template: d.Template, Made: time.Now().UTC(), Making: !released, Released: released}
	if err := l.describe(l.layerDir(id), layer); err != nil {
		return "", err
	}
	atStep("push intent")
	d.Pushing = id
	if err := d.save(dir); err != nil {
		return "", err
	}
	atStep("push rename")
	if err := os.Rename(upper, filepath.Join(l.layerDir(id), "rootfs")); err != nil {
		return "", err
	}
	if err := syncDirectory(l.layerDir(id)); err != nil {
		return "", err
	}
	atStep("push settle")
	_, err = l.settled(name)
	atStep("push done")
	return id, err
}

// Copy makes a layer of what an environment has written although it runs:
// hold keeps its processes still while do runs. Where the file system can,
// the copy shares the data with the original (reflink). progress is told
// bytes. After an error, such as the end of ctx, nothing is left.
func (l *Layers) Copy(ctx context.Context, uuid [16]byte, hold func(do func() error) error, progress func(done, total uint64)) (id string, err error) {
	if err := l.sweep(); err != nil {
		return "", err
	}
	name := formatUUID(uuid)
	var d disk
	var work string
	done := func() {}
	err = l.locked(func() (err error) {
		if d, err = readDisk(l.privateDir(name)); err != nil {
			return err
		}
		if err = l.room(d); err != nil {
			return err
		}
		work, done, err = temporaryDir(l.dir, ".new-")
		return err
	})
	if err != nil {
		return "", err
	}
	defer done()
	err = hold(func() error {
		return cloneTree(ctx, filepath.Join(l.privateDir(name), "upper"), filepath.Join(work, "rootfs"), progress)
	})
	if err != nil {
		return "", err
	}
	if err := l.describe(work, Layer{Of: name, Below: d.Layer, Template: d.Template, Made: time.Now().UTC(), Making: true}); err != nil {
		return "", err
	}
	if err := syncTree(work); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	id = newLayerID()
	return id, l.locked(func() error {
		if err := os.Rename(work, l.layerDir(id)); err != nil {
			return err
		}
		return syncDirectory(l.dir)
	})
}

// Keep notes that a snapshot is known of a layer that was made for it.
func (l *Layers) Keep(uuid [16]byte, id string) error {
	return l.locked(func() error {
		layer, err := l.Of(uuid, id)
		if err != nil || !layer.Making {
			return err
		}
		layer.Making = false
		return l.describe(l.layerDir(id), layer)
	})
}

// Unfinished lists the layers that were neither kept nor released: when nobody
// makes any, these are of somebody who was killed. A damaged one is left out and
// reported.
func (l *Layers) Unfinished() ([]Layer, error) {
	list, err := l.all()
	return slices.DeleteFunc(list, func(layer Layer) bool { return !layer.Making || layer.Released }), err
}

// Revert makes an environment's disk what it was when one of its layers was
// made. What was written since, and is in no layer, is deleted.
func (l *Layers) Revert(uuid [16]byte, id string) error {
	name := formatUUID(uuid)
	dir := l.privateDir(name)
	err := l.locked(func() error {
		layer, err := l.kept(uuid, id)
		if err != nil {
			return err
		}
		d, err := l.settledIdle(name)
		if err == errNoDisk {
			err = os.MkdirAll(dir, 0o700)
		}
		if err != nil {
			return err
		}
		d.Template, d.Layer, d.Discard = layer.Template, id, true
		atStep("revert intent")
		if err := d.save(dir); err != nil {
			return err
		}
		atStep("revert settle")
		_, err = l.settled(name)
		atStep("revert done")
		return err
	})
	if err != nil {
		return err
	}
	return l.collect(name)
}

// Of finds a layer of an environment. Those of others are none of its business.
func (l *Layers) Of(uuid [16]byte, id string) (Layer, error) {
	layer, err := l.layer(id)
	if err == nil && layer.Of != formatUUID(uuid) {
		err = fmt.Errorf("there is no layer %s of this environment", id)
	}
	return layer, err
}

// kept finds a layer of an environment that another disk can stand on.
func (l *Layers) kept(uuid [16]byte, id string) (Layer, error) {
	layer, err := l.Of(uuid, id)
	if err == nil && layer.Joining {
		err = fmt.Errorf("layer %s is no snapshot any more: what was only in it is part of what stood on it", id)
	}
	if err == nil {
		err = l.unclaimed(id)
	}
	return layer, err
}

// settledIdle is settled for what cannot be done with a disk in use.
func (l *Layers) settledIdle(uuid string) (disk, error) {
	if l.running(uuid) {
		return disk{}, fmt.Errorf("the disk of %s is in use: %w", uuid, ErrRunning)
	}
	return l.settled(uuid)
}

// room tells whether one more layer can lie below a disk.
func (l *Layers) room(d disk) error {
	chain, err := l.chain(d.Layer)
	if err == nil && len(chain) >= maxChain {
		err = fmt.Errorf("%w: %d lie below it already; delete snapshots, with the environment shut off", ErrTooManyLayers, len(chain))
	}
	return err
}

// syncTree writes all that was written to the disk: a snapshot that survives a
// crash of the host must not be one of empty files. It writes what others have
// written to the same file system as well: an fsync(2) for each file of the tree
// would commit the journal each time.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
