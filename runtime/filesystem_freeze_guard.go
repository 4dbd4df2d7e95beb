package runtime

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// guardInterval is how soon it is noticed that init ends.
const guardInterval = time.Second

// guardFrozen thaws when init ends, as long as anything is frozen: an init has
// not ended before all processes of the environment have, and so, as long as one
// waits for a file system, nobody is told of it. i.mu is held.
func (i *Instance) guardFrozen() {
	if i.guarded || len(i.rec.Frozen) == 0 {
		return
	}
	i.guarded = true
	go func() {
		tick := time.NewTicker(guardInterval)
		defer tick.Stop()
		warned := false
		for i.stillGuards() {
			if ending(i.rec.Init) {
				if _, err := i.ThawFilesystems(context.Background(), nil); err != nil && !warned {
					warned = true
					i.warn(fmt.Sprintf("%s cannot end before its file systems are thawed: %v", i.Name(), err))
				}
			}
			<-tick.C
		}
	}()
}

// stillGuards ends with what is frozen, with init, and when the instance is forgotten.
func (i *Instance) stillGuards() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.guarded = len(i.rec.Frozen) > 0 && !dead(i.pidfd)
	return i.guarded
}

// ending tells whether a process has been killed or exits, with all its threads,
// also while it waits for others to end.
func ending(pid int) bool {
	if !threadEnds(pid) { // so with a process that lives, mostly
		return false
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return err == nil && !slices.ContainsFunc(tasks, func(task fs.DirEntry) bool {
		tid, _ := strconv.Atoi(task.Name())
		return !threadEnds(tid)
	})
}

func threadEnds(tid int) bool {
	const (
		flags, pending = 6, 28 // of statFields
		exiting        = 0x4   // PF_EXITING of <linux/sched.h>
		killed         = 1 << (unix.SIGKILL - 1)
	)
	f := statFields(tid)
	if len(f) <= pending {
		return true // it has ended
	}
	is, _ := strconv.ParseUint(f[flags], 10, 64)
	signals, _ := strconv.ParseUint(f[pending], 10, 64)
	return is&exiting != 0 || signals&killed != 0
}
