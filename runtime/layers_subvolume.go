package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A private directory that is a subvolume (see quota_btrfs.go) is a file system
// of its own to rename(2), though not to reflinks:
//
//   - a layer is made of a snapshot of all of it, and upper then emptied
//   - what is set aside stays in it, as .gone-X, until it is swept
//   - a layer joins it by way of a copy that shares the data, .join-ID
//
// A subvolume itself can be renamed to anywhere, and removed like a directory.

// separate makes the private directory of an environment a subvolume, if it is
// on btrfs and is none yet. Nothing uses it, but its start is on the way.
func (l *Layers) separate(ctx context.Context, uuid [16]byte) error {
	name := formatUUID(uuid)
	dir := l.privateDir(name)
	if btrfs, subvolume := onBtrfs(dir); !btrfs || subvolume {
		return nil
	}
	q, err := openQgroup(dir) // of what it lies in: without quotas it would be for nothing
	if err != nil {
		return err
	}
	q.close()
	d, err := readDisk(dir)
	if err != nil {
		return err
	}
	var work string
	done := func() {}
	err = l.locked(func() (err error) {
		work, done, err = temporaryDir(l.dir, ".new-")
		return err
	})
	if err != nil {
		return err
	}
	defer done()
	fresh := filepath.Join(work, "disk")
	if err := makeSubvolume(fresh); err != nil {
		return err
	}
	if err := cloneTree(ctx, filepath.Join(dir, "upper"), filepath.Join(fresh, "upper"), nil); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(fresh, "work"), 0o700); err != nil {
		return err
	}
	if err := d.save(fresh); err != nil {
		return err
	}
	if err := syncTree(fresh); err != nil {
		return err
	}
	return l.locked(func() error {
		atStep("separate exchange")
		if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE); err != nil {
			return &os.LinkError{Op: "exchange", Old: fresh, New: dir, Err: err}
		}
		return syncDirectory(l.private)
	})
}

// makeLayerDir makes the directory of a new layer and tells which directory is
// to become its rootfs: the upper of a private directory, or the copy of it in
// a snapshot.
func makeLayerDir(private, layer string) (rootfs string, err error) {
	if _, subvolume := onBtrfs(private); !subvolume {
		return filepath.Join(private, "upper"), os.Mkdir(layer, 0o700)
	}
	if err := snapshotSubvolume(private, layer); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(layer)
	for _, e := range entries {
		if e.Name() != "upper" && err == nil {
			err = removeTree(filepath.Join(layer, e.Name()))
		}
	}
	return filepath.Join(layer, "upper"), err
}

// joinAcross is joinTrees from another subvolume. lower stays as it is, which
// does no harm below what was taken of it.
func joinAcross(id, lower, upper string) error {
	copied := filepath.Join(filepath.Dir(upper), ".join-"+id)
	if !exists(copied) {
		// Under another name until it is whole.
		fresh := filepath.Join(filepath.Dir(upper), ".join")
		if err := removeTree(fresh); err != nil {
			return err
		}
		if err := os.Mkdir(fresh, 0o700); err != nil {
			return err
		}
		err := cloneTree(context.Background(), lower, filepath.Join(fresh, "rootfs"), nil)
		if err == nil {
			atStep("join copied")
			err = os.Rename(filepath.Join(fresh, "rootfs"), copied)
		}
		if err := errors.Join(err, removeTree(fresh)); err != nil {
			return err
		}
	}
	if err := joinTrees(copied, upper); err != nil {
		return err
	}
	return removeTree(copied)
}
