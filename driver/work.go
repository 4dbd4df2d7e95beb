package driver

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

// work is a part of a change that takes long: what libvirt's clients call a
// job, with its progress bar, and can end.
type work struct {
	operation   int32 // VIR_DOMAIN_JOB_OPERATION_*
	started     time.Time
	done, total atomic.Uint64 // bytes
	cancel      context.CancelFunc
	migration   atomic.Pointer[runtime.MigrationControl] // of a work that is one
}

// workInfo is how far a work is, or how it ended.
type workInfo struct {
	kind        int32 // VIR_DOMAIN_JOB_*
	operation   int32
	elapsed     time.Duration
	done, total uint64 // bytes
	failure     string
	migration   *runtime.MigrationStats
}

// working runs do as a work that domjobinfo shows and domjobabort ends. One
// that never told of progress was no work worth showing.
func (c *change) working(operation int32, do func(ctx context.Context, w *work) error) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	w := &work{operation: operation, started: time.Now(), cancel: cancel}
	c.job.setWork(w)
	err := do(ctx, w)
	info := w.info()
	switch {
	case errors.Is(err, context.Canceled):
		info.kind = protocol.DomainJobCancelled
		err = errorf(protocol.ErrOperationAborted, "%s was aborted", c.procedure)
	case err != nil:
		info.kind, info.failure = protocol.DomainJobFailed, err.Error()
	default:
		info.kind, info.done = protocol.DomainJobCompleted, info.total
	}
	c.job.endWork(info)
	if info.total > 0 {
		c.drv.events.emit(c.domain, jobEvent(info))
	}
	return err
}

// progress is for what does the work.
func (w *work) progress(done, total uint64) {
	w.total.Store(total)
	w.done.Store(done)
}

func (w *work) info() workInfo {
	info := workInfo{kind: protocol.DomainJobUnbounded, operation: w.operation, elapsed: time.Since(w.started), done: w.done.Load(), total: w.total.Load()}
	if c := w.migration.Load(); c != nil {
		info.of(c)
	}
	if info.total > 0 {
		info.kind = protocol.DomainJobBounded
	}
	return info
}

// of has the numbers be those of a migration.
func (i *workInfo) of(c *runtime.MigrationControl) {
	s := c.Stats()
	i.migration, i.done, i.total = &s, s.MemorySent+s.DiskSent, s.MemoryTotal+s.DiskTotal
}

// completedAgain is for a migration whose end is known only after its work was
// done.
func (j *job) completedAgain(c *runtime.MigrationControl) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.completed != nil {
		info := *j.completed
		info.of(c)
		info.elapsed = time.Since(info.migration.Started)
		j.completed = &info
	}
}

func (j *job) setWork(w *work) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.work = w
}

func (j *job) endWork(info workInfo) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.work = nil
	if info.total > 0 {
		j.completed = &info
	}
}

// info is that of the work going on; its kind is VIR_DOMAIN_JOB_NONE when
// there is none.
func (j *job) info() workInfo {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.work == nil {
		return workInfo{}
	}
	return j.work.info()
}

// lastInfo is that of the last work, which is forgotten unless it is kept.
func (j *job) lastInfo(keep bool) workInfo {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.completed == nil {
		return workInfo{}
	}
	info := *j.completed
	if !keep {
		j.completed = nil
	}
	return info
}

// abort ends the work going on and tells whether there was one.
func (j *job) abort() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.work != nil {
		j.work.cancel()
	}
	return j.work != nil
}

// params are what domjobinfo prints.
func (i workInfo) params() []protocol.TypedParam {
	params := []protocol.TypedParam{
		{Field: protocol.DomainJobOperation, Value: protocol.IntValue(i.operation)},
		{Field: protocol.DomainJobTimeElapsed, Value: protocol.UllongValue(i.elapsed.Milliseconds())},
	}
	if i.total > 0 {
		for _, p := range []struct {
			name  string
			value uint64
		}{
			{protocol.DomainJobDataTotal, i.total}, {protocol.DomainJobDataProcessed, i.done}, {protocol.DomainJobDataRemaining, i.total - min(i.done, i.total)},
		} {
			params = append(params, protocol.TypedParam{Field: p.name, Value: protocol.UllongValue(p.value)})
		}
		params = append(params, i.parts()...)
	}
	if i.failure != "" {
		params = append(params, protocol.TypedParam{Field: protocol.DomainJobErrmsg, Value: protocol.StringValue(i.failure)})
	}
	return params
}

// jobEvent tells how a work ended.
func jobEvent(i workInfo) event {
	return event{protocol.DomainEventIDJobCompleted, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		params := append(i.params(), protocol.TypedParam{Field: protocol.DomainJobSuccess, Value: protocol.BooleanValue(number(i.kind == protocol.DomainJobCompleted))})
		return protocol.DomainEventCallbackJobCompleted.Info, &protocol.DomainEventCallbackJobCompletedMsg{CallbackID: cb, Dom: dom, Params: params}
	}}
}
