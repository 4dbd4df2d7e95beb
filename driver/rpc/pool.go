package rpc

import (
	"fmt"
	"sync"
)

// pool runs calls on a bounded number of workers, some of which take only
// calls that never wait for long, so that those are answered even when all
// others are busy (libvirt's virThreadPool).
type pool struct {
	mu   sync.Mutex
	wake sync.Cond

	min, max, prio int // as configured

	workers, free, prioWorkers int
	calls, urgent              []func()
	closed                     bool
}

// PoolStats is what virt-admin server-threadpool-info shows.
type PoolStats struct {
	Min, Max, Prio int // as configured
	Current, Free  int // ordinary workers there are, and idle among them
	Queue          int // calls no worker has taken yet
}

func newPool(min, max, prio int) *pool {
	p := &pool{min: min, max: max, prio: prio}
	p.wake.L = &p.mu
	p.mu.Lock()
	p.grow()
	p.mu.Unlock()
	return p
}

// grow starts the workers the configuration asks for.
func (p *pool) grow() {
	for p.workers < p.min {
		p.workers++
		go p.work(false)
	}
	for p.prioWorkers < p.prio {
		p.prioWorkers++
		go p.work(true)
	}
}

// run queues a call. The queue needs no bound of its own: a client can have
// only so many calls in flight.
func (p *pool) run(urgent bool, call func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if urgent {
		p.urgent = append(p.urgent, call)
	} else {
		p.calls = append(p.calls, call)
	}
	if p.free < len(p.calls)+len(p.urgent) && p.workers < p.max {
		p.workers++
		go p.work(false)
	}
	p.wake.Broadcast()
}

func (p *pool) work(prioOnly bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		call := p.next(prioOnly)
		if call == nil {
			return
		}
		p.mu.Unlock()
		call()
		p.mu.Lock()
	}
}

// next waits for a call; nil tells the worker to end.
func (p *pool) next(prioOnly bool) func() {
	for {
		switch {
		case len(p.urgent) > 0:
			return take(&p.urgent)
		case !prioOnly && len(p.calls) > 0:
			return take(&p.calls)
		case prioOnly && (p.closed || p.prioWorkers > p.prio):
			p.prioWorkers--
			return nil
		case !prioOnly && (p.closed || p.workers > p.max):
			p.workers--
			return nil
		}
		if !prioOnly {
			p.free++
		}
		p.wake.Wait()
		if !prioOnly {
			p.free--
		}
	}
}

func take(queue *[]func()) func() {
	call := (*queue)[0]
	(*queue)[0] = nil
	*queue = (*queue)[1:]
	return call
}

func (p *pool) stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{Min: p.min, Max: p.max, Prio: p.prio, Current: p.workers, Free: p.free, Queue: len(p.calls) + len(p.urgent)}
}

func (p *pool) set(min, max, prio int) error {
	if max < 1 || min < 0 || prio < 0 {
		return fmt.Errorf("a server needs at least one worker")
	}
	if min > max {
		return fmt.Errorf("minWorkers (%d) must not be larger than maxWorkers (%d)", min, max)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.min, p.max, p.prio = min, max, prio
	p.grow()
	p.wake.Broadcast()
	return nil
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.wake.Broadcast()
}
