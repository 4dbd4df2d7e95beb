package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// A device is a node on a tmpfs of ours, mounted over an empty file in the
// environment's /dev. The host's own node could be mounted there, too, but it
// belongs to nobody inside; and a node that was made on the environment's own
// tmpfs would be dead, because a user namespace made that.

// deviceNode is one node to make.
type deviceNode struct {
	Source, Target string
}

func nodesOf(devices []xml.Device) (list []deviceNode) {
	for _, d := range devices {
		list = append(list, deviceNode{d.Source, d.Target})
	}
	return list
}

// scopeDevices are the devices as systemd is told of them. The stub makes the
// nodes from within the scope; nobody else inside has the capability to.
func scopeDevices(devices []xml.Device) (list []systemd.Device) {
	for _, d := range devices {
		if d.Source == "" {
			continue // a disk that is no more
		}
		access := "rwm"
		if d.ReadOnly {
			access = "rm"
		}
		list = append(list, systemd.Device{Path: d.Source, Permissions: access})
	}
	return list
}

// checkDevices refuses what is no device on this host.
func checkDevices(devices []xml.Device) error {
	for _, d := range devices {
		if isImage(d) {
			continue // openDisk does
		}
		var st unix.Stat_t
		if err := unix.Stat(d.Source, &st); err != nil {
			return fmt.Errorf("device %s: %w", d.Source, err)
		}
		kind, want := st.Mode&unix.S_IFMT, uint32(unix.S_IFCHR)
		name := "a character device"
		if d.Block {
			want, name = unix.S_IFBLK, "a block device"
		}
		if kind != want {
			return fmt.Errorf("%s is not %s", d.Source, name)
		}
	}
	return nil
}

// makeNodes mounts a tmpfs on dir, in the mount namespace of the calling
// thread, with a node for each device, called by its number and the
// environment's root's.
func makeNodes(dir string, nodes []deviceNode, uid, gid uint32) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
		return fmt.Errorf("mount a tmpfs for devices: %w", err)
	}
	for n, node := range nodes {
		var st unix.Stat_t
		if err := unix.Stat(node.Source, &st); err != nil {
			return fmt.Errorf("device %s: %w", node.Source, err)
		}
		name := nodePath(dir, n)
		if err := unix.Mknod(name, st.Mode&unix.S_IFMT|0o660, int(st.Rdev)); err != nil {
			return fmt.Errorf("make a node for %s: %w", node.Source, err)
		}
		// Not what the umask left, and for root and the group inside.
		if err := errors.Join(unix.Chmod(name, 0o660), unix.Chown(name, int(uid), int(gid))); err != nil {
			return fmt.Errorf("make a node for %s: %w", node.Source, err)
		}
	}
	return nil
}

func nodePath(dir string, n int) string { return fmt.Sprintf("%s/%d", dir, n) }

// devicesDir is where the nodes are, in a mount namespace that is not the
// host's.
func devicesDir(dir string) string { return filepath.Join(dir, "dev") }

// changeNodes makes the nodes inside those of after: all, or none changes.
func (i *Instance) changeNodes(ctx context.Context, before, after []xml.Device) error {
	old, wanted := nodesOf(before), nodesOf(after)
	removed, added := without(old, wanted), without(wanted, old)
	if err := i.removeNodes(ctx, removed); err != nil {
		return err
	}
	if err := i.addNodes(ctx, added); err != nil {
		return errors.Join(err, i.addNodes(context.WithoutCancel(ctx), removed))
	}
	return nil
}

// renewNodes is changeNodes where nobody knows how far an earlier daemon came
// with it.
func (i *Instance) renewNodes(ctx context.Context, before, after []xml.Device) error {
	old, wanted := nodesOf(before), nodesOf(after)
	added := without(wanted, old)
	if err := i.removeNodes(ctx, append(without(old, wanted), added...)); err != nil {
		return err
	}
	return i.addNodes(ctx, added)
}

// rootIDs are the host's ids of the environment's root.
func (i *Instance) rootIDs() (uid, gid uint32) {
	if i.rec.IDMap.Mode == xml.Privileged {
		return 0, 0
	}
	return hostID(ranges(i.rec.IDMap.UIDs), 0), hostID(ranges(i.rec.IDMap.GIDs), 0)
}

