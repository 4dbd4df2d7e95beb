package rpc

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

// TestShutdown ends a server while a call runs: its reply arrives, a later
// call is not taken any more.
func TestShutdown(t *testing.T) {
	s := newTestServer(t, nil)
	c, idle := rpctest.Dial(t, s.path), rpctest.Dial(t, s.path)
	call(idle, procEcho, nil)
	serial := c.Start(testProgram, testVersion, procSleep, nil)
	conn := s.client(t, 1)
	eventually(t, "the call runs", func() bool { return s.Pool().Current-s.Pool().Free == 1 })
	var closed atomic.Bool
	conn.OnClose(func() { closed.Store(true) })
	result := make(chan error)
	go func() { result <- s.Shutdown(t.Context()) }()
	eventually(t, "the server shuts down", s.draining.Load)
	late := c.Start(testProgram, testVersion, procEcho, nil)
	time.Sleep(30 * time.Millisecond)
	close(s.release)
	if p := c.Next(); p.Serial != serial || p.Status != protocol.StatusOK {
		t.Errorf("got %+v, want the reply of the call that ran", p.MessageHeader)
	}
	if p, err := c.Read1(); err == nil && p.Serial == late {
		t.Error("a call was taken after the server began to shut down")
	}
	idle.Closed()
	if err := <-result; err != nil || !closed.Load() {
		t.Errorf("error %v, OnClose was called: %v", err, closed.Load())
	}
}

// TestShutdownCutsOff has a call that does not end in time.
func TestShutdownCutsOff(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	c.Start(testProgram, testVersion, procSleep, nil)
	eventually(t, "the call runs", func() bool { return s.Pool().Current-s.Pool().Free == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline's error", err)
	}
	c.Closed()
}

// TestOnClose counts: in order, each once, and at once when it is too late.
func TestOnClose(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	call(c, procEcho, nil)
	conn := s.client(t, 0)
	order := make(chan int, 4)
	for n := range 3 {
		conn.OnClose(func() { order <- n })
	}
	c.Close()
	for n := range 3 {
		if got := <-order; got != n {
			t.Errorf("function %d is called as number %d", got, n)
		}
	}
	conn.OnClose(func() { order <- 3 })
	if got := <-order; got != 3 {
		t.Errorf("got %d", got)
	}
	if conn.Reason() != "the client disconnected" || conn.GivenUp() {
		t.Errorf("the reason is %q", conn.Reason())
	}
}
