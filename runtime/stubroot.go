package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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
	if q.Tree != 0 {
		return mountTree(q, rootfs, space)
	}
	if q.Lower == "" {
		return mountDirectory(q, rootfs, space)
	}
	lower, layers := filepath.Join(q.Dir, "lower"), filepath.Join(q.Dir, "layers")
	if err := cloneMount(q.Lower, lower, space, unix.MOUNT_ATTR_RDONLY, false); err != nil {
		return err
	}
	var below []string // from Dir: mount(2) takes one page of options
	for n, layer := range q.Chain {
		if err := cloneMount(layer, chainMount(q.Dir, n), space, unix.MOUNT_ATTR_RDONLY, false); err != nil {
			return err
		}
		below = append(below, chainMount("", n))
	}
	if err := cloneMount(q.Layers, layers, space, 0, false); err != nil {
		return err
	}
	if err := enterRange(q); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=layers/upper,workdir=layers/work", strings.Join(append(below, "lower"), ":"))
	flags := uintptr(0)
	if q.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if err := os.Chdir(q.Dir); err != nil {
		return err
	}
	if err := unix.Mount("overlay", rootfs, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount an overlay of %s and %s: %w", q.Lower, q.Layers, err)
	}
	return os.Chdir("/")
}

// chainMount is where the stub mounts a layer between upper and template.
func chainMount(dir string, n int) string { return filepath.Join(dir, "chain", strconv.Itoa(n)) }

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

// mountTree mounts what the daemon has made a mount of. Like a directory it
// may have been shifted before.
func mountTree(q rootRequest, rootfs string, space *os.File) error {
	unix.CloseOnExec(q.Tree)
	defer unix.Close(q.Tree)
	if space != nil && !shiftedFor(q.Tree, hostID(q.UIDs, 0)) {
		if err := setMount(q.Tree, q.Root, space, 0, true); err != nil {
			return err
		}
	}
	if err := unix.MoveMount(q.Tree, "", unix.AT_FDCWD, rootfs, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", q.Root, err)
	}
	return enterRange(q)
}

// shiftedFor tells whether the top of a tree belongs to an environment's root.
func shiftedFor(fd int, root uint32) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Uid != 0 && st.Uid == root
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

// openTree copies the tree at source; without that, at the open directory or
// file dir. What is mounted in the copy, or unmounted, is so nowhere else.
func openTree(dir int, source string, space *os.File, set uint64, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(dir, source, flags)
	if err != nil {
		return -1, fmt.Errorf("directory %s: %w", source, err)
	}
	if err := setMount(tree, source, space, set, recursive); err != nil {
		unix.Close(tree)
		return -1, err
	}
	return tree, nil
}

// setMount shifts a mount by the user namespace space, unless that is nil, sets
// attributes of it, and cuts it off from those it is a copy of. source is for the
// error.
func setMount(tree int, source string, space *os.File, set uint64, recursive bool) error {
	at := uint(unix.AT_EMPTY_PATH)
	if recursive {
		at |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: set, Propagation: unix.MS_PRIVATE}
	if space != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(space.Fd())
	}
	err := unix.MountSetattr(tree, "", at, &attr)
	if space != nil && errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("the file system of %s (or of one mounted below it) cannot be id-mapped: "+
			"use ext4, xfs or btrfs, or give the domain an explicit idmap and a root that belongs to it", source)
	}
	if err != nil {
		return fmt.Errorf("set the attributes of the mount of %s: %w", source, err)
	}
	return nil
}

// errnoOf strips the path that package os puts before an errno.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
