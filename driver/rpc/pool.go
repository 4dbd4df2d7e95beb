package rpc

import (
	"errors"
	"fmt"
	"sync"
)

// pool runs calls on a bounded number of workers, some of which take only
// calls that never wait for long, so that those are answered even when all
// others are busy (libvirt's virThreadPool).
type pool struct {
	mu       sync.Mutex
	ordinary group
	urgent   group // workers and calls that have priority
	min      int
	closed   bool
	busy     int // calls being run
}

// group is one kind of workers and the calls meant for them.
type group struct {
	wake                 sync.Cond
	limit, workers, idle int
	calls                []func()
}

// PoolStats is what virt-admin server-threadpool-info shows.
type PoolStats struct {
	Min, Max, Prio int // as configured
	Current, Free  int // ordinary workers there are, and idle among them
	Queue          int // calls no worker has taken yet
}

func newPool(min, max, prio int) *pool {
	p := &pool{}
	p.ordinary.wake.L, p.urgent.wake.L = &p.mu, &p.mu
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configure(min, max, prio)
	return p
}

// configure starts the workers that must be there. Those too many end when
// they have nothing to do.
func (p *pool) configure(min, max, prio int) {
	p.min, p.ordinary.limit, p.urgent.limit = min, max, prio
	for p.ordinary.workers < min {
		p.start(&p.ordinary)
	}
	for p.urgent.workers < prio {
		p.start(&p.urgent)
	}
}

func (p *pool) start(g *group) {
	g.workers++
	go p.work(g)
}

// run queues a call. The queue needs no bound of its own: a client can have
// only so many calls in flight.
func (p *pool) run(urgent bool, call func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if urgent {
		p.urgent.calls = append(p.urgent.calls, call)
		if p.urgent.idle >= len(p.urgent.calls) {
			p.urgent.wake.Signal()
			return
		}
	} else {
		p.ordinary.calls = append(p.ordinary.calls, call)
	}
	if o := &p.ordinary; o.idle < len(o.calls)+len(p.urgent.calls) && o.workers < o.limit {
		p.start(o)
	}
	p.ordinary.wake.Signal()
}

func (p *pool) work(g *group) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		call := p.next(g)
		if call == nil {
			g.workers--
			return
		}
		p.busy++
		p.mu.Unlock()
		call()
		p.mu.Lock()
		p.busy--
	}
}

// next waits for a call; nil tells the worker to end. Each call queued wakes
// one worker; those not asleep look here before they sleep.
func (p *pool) next(g *group) func() {
	for {
		switch {
		case g.workers > g.limit && !p.closed:
			// Too many since the limit was lowered. The call that woke
			// this one may be for the next.
			g.wake.Signal()
			return nil
		case len(p.urgent.calls) > 0:
			return take(&p.urgent.calls)
		case g == &p.ordinary && len(g.calls) > 0:
			return take(&g.calls)
		case p.closed:
			return nil
		}
		g.idle++
		g.wake.Wait()
		g.idle--
	}
}

func take(queue *[]func()) func() {
	call := (*queue)[0]
	(*queue)[0] = nil
	if *queue = (*queue)[1:]; len(*queue) == 0 {
		*queue = nil
	}
	return call
}

func (p *pool) stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return PoolStats{
		Min: p.min, Max: p.ordinary.limit, Prio: p.urgent.limit,
		Current: p.ordinary.workers, Free: p.ordinary.idle, Queue: len(p.ordinary.calls) + len(p.urgent.calls),
	}
}

func (p *pool) set(min, max, prio int) error {
	if max < 1 || min < 0 || prio < 0 {
		return errors.New("a server needs at least one worker")
	}
	if min > max {
		return fmt.Errorf("minWorkers (%d) must not be larger than maxWorkers (%d)", min, max)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.configure(min, max, prio)
	// More workers may be allowed than before, and calls wait for them.
	for n := len(p.ordinary.calls) + len(p.urgent.calls); n > 0 && p.ordinary.workers < max; n-- {
		p.start(&p.ordinary)
	}
	p.ordinary.wake.Broadcast()
	p.urgent.wake.Broadcast()
	return nil
}

// apart runs a call beside the workers, so that those it keeps waiting are
// its own client's calls only.
func (p *pool) apart(call func()) {
	p.mu.Lock()
	p.busy++
	p.mu.Unlock()
	go func() {
		call()
		p.mu.Lock()
		p.busy--
		p.mu.Unlock()
	}()
}

// running tells whether a call is being run or waits.
func (p *pool) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.busy > 0 || len(p.ordinary.calls)+len(p.urgent.calls) > 0
}

// close ends the workers when nothing is left to do.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.ordinary.wake.Broadcast()
	p.urgent.wake.Broadcast()
}
