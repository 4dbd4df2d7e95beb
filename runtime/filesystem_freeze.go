package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A file system in an image or on a block device that nobody but one
// environment has mounted can be frozen: who writes to it waits, and what its
// device holds meanwhile is whole and can be copied. It stays frozen until it
// is thawed, whatever becomes of its mounts and of the daemon, so that is
// recorded before. What waits for it cannot be killed: it is thawed before a
// shutdown is asked for, with a kill, when its init ends by itself or by
// somebody else, and with whatever else is left of the environment.
//
// It is reached by its device and not by a path inside, which root there
// decides on: mounted once more, it is the same file system.

// ErrFrozen is returned for what would wait for a frozen file system.
var ErrFrozen = errors.New("its file systems are frozen: thaw them first, with virsh domfsthaw")

// ownFilesystem is one that belongs to one environment alone.
type ownFilesystem struct {
	Target   string
	Device   Device
	Sequence uint64 // of what is in the device, whose number may be another's later
	Type     string
}

// errDeviceGone is of a device that is not there, or has something else in it:
// while a file system is frozen, neither can be.
var errDeviceGone = errors.New("its device is gone")

// open opens the file system's top directory.
func (o ownFilesystem) open() (*os.File, error) {
	node, err := nodeOf(o.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errDeviceGone
	}
	if err != nil {
		return nil, err
	}
	device, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if now, err := diskSequence(device); err != nil || now != o.Sequence {
		return nil, errors.Join(err, errDeviceGone)
	}
	tree, err := mountDevice(node, o.Type, false)
	if errors.Is(err, unix.EBUSY) { // an error of it has made it read-only
		tree, err = mountDevice(node, o.Type, true)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	defer unix.Close(tree)
	fd, err := unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), o.Target), nil
}

// diskSequence is a number that no other disk, and nothing else in this one,
// has had since the host booted.
func diskSequence(device *os.File) (n uint64, err error) {
	return n, ioctl(device, unix.BLKGETDISKSEQ, unsafe.Pointer(&n))
}

// ownFilesystems are those that are mounted, can be written to and are nobody
// else's, in the order in which they were mounted.
func (i *Instance) ownFilesystems() (list []ownFilesystem, err error) {
	taken, err := hostDevices("/proc/1/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, other := range i.r.running() {
		if other != i {
			other.eachDevice(func(_ string, d Device, _ bool, _ uint64) { taken[d] = true })
		}
	}
	var errs []error
	i.eachDevice(func(target string, d Device, readOnly bool, mount uint64) {
		if readOnly || taken[d] {
			return
		}
		taken[d] = true // it is one, however often it is mounted
		if mount != 0 { // else it is the root
			if where, err := i.mountPlace(mount); err != nil || where == "" {
				errs = append(errs, err)
				return
			}
		}
		own, err := identify(target, d)
		list, errs = append(list, own), append(errs, err)
	})
	return list, errors.Join(errs...)
}

func identify(target string, d Device) (o ownFilesystem, err error) {
	node, err := nodeOf(d)
	if err != nil {
		return o, err
	}
	device, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return o, err
	}
	defer device.Close()
	o = ownFilesystem{Target: target, Device: d}
	if o.Type, err = imageType(device); err == nil {
		o.Sequence, err = diskSequence(device)
	}
	return o, err
}

// eachDevice tells of every device that was mounted for the environment.
func (i *Instance) eachDevice(do func(target string, d Device, readOnly bool, mount uint64)) {
	i.mu.Lock()
	root, mounts := i.rec.Root, slices.Clone(i.rec.Mounts)
	i.mu.Unlock()
	if root != nil && root.Device != (Device{}) {
		do("/", root.Device, root.ReadOnly, 0)
	}
	for _, m := range mounts {
		if m.Device != (Device{}) {
			do(m.Target, m.Device, m.ReadOnly, m.ID)
		}
	}
}

