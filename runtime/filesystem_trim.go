package runtime

import (
	"context"
	"errors"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Trimmed is what came of trimming one file system.
type Trimmed struct {
	Point   string
	Bytes   uint64 // that are free and were given back
	Minimum uint64 // of those in one place
	Err     error
}

// TrimFilesystems gives what the environment's own file systems have free back
// to what they lie in, where at least minimum bytes are in one place. points
// are as of FreezeFilesystems. An error of one does not keep it from the others.
func (i *Instance) TrimFilesystems(ctx context.Context, points []string, minimum uint64) (list []Trimmed, err error) {
	if err := i.refuseFrozen(); err != nil {
		return nil, err
	}
	own, err := i.ownFilesystems()
	if err != nil {
		return nil, err
	}
	if own, err = pick(own, points, "no writable file system that is the environment's own is mounted there: one of the host's is trimmed by fstrim.timer of the host"); err != nil {
		return nil, err
	}
	for _, o := range own {
		t := Trimmed{Point: o.Target}
		top, err := o.open()
		if err == nil {
			t.Bytes, t.Minimum, err = i.trim(ctx, top, minimum)
			top.Close()
		}
		if err == unix.EOPNOTSUPP || err == unix.ENOTTY {
			err = errors.New("what it lies in can take nothing back")
		}
		t.Err = err
		list = append(list, t)
	}
	return list, ctx.Err()
}

// trimStep is how much of a file system is trimmed at once: in between it can
// be ended.
const trimStep = 1 << 30

func (i *Instance) trim(ctx context.Context, top *os.File, minimum uint64) (trimmed, least uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(top.Fd()), &st); err != nil {
		return 0, 0, err
	}
	size := st.Blocks * uint64(st.Bsize)
	for start := uint64(0); ; start += trimStep {
		if err := errors.Join(ctx.Err(), i.refuseFrozen()); err != nil {
			return trimmed, least, err
		}
		args := struct{ Start, Length, Minimum uint64 }{start, trimStep, minimum}
		last := start+trimStep >= size
		if last {
			args.Length = math.MaxUint64 - start // a file system has more than it counts
		}
		if err := ioctl(top, fiTrim, unsafe.Pointer(&args)); err != nil {
			return trimmed, least, err
		}
		trimmed, least = trimmed+args.Length, args.Minimum
		if last {
			return trimmed, least, nil
		}
	}
}
