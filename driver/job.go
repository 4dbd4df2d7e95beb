package driver

import (
	"context"
	"sync"
	"time"

	"virtvzd/driver/protocol"
)

// jobWait is how long a change waits for the one that holds the domain, as
// VIR_JOB_WAIT_TIME in libvirt's conf/virdomainjob.c.
const jobWait = 30 * time.Second

// job lets one change at a time work on a domain and tells those who wait
// in vain who holds it. Queries never take it.
type job struct {
	slot chan struct{} // capacity 1: holding the element is holding the job

	mu        sync.Mutex
	holder    string
	since     time.Time
	work      *work     // what takes long, and can be watched and ended; nil: nothing
	completed *workInfo // of the last work, until it is asked for
}

func newJob() *job { return &job{slot: make(chan struct{}, 1)} }

// begin takes the job for the named procedure.
func (j *job) begin(ctx context.Context, procedure string) error {
	select {
	case j.slot <- struct{}{}:
	default:
		timeout := time.NewTimer(jobWait)
		defer timeout.Stop()
		select {
		case j.slot <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return j.timedOut()
		}
	}
	j.mu.Lock()
	j.holder, j.since = procedure, time.Now()
	j.mu.Unlock()
	return nil
}

func (j *job) end() {
	j.mu.Lock()
	j.holder = ""
	j.mu.Unlock()
	<-j.slot
}

func (j *job) timedOut() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errorf(protocol.ErrOperationTimeout,
		"cannot acquire state change lock (held by %s for %s)",
		j.holder, time.Since(j.since).Round(time.Second))
}

// busy tells since when the job is held, if it is.
func (j *job) busy() (time.Time, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.since, j.holder != ""
}
