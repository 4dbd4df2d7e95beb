package runtime

import (
	"encoding/binary"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// oomWatch hears when the kernel kills inside environments for want of memory:
// it announces each change of a memory.events file. One inotify instance is
// for all, because a user has 128 of them by default.
type oomWatch struct {
	file *os.File

	mu      sync.Mutex
	watched map[int32]*oomCount
}

type oomCount struct {
	i     *Instance
	kills Number
}

func newOOMWatch() (*oomWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	w := &oomWatch{file: os.NewFile(uintptr(fd), "inotify"), watched: map[int32]*oomCount{}}
	go w.run()
	return w, nil
}

// add watches an environment; the kernel forgets it with its cgroup.
func (w *oomWatch) add(i *Instance) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var number int
	var err error
	withFd(w.file, func(fd int) {
		number, err = unix.InotifyAddWatch(fd, i.CgroupPath()+"/memory.events", unix.IN_MODIFY)
	})
	if err == nil {
		w.watched[int32(number)] = &oomCount{i, i.oomKills()}
	}
	return err
}

func (w *oomWatch) run() {
	buf := make([]byte, 64*unix.SizeofInotifyEvent)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return // closed
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			number := int32(binary.NativeEndian.Uint32(rest))
			mask := binary.NativeEndian.Uint32(rest[4:])
			name := int(binary.NativeEndian.Uint32(rest[12:])) // none: files are watched
			w.changed(number, mask)
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+name):]
		}
	}
}

func (w *oomWatch) changed(number int32, mask uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.watched[number]
	switch {
	case c == nil:
	case mask&unix.IN_IGNORED != 0:
		delete(w.watched, number)
	default:
		if kills := c.i.oomKills(); kills > c.kills {
			c.kills = kills
			select {
			case c.i.oom <- struct{}{}:
			default: // told already, and not yet heard
			}
		}
	}
}

func (w *oomWatch) close() { w.file.Close() }

// oomKills is how many processes were killed inside so far.
func (i *Instance) oomKills() Number {
	c, err := i.Cgroup()
	if err != nil {
		return Unknown
	}
	defer c.Close()
	var kills Number
	c.keyed("memory.events", key{"oom_kill", &kills})
	return kills
}

// OutOfMemory tells that the kernel killed a process inside, or several since
// it told last, because the environment reached its memory limit.
func (i *Instance) OutOfMemory() <-chan struct{} { return i.oom }
