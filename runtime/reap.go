package runtime

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The daemon is a subreaper: an environment's init, whose parent (the OCI
// runtime) is gone, becomes our child, and only a parent learns how a process
// ended. The price is that every other orphan of the OCI runtime becomes our
// child too and has to be reaped, without taking away the exit status of
// a child that package os/exec waits for.
//
// Nothing tells an orphan from a child of os/exec. But who waits for a child
// reaps it at once; a zombie that is neither known to this package nor gone after
// a while belongs to nobody.

// orphanAge is how long a zombie must lie before it is taken for an orphan.
const orphanAge = 3 * time.Second

// children are the processes somebody in this package waits for.
var children pidSet

type pidSet struct {
	mu   sync.Mutex
	pids map[int]bool
}

func (s *pidSet) add(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pids == nil {
		s.pids = map[int]bool{}
	}
	s.pids[pid] = true
}

func (s *pidSet) remove(pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pids, pid)
}

func (s *pidSet) has(pid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pids[pid]
}

// becomeSubreaper makes orphans ours and reaps them until stop is closed.
func becomeSubreaper(stop <-chan struct{}) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() {
		defer signal.Stop(died)
		r := reaper{seen: map[int]zombie{}}
		var again <-chan time.Time // nil while no zombie lies around: no polling
		for {
			select {
			case <-stop:
				return
			case <-died:
			case <-again:
			}
			again = nil
			if r.sweep(time.Now()) {
				again = time.After(orphanAge)
			}
		}
	}()
	return nil
}

type zombie struct {
	start uint64 // start time: tells a reused pid apart
	since time.Time
}

type reaper struct{ seen map[int]zombie }

// sweep reaps the zombies seen long enough ago and tells whether any is left.
func (r *reaper) sweep(now time.Time) (left bool) {
	found := map[int]zombie{}
	for _, pid := range zombies() {
		if children.has(pid) {
			continue
		}
		z := zombie{startTime(pid), now}
		if old, ok := r.seen[pid]; ok && old.start == z.start {
			z = old
		}
		if now.Sub(z.since) >= orphanAge {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			continue
		}
		found[pid] = z
	}
	r.seen = found
	return len(found) > 0
}

// zombies lists our dead children. A child belongs to the thread that forked it,
// an adopted one to any.
func zombies() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var dead []int
	for _, task := range tasks {
		text, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && processState(pid) == 'Z' {
				dead = append(dead, pid)
			}
		}
	}
	return dead
}

// processState returns the state letter of a process, 0 when it is gone.
func processState(pid int) byte {
	if f := statFields(pid); len(f) > 0 {
		return f[0][0]
	}
	return 0
}

// startTime returns the start of a process in clock ticks since boot: with the
// pid it identifies a process for as long as the host is up. 0: no such process.
func startTime(pid int) uint64 {
	f := statFields(pid)
	if len(f) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// statFields returns /proc/PID/stat from the state on. The name before it may
// contain anything, also ") Z".
func statFields(pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	end := strings.LastIndexByte(string(text), ')')
	if end < 0 {
		return nil
	}
	return strings.Fields(string(text[end+1:]))
}
