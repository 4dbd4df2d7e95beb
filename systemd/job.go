package systemd

import (
	"context"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// jobPoll is how long a silent job goes unasked. The signal comes within milliseconds; asking is for the case that
// it was lost together with a D-Bus connection or sent while systemd re-executed itself.
const jobPoll = 3 * time.Second

type jobEnd struct {
	job    dbus.ObjectPath
	result string
}

// jobTable hands JobRemoved signals to those who wait for a job of that unit. It is godbus' signal handler, so it
// runs on the goroutine that reads the bus and must never block. Waiters are found by unit and not by job because
// they have to be in place before the call that makes the job.
type jobTable struct {
	mu      sync.Mutex
	waiters map[string][]chan jobEnd
}

func (t *jobTable) DeliverSignal(_, member string, s *dbus.Signal) {
	if member != "JobRemoved" || s.Path != systemdPath || len(s.Body) != 4 {
		return
	}
	job, _ := s.Body[1].(dbus.ObjectPath)
	unit, _ := s.Body[2].(string)
	result, _ := s.Body[3].(string)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.waiters[unit] {
		select {
		case w <- jobEnd{job, result}:
		default: // full of other jobs of the same unit; the waiter will ask
		}
	}
}

func (t *jobTable) watch(unit string) (ends <-chan jobEnd, forget func()) {
	w := make(chan jobEnd, 16)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiters == nil {
		t.waiters = make(map[string][]chan jobEnd)
	}
	t.waiters[unit] = append(t.waiters[unit], w)
	return w, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		all := t.waiters[unit]
		for i := range all {
			if all[i] == w {
				all = append(all[:i:i], all[i+1:]...)
				break
			}
		}
		if len(all) == 0 {
			delete(t.waiters, unit)
		} else {
			t.waiters[unit] = all
		}
	}
}

// await returns when job of unit has ended. settled is asked when the signal does not come: it tells whether the
// unit is where the job was to bring it.
func (c *Conn) await(ctx context.Context, unit string, job dbus.ObjectPath, ends <-chan jobEnd, settled func() (bool, error)) error {
	ask := time.NewTicker(jobPoll)
	defer ask.Stop()
	for {
		select {
		case end := <-ends:
			if end.job != job {
				continue
			}
			if end.result != "done" {
				return &JobError{Unit: unit, Result: end.result}
			}
			return nil
		case <-ask.C:
			if ok, err := settled(); ok || err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
