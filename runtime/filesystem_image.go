package runtime

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// A file system in a file or on a block device is mounted by the daemon, not
// by the stub: the environment's scope, where the stub is by then, may use
// no such device.
//
// The kernel reads what is in an image, and is not made to withstand one that
// was written to break it: an image is to be trusted as far as whoever made
// it. What can be held off is: the type is taken from the superblock and is
// one of three, an image asks for no panic and for no other device of the
// host, and its device nodes open nothing (nodev). Programs keep their set-id
// bits, which mean no more than the ids of the environment.

// openImage mounts the file system of a regular file or block device,
// nowhere yet: the mount ends with its descriptor, or with the mount namespace
// that it is moved to. So does the device that was made of a file. on is the
// device that is mounted.
func (r *Runtime) openImage(ctx context.Context, source string, fs xml.Filesystem) (tree int, on Device, err error) {
	switch fs.Format {
	case "":
		return openRaw(source, fs.ReadOnly)
	case "qcow2":
	default:
		return -1, on, fmt.Errorf("image %s: the format '%s' cannot be used: raw and qcow2 can, 'qemu-img convert' makes them: %w", source, printable(fs.Format, 32), ErrUnsupported)
	}
	device, err := r.openQcow2(ctx, source, fs.ReadOnly)
	if err != nil {
		return -1, on, fmt.Errorf("image %s: %w", source, err)
	}
	defer device.Close()
	fstype, err := imageType(device)
	if err != nil {
		return -1, on, fmt.Errorf("image %s: %w", source, err)
	}
	return mountWhole(device, device.Name(), source, fstype, fs.ReadOnly)
}

func openRaw(source string, readOnly bool) (tree int, on Device, err error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	if readOnly {
		flags = flags&^unix.O_RDWR | unix.O_RDONLY
	}
	fd, err := unix.Open(source, flags, 0)
	if err != nil {
		return -1, on, fmt.Errorf("image %s: %w", source, err)
	}
	image := os.NewFile(uintptr(fd), source)
	defer image.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, on, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFREG && kind != unix.S_IFBLK {
		return -1, on, fmt.Errorf("%s is neither a file nor a block device", source)
	}
	fstype, err := imageType(image)
	if err != nil {
		return -1, on, fmt.Errorf("%s: %w", source, err)
	}
	if kind == unix.S_IFBLK {
		// By the name it was given it might be another by now.
		node, err := nodeOf(Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)})
		if err != nil {
			return -1, on, err
		}
		return mountWhole(image, node, source, fstype, readOnly)
	}
	if err := lockImage(image, readOnly); err != nil {
		return -1, on, fmt.Errorf("image %s: %w", source, err)
	}
	loop, err := attachLoop(image, readOnly)
	if err != nil {
		return -1, on, fmt.Errorf("image %s: %w", source, err)
	}
	defer loop.Close()
	return mountWhole(loop, loop.Name(), source, fstype, readOnly)
}

// mountWhole mounts an open block device by its name, which the environment
// sees in its list of mounts. source is for the error.
func mountWhole(device *os.File, name, source, fstype string, readOnly bool) (tree int, on Device, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(device.Fd()), &st); err != nil {
		return -1, on, err
	}
	if tree, err = mountDevice(name, fstype, readOnly); err != nil {
		return -1, on, fmt.Errorf("mount the %s file system of %s: %w", fstype, source, err)
	}
	return tree, Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

// imageType tells what file system an image has.
func imageType(image io.ReaderAt) (string, error) {
	head := make([]byte, 65536+4096)
	n, err := image.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return "", err
	}
	clear(head[n:])
	super := head[1024:]
	switch {
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return "", fmt.Errorf("it begins like a qcow2 image: if it is one, say so with <driver type='nbd' format='qcow2'/>: %w", ErrUnsupported)
	case bytes.HasPrefix(head, []byte("XFSB")):
		return "xfs", nil
	case string(head[65536+64:][:8]) == "_BHRfS_M":
		// Its other devices would be looked for among the host's.
		if n := binary.LittleEndian.Uint64(head[65536+136:]); n != 1 {
			return "", fmt.Errorf("its btrfs has %d devices: only one of a single device can be mounted", n)
		}
		return "btrfs", nil
	case binary.LittleEndian.Uint16(super[56:]) == 0xef53:
		const hasJournal, journalDevice = 0x4, 0x8
		compat, incompat := binary.LittleEndian.Uint32(super[92:]), binary.LittleEndian.Uint32(super[96:])
		if compat&hasJournal != 0 && binary.LittleEndian.Uint32(super[228:]) != 0 || incompat&journalDevice != 0 {
			return "", errors.New("its ext4 keeps the journal on another device: only one with a journal of its own can be mounted")
		}
		return "ext4", nil // as well as ext2 and ext3
	}
	return "", errors.New("there is no file system on it that can be mounted: ext4, xfs and btrfs are, on the whole of it, without partitions")
}

// What QEMU locks of a file (block/file-posix.c): a byte for each thing that a user
// does with it, from the second on to write, and one for each that it wants no other
// to do.
const qemuWrites, qemuWritesEnd, qemuSharesNotEnd = 100 + 1, 100 + 4, 200 + 4

// lockImage keeps a file that is mounted, or a disk, from being so once more,
// which would destroy it. The lock lasts as long as the loop device, or what serves
// it, which has the same open file. What serves a qcow2 image, or has one as the
// disk of a virtual machine, has QEMU's locks instead.
func lockImage(image *os.File, readOnly bool) error {
	lock, end := unix.LOCK_EX, int64(qemuSharesNotEnd)
	if readOnly {
		lock, end = unix.LOCK_SH, qemuWritesEnd
	}
	busy := errors.New("it is in use: one can write to an image, or any number read it")
	err := unix.Flock(int(image.Fd()), lock|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		return busy
	}
	if err != nil {
		return err
	}
	locked := unix.Flock_t{Type: unix.F_WRLCK, Start: qemuWrites, Len: end - qemuWrites}
	if err := unix.FcntlFlock(image.Fd(), unix.F_OFD_GETLK, &locked); err == nil && locked.Type != unix.F_UNLCK {
		return busy
	}
	return nil
}

// imageOptions keep an image from what it could ask for: a host that panics
// on an error of it, or that its copy is refused.
var imageOptions = map[string][2]string{"ext4": {"errors", "remount-ro"}, "xfs": {"nouuid", ""}}

// mountDevice makes a mount that is nowhere yet.
func mountDevice(device, fstype string, readOnly bool) (int, error) {
	config, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(config)
	attr := unix.MOUNT_ATTR_NODEV
	err = unix.FsconfigSetString(config, "source", device)
	if o, ok := imageOptions[fstype]; ok && err == nil {
		if o[1] == "" {
			err = unix.FsconfigSetFlag(config, o[0])
		} else {
			err = unix.FsconfigSetString(config, o[0], o[1])
		}
	}
	if readOnly && err == nil {
		attr |= unix.MOUNT_ATTR_RDONLY
		err = unix.FsconfigSetFlag(config, "ro")
	}
	if err == nil {
		err = unix.FsconfigCreate(config)
	}
	if err != nil {
		return -1, explain(config, err)
	}
	return unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, attr)
}

// explain adds what the file system says about its refusal (fsopen(2)).
func explain(config int, err error) error {
	var text []string
	for line := make([]byte, 1024); len(text) < 8; {
		n, e := unix.Read(config, line)
		if e != nil || n <= 0 {
			break
		}
		text = append(text, strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "e ")))
	}
	if len(text) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(text, "; "))
}
