package rpc

import (
	"fmt"
	"sync/atomic"
	"testing"

	"virtvzd/driver/rpc/rpctest"
)

// TestPriority fills all workers: urgent calls are answered all the same.
func TestPriority(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.MinWorkers, l.MaxWorkers, l.PrioWorkers = 1, 2, 1 })
	defer close(s.release)
	for range 4 {
		rpctest.Dial(t, s.path).Start(testProgram, testVersion, procSleep, nil)
	}
	eventually(t, "the workers are busy", func() bool { p := s.Pool(); return p.Free == 0 && p.Queue == 2 })
	c := rpctest.Dial(t, s.path)
	if p := call(c, procUrgent, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("an urgent call waits")
	}
	if err := s.SetPool(1, 6, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPool(5, 4, 1); err == nil {
		t.Error("a minimum above the maximum was accepted")
	}
}

// TestPoolNumbers watches what virt-admin shows while workers come and go.
func TestPoolNumbers(t *testing.T) {
	p := newPool(2, 4, 1)
	defer p.close()
	release := make(chan struct{})
	want := func(want PoolStats) {
		t.Helper()
		eventually(t, fmt.Sprintf("the numbers are %+v", want), func() bool { return p.stats() == want })
	}
	want(PoolStats{Min: 2, Max: 4, Prio: 1, Current: 2, Free: 2})
	for range 3 {
		p.run(false, func() { <-release })
	}
	want(PoolStats{Min: 2, Max: 4, Prio: 1, Current: 3})
	for range 3 {
		p.run(false, func() { <-release })
	}
	want(PoolStats{Min: 2, Max: 4, Prio: 1, Current: 4, Queue: 2})
	if err := p.set(1, 6, 0); err != nil {
		t.Fatal(err)
	}
	want(PoolStats{Min: 1, Max: 6, Current: 6})
	p.run(true, func() { <-release }) // no worker for it alone any more
	want(PoolStats{Min: 1, Max: 6, Current: 6, Queue: 1})
	if err := p.set(1, 2, 3); err != nil {
		t.Fatal(err)
	}
	want(PoolStats{Min: 1, Max: 2, Prio: 3, Current: 6})
	close(release)
	want(PoolStats{Min: 1, Max: 2, Prio: 3, Current: 2, Free: 2})
	for _, bad := range [][3]int{{3, 2, 1}, {0, 0, 1}, {-1, 2, 1}, {1, 2, -1}} {
		if p.set(bad[0], bad[1], bad[2]) == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	// Many short calls all run, however the workers change meanwhile.
	var ran atomic.Int64
	for n := range 2000 {
		p.run(n%3 == 0, func() { ran.Add(1) })
		if n%100 == 0 {
			p.set(n%200/100, 1+n%300/100, n%500/100)
		}
	}
	eventually(t, "all calls ran", func() bool { return ran.Load() == 2000 })
}
