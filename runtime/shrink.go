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

	"virtvzd/systemd"
	"virtvzd/xml"
)

// shrink makes the environment fit into less memory before that is its
// limit, since the kernel would kill processes to make it fit. MemoryHigh
// keeps it from growing meanwhile.
func (i *Instance) shrink(ctx context.Context, before, after xml.MemoryLimits, progress func(done, total uint64)) error {
	if !shrinks(before, after) {
		return nil
	}
	used, err := i.cgroupNumber("memory.current")
	if err != nil || used <= after.Max {
		return err
	}
	if least := i.unreclaimable(used); least > after.Max {
		return i.tooMuch(least)
	}
	if err := i.setProperties(ctx, []systemd.Property{systemd.MemoryHigh(after.Max)}); err != nil {
		return err
	}
	err = i.squeeze(ctx, used, after.Max, progress)
	if err != nil {
		err = errors.Join(err, i.unshrink(context.WithoutCancel(ctx), before, after))
	}
	return err
}

func shrinks(before, after xml.MemoryLimits) bool {
	return after.Max != 0 && (before.Max == 0 || after.Max < before.Max)
}

func (i *Instance) unshrink(ctx context.Context, before, after xml.MemoryLimits) error {
	if !shrinks(before, after) {
		return nil
	}
	return i.setProperties(ctx, []systemd.Property{systemd.MemoryHigh(orInfinity(before.High))})
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
	// reclaimTries is how often the kernel is asked again when it could free
	// nothing: what is being written out can be freed a moment later.
	reclaimTries = 5
	// reclaimStep is asked of it at once, so that progress can be told and the
	// whole be ended: with swap on a slow disk it may take minutes.
	reclaimStep = 64 << 20
	// reclaimPatience is after how long it is interrupted.
	reclaimPatience = 2 * time.Second
)

// squeeze reclaims memory until no more than most is used of what was used
// before.
func (i *Instance) squeeze(ctx context.Context, used, most uint64, progress func(done, total uint64)) error {
	total, low := used-most, used
	for tries := reclaimTries; ; {
		now, err := i.cgroupNumber("memory.current")
		if err != nil || now <= most {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("reclaim memory of %s: %w", i.Name(), err)
		}
		if now >= low {
			if tries--; tries == 0 {
				return i.tooMuch(now)
			}
		} else {
			low = now
			if progress != nil {
				progress(total-(now-most), total)
			}
		}
		i.reclaim(ctx, min(now-most, reclaimStep))
	}
}

// reclaim asks the kernel to free bytes (memory.reclaim, Linux 5.19). That it
// could not free all of them shows in what is used. It tries hard before it
// gives up, but stops at a signal: Go's own for its threads is one that does
// no harm.
func (i *Instance) reclaim(ctx context.Context, bytes uint64) {
	ctx, cancel := context.WithTimeout(ctx, reclaimPatience)
	defer cancel()
	thread, done := make(chan int, 1), make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		thread <- unix.Gettid()
		fd, err := unix.Open(filepath.Join(i.CgroupPath(), "memory.reclaim"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		unix.Write(fd, []byte(strconv.FormatUint(bytes, 10)))
	}()
	tid := <-thread
	select {
	case <-done:
		return
	case <-ctx.Done():
	}
	for {
		unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