// hostDevices are the devices that the host itself has mounted. Some file
// systems, as btrfs, have a number that is not their device's, which is then
// known by its name alone.
func hostDevices(mountinfo string) (map[Device]bool, error) {
	text, err := readProc(mountinfo)
	if err != nil {
		return nil, err
	}
	if len(text) == maxProcFile {
		return nil, errors.New("the host has too many mounts to tell whether it has one of these")
	}
	devices := map[Device]bool{}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if len(f) < 3 || len(g) < 2 {
			continue
		}
		devices[parseDevice(f[2])] = true
		var st unix.Stat_t
		if strings.HasPrefix(g[1], "/dev/") && unix.Stat(unescape.Replace(g[1]), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			devices[Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)}] = true
		}
	}
	return devices, nil
}

// pick are those of list that are at points, or all if there are none. What is
// missing is told by refusal.
func pick(list []ownFilesystem, points []string, refusal string) (picked []ownFilesystem, err error) {
	for _, point := range points {
		if !slices.ContainsFunc(list, func(o ownFilesystem) bool { return o.Target == point }) {
			return nil, fmt.Errorf("%s: %s: %w", printable(point, 256), refusal, ErrUnsupported)
		}
	}
	for _, o := range list {
		if len(points) == 0 || slices.Contains(points, o.Target) {
			picked = append(picked, o)
		}
	}
	return picked, nil
}

// ioctl numbers of <linux/fs.h>.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
	fiTrim   = 0xc0185879
)

// alone runs do while nobody else freezes, thaws or changes file systems of
// the environment. Whoever waits for it may leave earlier, it goes on.
func alone[T any](ctx context.Context, i *Instance, do func() (T, error)) (value T, err error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		i.freezing.Lock()
		value, err := do()
		i.freezing.Unlock() // before anybody knows, who may want it then
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return value, fmt.Errorf("the file systems of %s are waited for: %w", i.Name(), ctx.Err())
	}
}

// FreezeFilesystems freezes those that are the environment's own, or those of
// them that are mounted at points: all, or none. It tells how many.
func (i *Instance) FreezeFilesystems(ctx context.Context, points []string) (int, error) {
	return alone(ctx, i, func() (int, error) {
		n, err := i.freezeFilesystems(ctx, points)
		if err == nil && ctx.Err() != nil { // nobody knows of it who would thaw them
			_, err = i.thawFilesystems(nil)
			return 0, errors.Join(ctx.Err(), err)
		}
		return n, err
	})
}

func (i *Instance) freezeFilesystems(ctx context.Context, points []string) (n int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	i.mu.Lock()
	frozen, killed := len(i.rec.Frozen) > 0, i.rec.Killed
	i.mu.Unlock()
	switch {
	case killed || dead(i.pidfd):
		return 0, fmt.Errorf("file systems of %s: it has ended", i.Name())
	case frozen:
		return 0, fmt.Errorf("%s: %w", i.Name(), ErrFrozen)
	}
	own, err := i.ownFilesystems()
	if err != nil {
		return 0, err
	}
	if len(own) == 0 {
		return 0, fmt.Errorf("its files lie on a file system of the host, which cannot be frozen for it: suspend the environment instead: %w", ErrUnsupported)
	}
	if own, err = pick(own, points, "no writable file system that is the environment's own is mounted there, so it cannot be frozen: suspend the environment instead"); err != nil {
		return 0, err
	}
	var tops []*os.File
	defer func() { closeAll(tops) }()
	for _, o := range own {
		top, err := o.open()
		if err != nil {
			return 0, fmt.Errorf("the file system at %s: %w", o.Target, err)
		}
		tops = append(tops, top)
	}
	if err := i.noteFrozen(own, true); err != nil {
		return 0, err
	}
	for n := range slices.Backward(tops) { // what lies in another first
		atStep("freeze filesystem")
		if err := ioctl(tops[n], fiFreeze, nil); err != nil {
			if err == unix.EBUSY {
				err = errors.New("somebody else has frozen it, and has to thaw it first")
			}
			err = fmt.Errorf("the file system at %s cannot be frozen: %w", own[n].Target, err)
			for _, top := range tops[n+1:] {
				err = errors.Join(err, ioctl(top, fiThaw, nil))
			}
			return 0, errors.Join(err, i.noteFrozen(nil, false))
		}
	}
	if err := i.noteFrozen(own, false); err != nil {
		_, thaw := i.thawFilesystems(nil)
		return 0, errors.Join(err, thaw)
	}
	return len(own), nil
}

