package driver

import (
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
)

// seen is an environment as the kernel has it.
type seen struct {
	frozen, started bool
	err             error
}

func (s seen) Frozen() (bool, error) { return s.frozen, s.err }
func (s seen) Started() bool         { return s.started }

// TestObserved: what the kernel says counts, and one whose cgroup goes away at
// this moment is taken over all the same: it is noticed that it ends.
func TestObserved(t *testing.T) {
	broken := errors.New("broken")
	running := savedStatus{State: Running, Reason: protocol.DomainRunningBooted}
	paused := savedStatus{State: Paused, Reason: protocol.DomainPausedUser}
	for name, test := range map[string]struct {
		is     seen
		saved  savedStatus
		state  State
		reason int32
		err    error
	}{
		"running":          {seen{started: true}, running, Running, protocol.DomainRunningBooted, nil},
		"paused":           {seen{started: true, frozen: true}, paused, Paused, protocol.DomainPausedUser, nil},
		"not yet started":  {seen{}, paused, Paused, protocol.DomainPausedUser, nil},
		"frozen by others": {seen{started: true, frozen: true}, running, Paused, protocol.DomainPausedUnknown, nil},
		"thawed by others": {seen{started: true}, paused, Running, protocol.DomainRunningUnpaused, nil},
		"cgroup is gone":   {seen{started: true, err: &fs.PathError{Op: "open", Err: unix.ENOENT}}, running, Running, protocol.DomainRunningBooted, nil},
		"cgroup goes":      {seen{started: true, err: &fs.PathError{Op: "read", Err: unix.ENODEV}}, running, Running, protocol.DomainRunningBooted, nil},
		"unreadable":       {seen{started: true, err: broken}, running, Running, protocol.DomainRunningBooted, broken},
	} {
		t.Run(name, func(t *testing.T) {
			state, reason, err := observed(test.is, test.saved)
			if state != test.state || reason != test.reason || !errors.Is(err, test.err) {
				t.Errorf("%v, reason %d, %v", state, reason, err)
			}
		})
	}
}
