package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// rlimits are the beancounters that are limits of a process, which it hands
// on to those it makes. The kernel counts locked memory and signals for each
// user inside. none is what a process has without such a limit.
//
// init gets them when it is made and waits for its start, not from the OCI
// runtime: what that has when it makes the user namespace holds for the whole
// of it and for ever (Linux 5.14).
var rlimits = []struct {
	name     string
	resource int
	of       func(xml.CountLimits) uint64
	none     unix.Rlimit
}{
	{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, func(c xml.CountLimits) uint64 { return c.Files }, ordinaryFiles},
	{"RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK, func(c xml.CountLimits) uint64 { return pageBytes(c.LockedPages) }, noRlimit},
	{"RLIMIT_SIGPENDING", unix.RLIMIT_SIGPENDING, func(c xml.CountLimits) uint64 { return c.Signals }, noRlimit},
}

// planRlimits are those that a process is to have.
func planRlimits(c xml.CountLimits) (list []specs.POSIXRlimit) {
	for _, l := range rlimits {
		if n := l.of(c); n != unlimited {
			list = append(list, specs.POSIXRlimit{Type: l.name, Soft: n, Hard: n})
		}
	}
	return list
}

func pageBytes(pages uint64) uint64 {
	if pages > unlimited/4096 {
		return unlimited
	}
	return pages * 4096
}

// setRlimits changes those of all processes inside, and of those that Exec
// makes from now on: all of them, or they are again what they were.
func (i *Instance) setRlimits(before, after xml.CountLimits) error {
	if reflect.DeepEqual(planRlimits(before), planRlimits(after)) {
		return nil
	}
	err := i.putRlimits(before, after)
	if err != nil {
		i.putRlimits(after, before) // fails where that did, and nothing was changed
	}
	return err
}

func (i *Instance) putRlimits(before, after xml.CountLimits) error {
	if err := i.noteRlimits(planRlimits(after)); err != nil {
		return err
	}
	for _, l := range rlimits {
		if from, to := rlimit(l.of(before), l.none), rlimit(l.of(after), l.none); from != to {
			if err := i.setRlimit(l.resource, from, to); err != nil {
				return fmt.Errorf("set %s of %s: %w", l.name, i.Name(), err)
			}
		}
	}
	return nil
}

func rlimit(n uint64, none unix.Rlimit) unix.Rlimit {
	if n == unlimited {
		return none
	}
	return unix.Rlimit{Cur: n, Max: n}
}

// noteRlimits has them in the specification that Exec goes by.
func (i *Instance) noteRlimits(list []specs.POSIXRlimit) error {
	name, spec := filepath.Join(i.dir, "config.json"), &specs.Spec{}
	body, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, spec); err != nil {
		return err
	}
	spec.Process.Rlimits = list
	if body, err = json.Marshal(spec); err != nil {
		return err
	}
	return replaceFile(name, body, 0o600)
}

// setRlimit looks at the processes until there is none left to change: one
// that was being made while its parent was changed has the parent's old limit.
// A process that may change its own limits can go on for ever, so the times
// are few.
func (i *Instance) setRlimit(resource int, from, to unix.Rlimit) error {
	for range 10 {
		changed := false
		err := i.processes(func(host int) error {
			did, err := i.setRlimitOf(host, resource, from, to)
			changed = changed || did
			return err
		})
		if err != nil || !changed {
			return err
		}
	}
	return nil
}

// setRlimitOf leaves to a process what it has less of by its own choice.
func (i *Instance) setRlimitOf(host, resource int, from, to unix.Rlimit) (changed bool, err error) {
	pidfd, err := unix.PidfdOpen(host, 0)
	if err != nil {
		return false, nil // ended meanwhile
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	defer f.Close()
	// Looked at after it was opened: the number cannot have become another's.
	if cgroup, err := systemd.ControlGroupOf(host, i.rec.Scope); err != nil || cgroup != i.rec.Cgroup {
		return false, nil
	}
	var old unix.Rlimit
	if err := unix.Prlimit(host, resource, nil, &old); err != nil {
		return false, unlessEnded(err)
	}
	next := newRlimit(old, from, to)
	if next == old || dead(f) {
		return false, nil
	}
	return true, unlessEnded(unix.Prlimit(host, resource, &next, nil))
}

// newRlimit is what becomes of a process's limit when the environment's
// changes.
func newRlimit(old, from, to unix.Rlimit) unix.Rlimit {
	next := old
	if old.Max == from.Max || old.Max > to.Max {
		next.Max = to.Max
	}
	if next.Cur = min(old.Cur, next.Max); old.Cur == from.Cur {
		next.Cur = min(to.Cur, next.Max)
	}
	return next
}

func unlessEnded(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