// noteFrozen records what is frozen, or about to be.
func (i *Instance) noteFrozen(list []ownFilesystem, freezing bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Frozen, i.rec.Freezing = list, freezing
	i.guardFrozen()
	return i.rec.save(i.dir)
}

// ThawFilesystems lets go on who writes to those that FreezeFilesystems froze,
// or to those of them at points. It tells how many were frozen still.
func (i *Instance) ThawFilesystems(ctx context.Context, points []string) (int, error) {
	return alone(ctx, i, func() (int, error) { return i.thawFilesystems(points) })
}

func (i *Instance) thawFilesystems(points []string) (int, error) {
	i.mu.Lock()
	frozen := i.rec.Frozen
	i.mu.Unlock()
	wanted, err := pick(frozen, points, "no file system that is frozen is mounted there")
	if err != nil || len(wanted) == 0 {
		return 0, err
	}
	n, left, err := thawAll(wanted)
	for _, o := range frozen {
		if !slices.Contains(wanted, o) {
			left = append(left, o)
		}
	}
	return n, errors.Join(err, i.noteFrozen(left, false))
}

// thawAll tells how many were frozen, and those that may be still.
func thawAll(list []ownFilesystem) (n int, left []ownFilesystem, err error) {
	for _, o := range slices.Backward(list) {
		top, e := o.open()
		if errors.Is(e, errDeviceGone) {
			continue
		}
		if e == nil {
			e = ioctl(top, fiThaw, nil)
			top.Close()
		}
		switch {
		case e == nil:
			n++
		case e != unix.EINVAL: // that one is not frozen
			left, err = append(left, o), errors.Join(err, fmt.Errorf("thaw the file system at %s: %w", o.Target, e))
		}
	}
	return n, left, err
}

// FrozenFilesystems are where those are mounted that are frozen. Somebody else
// may have thawed them, which the kernel tells by whether it would freeze one.
func (i *Instance) FrozenFilesystems(ctx context.Context) (points []string, err error) {
	if !i.recordedFrozen() {
		return nil, nil
	}
	return alone(ctx, i, func() (points []string, err error) {
		i.mu.Lock()
		frozen := i.rec.Frozen
		i.mu.Unlock()
		var still []ownFilesystem
		for _, o := range frozen {
			top, err := o.open()
			if errors.Is(err, errDeviceGone) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("the file system at %s: %w", o.Target, err)
			}
			err = ioctl(top, fiFreeze, nil)
			if err == nil {
				err = ioctl(top, fiThaw, nil)
			} else if err == unix.EBUSY {
				still, points, err = append(still, o), append(points, o.Target), nil
			}
			top.Close()
			if err != nil {
				return nil, fmt.Errorf("the file system at %s: %w", o.Target, err)
			}
		}
		if len(still) == len(frozen) {
			return points, nil
		}
		return points, i.noteFrozen(still, false)
	})
}

func (i *Instance) recordedFrozen() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.rec.Frozen) > 0
}

// refuseFrozen is for what would wait until they are thawed.
func (i *Instance) refuseFrozen() error {
	if i.recordedFrozen() {
		return fmt.Errorf("%s: %w", i.Name(), ErrFrozen)
	}
	return nil
}

// keepThawed refuses what is frozen, and keeps it from being frozen before
// release is called.
func (i *Instance) keepThawed() (release func(), err error) {
	if !i.freezing.TryLock() {
		return nil, fmt.Errorf("the file systems of %s are being frozen or thawed: try again later: %w", i.Name(), ErrFrozen)
	}
	if err := i.refuseFrozen(); err != nil {
		i.freezing.Unlock()
		return nil, err
	}
	return i.freezing.Unlock, nil
}
