package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// An image grows with the file system in it, which the kernel does while that
// is mounted: the file is made longer, the loop device takes that over (for qcow2
// see filesystem_qcow2_grow.go), and the file system is told. Killed in between it is a file system that is smaller
// than its image, and growing it again goes on. A block device is the host's, so
// here only the file system grows, up to it.

// ErrCannotShrink is returned for a size that an image has passed.
var ErrCannotShrink = errors.New("a file system in an image cannot shrink")

// GrowRoot makes a root that is in an image, or on a device, a number of bytes
// large; 0 is as large as what it lies in. i is its running environment, or nil.
func (r *Runtime) GrowRoot(ctx context.Context, i *Instance, root xml.Filesystem, size uint64) error {
	if i != nil {
		release, err := i.keepThawed()
		if err != nil {
			return err
		}
		defer release()
	}
	return r.growRoot(ctx, i, root, size)
}

func (r *Runtime) growRoot(ctx context.Context, i *Instance, root xml.Filesystem, size uint64) error {
	source, plain, err := r.hostSource(ctx, root)
	switch {
	case err != nil:
		return fmt.Errorf("root: %w", err)
	case plain:
		return fmt.Errorf("the root %s is a directory, which has the size of its file system: %w", source, ErrUnsupported)
	case root.ReadOnly:
		return readOnlyRoot(source)
	}
	var device *os.File
	if i != nil {
		if device, err = i.rootDevice(source, root.Format); err != nil {
			return err
		}
		defer device.Close()
	}
	mounted := func(do func(tree int) error) error {
		tree, err := -1, error(nil)
		if device == nil {
			tree, _, err = r.openImage(ctx, source, root)
		} else {
			tree, err = mountAgain(device)
		}
		if err != nil {
			return err
		}
		defer unix.Close(tree)
		if err := do(tree); err != nil {
			return fmt.Errorf("the file system of the root %s: %w", source, err)
		}
		return nil
	}
	if device != nil {
		if err := mounted(mayGrow); err != nil {
			return err
		}
	}
	if err := r.growSource(ctx, i, source, root.Format, size); err != nil {
		return err
	}
	return mounted(growMounted)
}

// mayGrow has an ext4 with errors in it say, before its image is larger, that it
// does not grow. Others with errors are not mounted again.
func mayGrow(tree int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(tree, &fs); err != nil || fs.Type != unix.EXT4_SUPER_MAGIC {
		return err
	}
	return growMounted(tree) // as large as it is
}

// limitImage holds the limit of a root that is in an image: that is the image's
// size. One of another size is for grow, which refuses a larger one.
func limitImage(root xml.Filesystem, grow func() error) error {
	if root.SoftLimit != 0 {
		return fmt.Errorf("<space_soft_limit> of the root %s cannot be held: an image has one size, which <space_hard_limit> gives: %w", root.Source, ErrUnsupported)
	}
	if root.HardLimit == 0 {
		return nil
	}
	now, err := ImageSpace(root.Source, root.Format == "qcow2")
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if now.Capacity == root.HardLimit {
		return nil
	}
	if root.ReadOnly {
		return readOnlyRoot(root.Source)
	}
	switch err := grow(); {
	case errors.Is(err, ErrCannotShrink):
		return fmt.Errorf("<space_hard_limit>: %w; give it a limit of that size, 'virsh blockresize' can", err)
	case err != nil:
		return fmt.Errorf("<space_hard_limit>: %w", err)
	}
	return nil
}

func readOnlyRoot(source string) error {
	return fmt.Errorf("the root %s is read-only, so its file system cannot grow: %w", source, ErrUnsupported)
}

// growSource makes an image size bytes large, i's root or that of none that
// runs. A device must be already.
func (r *Runtime) growSource(ctx context.Context, i *Instance, source, format string, size uint64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the root %s: %w", source, err)
		}
	}()
	now, err := ImageSpace(source, format == "qcow2")
	if err != nil || size == 0 || size == now.Capacity {
		return err
	}
	if size < now.Capacity {
		return fmt.Errorf("it has %d KiB already: %w", kib(now.Capacity), ErrCannotShrink)
	}
	if size > maxImageSize {
		return fmt.Errorf("%d KiB are more than a file system can have", kib(size))
	}
	if info, err := os.Stat(source); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("it is a device of %d KiB: make that larger, and take --capacity in place of a size: %w", kib(now.Capacity), ErrUnsupported))
	}
	if format == "qcow2" && i != nil {
		return i.growServed(ctx, source, size)
	}
	return r.growImage(ctx, source, format, size)
}

// growImage makes a file longer, or what it says of its size.
func (r *Runtime) growImage(ctx context.Context, path, format string, size uint64) error {
	if format == "qcow2" {
		return r.growQcow2(ctx, path, size)
	}
	image, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return errnoOf(err)
	}
	defer image.Close()
	return errnoOf(image.Truncate(int64(size)))
}

