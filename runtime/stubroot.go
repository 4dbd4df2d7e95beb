package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountRoot mounts the root at Dir/rootfs in this (private) mount namespace.
//
// With an id range both layers of the overlay are idmapped mounts: on disk
// everything keeps the ids of an unshifted root, nothing is ever chowned, and
// another start may use another range. From then on this thread creates
// files as the environment's root.
func mountRoot(q rootRequest) error {
	var space *os.File
	if len(q.UIDs) > 0 {
		var err error
		if space, err = openUserNamespace(q.UIDs, q.GIDs); err != nil {
			return err
		}
		defer space.Close()
	}
	rootfs := filepath.Join(q.Dir, "rootfs")
	if q.Lower == "" {
		return mountDirectory(q, rootfs, space)
	}
	lower, layers := filepath.Join(q.Dir, "lower"), filepath.Join(q.Dir, "layers")
	if err := cloneMount(q.Lower, lower, space, unix.MOUNT_ATTR_RDONLY, false); err != nil {
		return err
	}
	if err := cloneMount(q.Layers, layers, space, 0, false); err != nil {
		return err
	}
	if err := enterRange(q); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", escapeLayer(lower), layers, layers)
	flags := uintptr(0)
	if q.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", rootfs, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount an overlay of %s and %s: %w", q.Lower, q.Layers, err)
	}
	return nil
}

// mountDirectory mounts a directory as the root. A tree that was shifted for
// this range before (its top directory belongs to the mapped root, the way
// libvirt-lxc wants it) is taken as it is; any other is shifted by the mount.
func mountDirectory(q rootRequest, rootfs string, space *os.File) error {
	info, err := os.Stat(q.Root)
	if err != nil {
		return fmt.Errorf("root directory %s: %w", q.Root, errnoOf(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("root %s is not a directory", q.Root)
	}
	if q.Foreign {
		if space == nil {
			return errors.New("only an environment with ids of its own can have the host's root: remove <idmap>")
		}
		if err := cloneMount(q.Root, rootfs, nil, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID, true); err != nil {
			return err
		}
		return enterRange(q)
	}
	if space != nil {
		var st unix.Stat_t
		if err := unix.Stat(q.Root, &st); err == nil && st.Uid != 0 && st.Uid == hostID(q.UIDs, 0) {
			space = nil
		}
	}
	attr := uint64(0)
	if q.ReadOnly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	if err := cloneMount(q.Root, rootfs, space, attr, true); err != nil {
		return err
	}
	return enterRange(q)
}

func enterRange(q rootRequest) error {
	if len(q.UIDs) == 0 {
		return nil
	}
	return becomeOwner(hostID(q.UIDs, 0), hostID(q.GIDs, 0))
}

// hostID translates an id of the environment, or returns the overflow id.
func hostID(ids []idRange, inside uint32) uint32 {
	for _, r := range ids {
		if inside >= r.Inside && inside-r.Inside < r.Count {
			return r.Host + inside - r.Inside
		}
	}
	return 65534
}

// cloneMount mounts a copy of the tree at source on target, shifted by the user
// namespace space unless that is nil.
func cloneMount(source, target string, space *os.File, set uint64, recursive bool) error {
	tree, err := openTree(unix.AT_FDCWD, source, space, set, recursive)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", source, err)
	}
	return nil
}

func openTree(dir int, source string, space *os.File, set uint64, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	at := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(dir, source, flags)
	if err != nil {
		return -1, fmt.Errorf("directory %s: %w", source, err)
	}
	attr := unix.MountAttr{Attr_set: set}
	if space != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(space.Fd())
	}
	if attr.Attr_set == 0 {
		return tree, nil
	}
	err = unix.MountSetattr(tree, "", at, &attr)
	if err == nil {
		return tree, nil
	}
	unix.Close(tree)
	if space != nil && errors.Is(err, unix.EINVAL) {
		return -1, fmt.Errorf("the file system of %s (or of one mounted below it) cannot be id-mapped: "+
			"use ext4, xfs or btrfs, or give the domain an explicit idmap and a root that belongs to it", source)
	}
	return -1, fmt.Errorf("set the attributes of the mount of %s: %w", source, err)
}

// escapeLayer quotes what overlayfs treats specially in lowerdir.
func escapeLayer(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}

// errnoOf strips the path that package os puts before an errno.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
