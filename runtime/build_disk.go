package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// buildDisk is where a root is built: an ext4 file system of a fixed size in a
// file without a name, on a loop device that clears itself. So the kernel holds
// the limit whatever is run, and nothing of it outlives the process that made
// it, however that ends.
type buildDisk struct {
	plain  int      // a mount of it that is attached nowhere; ids as they are on the disk
	mapped *os.File // another, shifted into the range of the build
}

// makeDisk makes one of size bytes. dir tells the file system to take it from.
func makeDisk(ctx context.Context, dir string, size int64, space *os.File) (*buildDisk, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("a file without a name in %s: %w", dir, err)
	}
	file := os.NewFile(uintptr(fd), "disk")
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		return nil, err
	}
	device, err := attachLoop(file, false)
	if err != nil {
		return nil, err
	}
	defer device.Close() // the mounts keep it
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", device.Name())
	mkfs.Env = []string{"PATH=" + runtimePath}
	if out, err := mkfs.CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("mkfs.ext4 is missing: install the package e2fsprogs")
	} else if err != nil {
		return nil, fmt.Errorf("make a file system: %w: %s", err, strings.TrimSpace(string(out)))
	}
	d := &buildDisk{plain: -1}
	if d.plain, err = mountDetached("ext4", device.Name(), nil); err != nil {
		return nil, err
	}
	if err := unix.Unlinkat(d.plain, "lost+found", unix.AT_REMOVEDIR); err != nil {
		d.close()
		return nil, err
	}
	mapped, err := mountDetached("ext4", device.Name(), space)
	if err != nil {
		d.close()
		return nil, err
	}
	d.mapped = os.NewFile(uintptr(mapped), "target")
	return d, nil
}

func (d *buildDisk) close() {
	if d.plain >= 0 {
		unix.Close(d.plain)
	}
	if d.mapped != nil {
		d.mapped.Close()
	}
}

// attachLoop makes a block device of a file. It ends with its last user.
func attachLoop(file *os.File, readOnly bool) (*os.File, error) {
	mode, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		mode, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("there are no loop devices (modprobe loop): %w", err)
	}
	defer control.Close()
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("no loop device is free: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		conf := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: flags}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &conf)
		if err == nil {
			return device, nil
		}
		device.Close()
		if err != unix.EBUSY { // somebody else was faster
			return nil, fmt.Errorf("loop device %s: %w", device.Name(), err)
		}
	}
	return nil, errors.New("no loop device is free")
}

// mountDetached mounts a device without attaching it anywhere: the mount goes
// with the last descriptor of it. It is shifted by space unless that is nil.
func mountDetached(kind, device string, space *os.File) (int, error) {
	fail := func(what string, err error) (int, error) {
		return -1, fmt.Errorf("%s %s of %s: %w", what, kind, device, err)
	}
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail("open", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", device); err != nil {
		return fail("configure", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fail("mount", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return fail("mount", err)
	}
	if space == nil {
		return fd, nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(space.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return fail("id-map", err)
	}
	return fd, nil
}