// growQcow2 has qemu-img do it, which sees no file but the image.
func (r *Runtime) growQcow2(ctx context.Context, source string, size uint64) error {
	path, err := findImage(source, "qcow2")
	if err != nil {
		return err
	}
	const qemuImg = "/usr/bin/qemu-img"
	if !exists(qemuImg) {
		return fmt.Errorf("a qcow2 image needs %s: install the package qemu-utils: %w", qemuImg, ErrUnsupported)
	}
	unit := imageUnit(newLayerID())
	props := append(imageService(path, false),
		systemd.Description("size of the qcow2 image "+path), systemd.ServiceType("oneshot"),
		systemd.ExecStart(qemuImg, "resize", "-q", "-f", "qcow2", imageSeen, fmt.Sprint(size)))
	if err := r.config.Scopes.StartService(ctx, unit, props...); err != nil {
		return fmt.Errorf("qemu-img cannot make it larger: 'journalctl -u %s' tells why: %w", unit, err)
	}
	return nil
}

// rootDevice opens the device that an environment's root is on: source itself,
// the loop device of that file, or what serves it.
func (i *Instance) rootDevice(source, format string) (*os.File, error) {
	if i.rec.Root == nil || i.rec.Root.Device == (Device{}) {
		return nil, fmt.Errorf("the root of %s is on no device: %w", i.Name(), ErrUnsupported)
	}
	node, err := nodeOf(i.rec.Root.Device)
	if err != nil {
		return nil, err
	}
	device, err := os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st, of unix.Stat_t
	err = errors.Join(unix.Fstat(int(device.Fd()), &st), unix.Stat(source, &of))
	same := (Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}) == i.rec.Root.Device
	switch {
	case err != nil || !same:
	case format == "qcow2":
		_, err = i.rootServer(source)
	case of.Mode&unix.S_IFMT == unix.S_IFREG:
		var loop *unix.LoopInfo64
		loop, err = unix.IoctlLoopGetStatus64(int(device.Fd()))
		same = err == nil && loop.Device == of.Dev && loop.Inode == of.Ino
	}
	if err == nil && !same {
		err = fmt.Errorf("the root of %s is not in %s any more, but in what had that name when it started", i.Name(), source)
	}
	if err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// mountAgain mounts what is mounted of a device once more: it is the same file
// system, reached without a path that leads inside. A loop device learns the
// size of its file first.
func mountAgain(device *os.File) (int, error) {
	err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_SET_CAPACITY, 0)
	if err != nil && err != unix.ENOTTY && err != unix.EINVAL { // of a device that is no loop device
		return -1, fmt.Errorf("size of the loop device %s: %w", device.Name(), err)
	}
	fstype, err := imageType(device)
	if err != nil {
		return -1, err
	}
	return mountDevice(device.Name(), fstype, false)
}

// ioctl numbers of ext4 and of <linux/btrfs.h> and xfs_fs.h.
const (
	ext4Resize   = 0x40086610
	btrfsResize  = 0x50009403
	xfsGeometry  = 0x80705864 // of version 1
	xfsGrowData  = 0x4010586e
	xfsPercentAt = 28 // of inodes, in struct xfs_fsop_geom_v1
	xfsBlocksAt  = 32
)

// growMounted makes a mounted file system as large as its device.
func growMounted(tree int) error {
	fd, err := unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	top := os.NewFile(uintptr(fd), "root")
	defer top.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC:
		return growExt4(top, uint64(fs.Bsize))
	case unix.XFS_SUPER_MAGIC:
		return growXFS(top)
	case unix.BTRFS_SUPER_MAGIC:
		return growBtrfs(top)
	}
	return fmt.Errorf("it cannot grow while it is mounted: %w", ErrUnsupported)
}

func growExt4(top *os.File, block uint64) error {
	size, err := deviceSize(top)
	if err != nil {
		return err
	}
	blocks := size / block
	if err := ioctl(top, ext4Resize, unsafe.Pointer(&blocks)); err != nil {
		return fmt.Errorf("ext4 cannot grow to %d blocks of %d bytes ('dmesg' tells why): %w", blocks, block, err)
	}
	return nil
}

func growXFS(top *os.File) error {
	size, err := deviceSize(top)
	if err != nil {
		return err
	}
	var geometry [112]byte
	if err := ioctl(top, xfsGeometry, unsafe.Pointer(&geometry)); err != nil {
		return fmt.Errorf("geometry of xfs: %w", err)
	}
	grow := struct {
		Blocks  uint64
		Percent uint32
		_       uint32
	}{size / uint64(binary.NativeEndian.Uint32(geometry[:])), binary.NativeEndian.Uint32(geometry[xfsPercentAt:]), 0}
	if grow.Blocks <= binary.NativeEndian.Uint64(geometry[xfsBlocksAt:]) {
		return nil
	}
	if err := ioctl(top, xfsGrowData, unsafe.Pointer(&grow)); err != nil {
		return fmt.Errorf("xfs cannot grow to %d blocks ('dmesg' tells why): %w", grow.Blocks, err)
	}
	return nil
}

func growBtrfs(top *os.File) error {
	var info btrfsInfo
	if err := ioctl(top, btrfsFSInfo, unsafe.Pointer(&info)); err != nil {
		return fmt.Errorf("devices of btrfs: %w", err)
	}
	args := volumeArgs{}
	copy(args.Name[:], fmt.Sprintf("%d:max", info.MaxID)) // it has one device only
	if err := ioctl(top, btrfsResize, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("btrfs cannot grow ('dmesg' tells why): %w", err)
	}
	return nil
}

// deviceSize is the size of the device that a file's file system is on.
func deviceSize(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return blockSize(Device{unix.Major(st.Dev), unix.Minor(st.Dev)})
}
