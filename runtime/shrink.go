package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// shrink makes the environment fit into less memory before that is its
// limit, since the kernel would kill processes to make it fit. A lower
// memory.high keeps it from growing meanwhile: high is what it is left at,
// which systemd does not know, for whoever sets the limits to put right.
//
// The kernel reclaims in the process that writes memory.high or memory.max.
// That must not be systemd: all of the host would wait for a slow swap.
func (i *Instance) shrink(ctx context.Context, before, after xml.MemoryLimits, progress func(done, total uint64)) (high uint64, err error) {
	high = orInfinity(before.High)
	hard, soft := lowered(before.Max, after.Max), lowered(before.High, after.High)
	most := min(hard, soft)
	if most == unlimited {
		return high, nil
	}
	used, err := i.cgroupNumber("memory.current")
	if err != nil || used <= most {
		return high, err
	}
	least := i.unreclaimable(used)
	if least > hard {
		return high, i.tooMuch(least)
	}
	low := min(most, high)
	if err := i.press(low); err != nil {
		return high, err
	}
	err = i.squeeze(ctx, used, max(most, least), progress) // a soft limit can be below what is in use
	if now, _ := i.cgroupNumber("memory.current"); errors.Is(err, ErrTooMuchInUse) && now <= hard {
		err = nil
	}
	if err != nil {
		return high, errors.Join(err, i.writeCgroup("memory.high", orMax(high)))
	}
	return low, nil
}

// lowered is a limit that is to be lower than before, or none.
func lowered(before, after uint64) uint64 {
	if orInfinity(after) < orInfinity(before) {
		return after
	}
	return unlimited
}

func (i *Instance) tooMuch(bytes uint64) error {
	return fmt.Errorf("%w: %d KiB of %s cannot be reclaimed, choose more than that or end processes inside", ErrTooMuchInUse, bytes>>10, i.Name())
}

// unreclaimable is what of the memory in use the kernel cannot free, as far
// as it tells beforehand: neither cached files nor, with room in the swap,
// what can go there. To try in vain would take it minutes, in which
// MemoryHigh all but stops the environment.
func (i *Instance) unreclaimable(used uint64) uint64 {
	c, err := i.Cgroup()
	if err != nil {
		return 0
	}
	defer c.Close()
	var anon, file, shmem, slab Number
	c.keyed("memory.stat", key{"anon", &anon}, key{"file", &file}, key{"shmem", &shmem}, key{"slab_reclaimable", &slab})
	if !Sum(anon, file, shmem, slab).Known() {
		return 0
	}
	free := uint64(file-min(shmem, file)) + uint64(slab)
	free += min(uint64(anon+shmem), i.swapRoom())
	return used - min(used, free)
}

// swapRoom is how much the environment may still put into the swap.
func (i *Instance) swapRoom() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	room := uint64(info.Freeswap) * uint64(info.Unit)
	most, err1 := i.cgroupNumber("memory.swap.max")
	used, err2 := i.cgroupNumber("memory.swap.current")
	if err1 == nil && err2 == nil {
		room = min(room, most-min(most, used))
	}
	return room
}

const (
	// reclaimTries is how often in a row the kernel is asked again when it could
	// free nothing, writeTries how often while it writes out what it then can:
	// that a slow disk takes long is no reason to give up, a dead one is.
	reclaimTries, writeTries = 5, 30
	// reclaimStep is asked of it at once, so that progress can be told and the
	// whole be ended: with swap on a slow disk it may take minutes.
	reclaimStep = 64 << 20
	// reclaimPatience is after how long it is interrupted.
	reclaimPatience = 2 * time.Second
)

// squeeze reclaims memory until no more than most is used of what was used
// before.
func (i *Instance) squeeze(ctx context.Context, used, most uint64, progress func(done, total uint64)) error {
	if progress == nil {
		progress = func(_, _ uint64) {}
	}
	if used <= most {
		return nil
	}
	total, low := used-most, used
	progress(0, total)
	for tries := 0; ; {
		now, err := i.cgroupNumber("memory.current")
		if err != nil || now <= most {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("reclaim memory of %s: %w", i.Name(), err)
		}
		if now >= low {
			if tries++; tries >= writeTries || tries >= reclaimTries && !i.writesOut() {
				return i.tooMuch(now)
			}
		} else {
			tries, low = 0, now
			progress(total-(now-most), total)
		}
		i.reclaim(ctx, min(now-most, reclaimStep))
	}
}

// writesOut tells whether pages are on their way to a disk.
func (i *Instance) writesOut() bool {
	c, err := i.Cgroup()
	if err != nil {
		return false
	}
	defer c.Close()
	var written Number
	c.keyed("memory.stat", key{"file_writeback", &written})
	return written > 0
}

// reclaim asks the kernel to free bytes (memory.reclaim, Linux 5.19). That it
// could not free all of them shows in what is used. It tries hard before it
// gives up.
func (i *Instance) reclaim(ctx context.Context, bytes uint64) {
	ctx, cancel := context.WithTimeout(ctx, reclaimPatience)
	defer cancel()
	i.writeUntil(ctx, "memory.reclaim", strconv.FormatUint(bytes, 10))
}

// press lowers memory.high and leaves what is above it to reclaim: the limit
// holds from the beginning of the write.
func (i *Instance) press(high uint64) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return i.writeUntil(ctx, "memory.high", orMax(high))
}

// writeUntil writes to a file of the cgroup and interrupts the kernel when ctx
// is done: in this it stops at a signal, and Go's own for its threads is one
// that does no harm.
func (i *Instance) writeUntil(ctx context.Context, name, value string) error {
	thread, done := make(chan int, 1), make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		thread <- unix.Gettid()
		fd, err := unix.Open(filepath.Join(i.CgroupPath(), name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte(value)) // not os.File's, which begins again
			unix.Close(fd)
		}
		done <- err
	}()
	tid := <-thread
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	for {
		unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
