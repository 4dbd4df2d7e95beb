package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoProcess is returned by Signal when no process has that number.
var ErrNoProcess = errors.New("no such process inside")

// Signal sends a signal to the process that has the number pid inside, or to
// each of the process group -pid; 0 only asks whether there is one.
func (i *Instance) Signal(pid int64, signal int) error {
	if pid == 0 || pid > 1<<22 || pid < -1<<22 {
		return fmt.Errorf("process %d: %w", pid, ErrNoProcess)
	}
	found := false
	err := i.processes(func(host int) error {
		fd, err := unix.PidfdOpen(host, 0)
		if err != nil {
			return nil // ended meanwhile
		}
		defer unix.Close(fd)
		// Looked at after it was opened: the number cannot have become another's.
		if !numbered(host, pid) {
			return nil
		}
		found = true
		if err := unix.PidfdSendSignal(fd, syscall.Signal(signal), nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d of %s: %w", pid, i.Name(), err)
		}
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("process %d of %s: %w", pid, i.Name(), ErrNoProcess)
	}
	return err
}

// numbered tells whether a process of the host has a number, or a negative
// one of its group, in the PID namespace below the host's.
func numbered(host int, pid int64) bool {
	field, want := "NSpid", pid
	if pid < 0 {
		field, want = "NSpgid", -pid
	}
	numbers := strings.Fields(statusField(host, field))
	return len(numbers) > 1 && numbers[1] == strconv.FormatInt(want, 10)
}

// statusField is a line of /proc/PID/status, or empty if there is no such process
// or line.
func statusField(pid int, name string) string {
	text, _ := readProc(fmt.Sprintf("/proc/%d/status", pid))
	_, after, _ := strings.Cut(string(text), "\n"+name+":\t")
	line, _, _ := strings.Cut(after, "\n")
	return line
}

// processes visits the environment's, by their numbers on the host.
func (i *Instance) processes(visit func(host int) error) error {
	return processesBelow(i.rec.Cgroup, visit)
}

// processesBelow visits those of a cgroup and of all in it.
func processesBelow(cgroup string, visit func(host int) error) error {
	return filepath.WalkDir(filepath.Join(cgroupRoot, cgroup), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return ignoreGone(err)
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				if err := visit(pid); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// ignoreGone: a service inside may end, and its cgroup with it, at any time;
// that of threads (EOPNOTSUPP) has its processes listed above it.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