// addNodes mounts nodes into the running environment: all, or none. Where they go
// may be on a file system that somebody inside serves.
func (i *Instance) addNodes(ctx context.Context, nodes []deviceNode) error {
	if len(nodes) == 0 {
		return nil
	}
	_, err := patientlyOr(ctx, i, func() (none struct{}, err error) { return none, i.mountNodes(nodes) },
		func(struct{}) { i.unmountNodes(context.Background(), nodes) })
	return ofNodes(nodes, err)
}

// ofNodes names them in the error of who would not wait longer.
func ofNodes(nodes []deviceNode, err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = fmt.Errorf("device %s: %w", nodes[0].Target, err)
	}
	return err
}

func (i *Instance) mountNodes(nodes []deviceNode) error {
	dir := devicesDir(i.dir)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	uid, gid := i.rootIDs()
	var trees []int
	defer func() {
		for _, fd := range trees {
			unix.Close(fd)
		}
	}()
	prepare := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := makeNodes(dir, nodes, uid, gid); err != nil {
			return err
		}
		for n := range nodes {
			fd, err := openTree(unix.AT_FDCWD, nodePath(dir, n), nil, 0, false)
			if err != nil {
				return err
			}
			trees = append(trees, fd)
		}
		return nil
	}
	var targets []int
	defer func() {
		for _, fd := range targets {
			unix.Close(fd)
		}
	}()
	err := i.asUser(Owner{}, "devices", func(t *tree) error {
		for _, d := range nodes {
			fd, err := nodeTarget(t, d.Target)
			if err != nil {
				return fmt.Errorf("device %s: %w", d.Target, err)
			}
			targets = append(targets, fd)
		}
		return nil
	})
	if err == nil {
		err = i.enter("devices", []string{"mnt"}, prepare, func() error {
			for n, d := range nodes {
				err := unix.MoveMount(trees[n], "", targets[n], "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
				if err != nil {
					return fmt.Errorf("device %s: %w", d.Target, err)
				}
			}
			return nil
		})
	}
	if err != nil {
		i.unmountNodes(context.Background(), nodes[:len(targets)])
	}
	return err
}

// nodeTarget makes the file to put a node on, which was not there before: what
// root inside has put at its place stays and is the error.
func nodeTarget(t *tree, target string) (int, error) {
	dir, err := t.directory(path.Dir(target), 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return openIn(dir, path.Base(target), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o600)
}

// removeNodes takes nodes out of the running environment. One that is not
// there, or is something else by now, was root's inside to remove: the
// permission to use the device goes all the same.
func (i *Instance) removeNodes(ctx context.Context, nodes []deviceNode) error {
	if len(nodes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fileTimeout)
	defer cancel() // who still waits for a file then takes nothing away any more
	_, err := patiently(ctx, i, func() (none struct{}, err error) { return none, i.unmountNodes(ctx, nodes) })
	return ofNodes(nodes, err)
}

func (i *Instance) unmountNodes(ctx context.Context, nodes []deviceNode) error {
	numbers := make([]uint64, len(nodes))
	for n, d := range nodes {
		var st unix.Stat_t
		if unix.Stat(d.Source, &st) == nil {
			numbers[n] = st.Rdev // else it is gone from the host, too
		}
	}
	err := i.inside("devices", []string{"mnt"}, func() error {
		t, err := openTreeRoot("/")
		if err != nil {
			return err
		}
		defer t.Close()
		for n, d := range nodes {
			removeNode(ctx, t, d.Target, numbers[n])
		}
		return nil
	})
	if err != nil {
		return err
	}
	return i.asUser(Owner{}, "devices", func(t *tree) error {
		for _, d := range nodes {
			removeFile(t, d.Target)
		}
		return nil
	})
}

// removeNode unmounts the node of a device with a number, 0 for any. It does
// so from within the directory: /proc inside shows no descriptors of a thread
// that is in another PID namespace. Should root inside put another of its
// mounts there meanwhile, it is that one which goes.
func removeNode(ctx context.Context, t *tree, target string, number uint64) {
	dir, err := t.open(path.Dir(target), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	name := path.Base(target)
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR && st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return
	}
	if number != 0 && number != st.Rdev {
		return
	}
	if ctx.Err() == nil && unix.Fchdir(dir) == nil {
		unix.Unmount(name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // EINVAL for what is no mount point
	}
}

// removeFile removes the empty file a node was mounted on.
func removeFile(t *tree, target string) {
	dir, err := t.open(path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	name := path.Base(target)
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
		unix.Unlinkat(dir, name, 0)
	}
}
