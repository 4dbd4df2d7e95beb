package systemd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func unavailable(t *testing.T, err error) {
	t.Helper()
	var gone *UnavailableError
	if !errors.As(err, &gone) || gone.Service != systemdName || !strings.Contains(err.Error(), "check that") {
		t.Fatalf("got %v", err)
	}
}

func TestConnectWithoutBus(t *testing.T) {
	_, err := Dial(t.Context(), "unix:path="+filepath.Join(t.TempDir(), "none"))
	unavailable(t, err)
}

// A bus that accepts and then says nothing, as systemd's socket does while the bus itself starts.
func TestConnectToSilentBus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, "unix:path="+path)
	unavailable(t, err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestBusGoneAndBack(t *testing.T) {
	b, f, c, ctx := setup(t)
	must(t, c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{1}}))
	b.Stop()
	for _, limit := range []time.Duration{2 * returnTimeout, returnTimeout, returnTimeout} {
		begin := time.Now()
		_, err := c.State(ctx, "a.scope")
		unavailable(t, err)
		unavailable(t, c.StartScope(ctx, Scope{Name: "b.scope", PIDs: []uint32{1}}))
		if d := time.Since(begin); d > limit {
			t.Errorf("a bus that is gone took %v to notice", d)
		}
	}
	b.Start()
	f.attach(t, b, true)
	if s, err := c.State(ctx, "a.scope"); err != nil || s.Active != "active" {
		t.Errorf("got %+v, %v", s, err)
	}
	must(t, c.StartScope(ctx, Scope{Name: "b.scope", PIDs: []uint32{1}})) // the subscription is back as well
}

// The bus is back before systemd has returned to it.
func TestSystemdReturnsLater(t *testing.T) {
	b, f, c, ctx := setup(t)
	c.bus.returns = 10 * returnTimeout // a busy host takes its time to start a bus
	b.Stop()
	b.Start()
	f.set("a.scope", "ActiveState", "active")
	back := make(chan struct{})
	go func() {
		defer close(back)
		time.Sleep(200 * time.Millisecond)
		f.attach(t, b, true)
	}()
	if s, err := c.State(ctx, "a.scope"); err != nil || s.Active != "active" {
		t.Errorf("got %+v, %v", s, err)
	}
	<-back
}

// The connection breaks while systemd has the unit made and the reply is still owed: it is not made twice, and the
// start succeeds.
func TestBusLostDuringStart(t *testing.T) {
	b, f, c, ctx := setup(t)
	c.bus.returns = 10 * returnTimeout // a busy host takes its time to start a bus
	started := func() {
		f.with(func() { f.onStart = nil })
		b.Stop()
		b.Start()
		f.attach(t, b, true)
	}
	f.with(func() { f.onStart = started })
	must(t, c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{77}}))
	if n := f.called("StartTransientUnit"); n != 1 {
		t.Errorf("made %d times", n)
	}
}

// The same, but systemd never saw the call: it is repeated.
func TestBusLostBeforeStart(t *testing.T) {
	b, f, c, ctx := setup(t)
	c.bus.returns = 10 * returnTimeout // a busy host takes its time to start a bus
	started := func() {
		f.with(func() { f.onStart = nil })
		f.remove("a.scope")
		b.Stop()
		b.Start()
		f.attach(t, b, true)
	}
	f.with(func() { f.onStart = started })
	must(t, c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{77}}))
	if n := f.called("StartTransientUnit"); n != 2 {
		t.Errorf("called %d times", n)
	}
}

func TestClosed(t *testing.T) {
	_, _, c, ctx := setup(t)
	must(t, c.Close())
	must(t, c.Close())
	_, err := c.ListUnits(ctx, "*")
	unavailable(t, err)
}

func TestCancelled(t *testing.T) {
	_, f, c, _ := setup(t)
	f.with(func() { f.silent = true })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{1}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRedialsLeaveNoGoroutines(t *testing.T) {
	b, f, c, ctx := setup(t)
	cycle := func() {
		b.Stop()
		c.ListUnits(ctx, "*")
		b.Start()
		f.attach(t, b, true)
		_, err := c.ListUnits(ctx, "*")
		must(t, err)
	}
	cycle()
	before := runtime.NumGoroutine()
	for range 10 {
		cycle()
	}
	var after int
	for range 1000 { // the fake's own connections need a moment to end
		if after = runtime.NumGoroutine(); after <= before+2 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Errorf("%d goroutines before, %d after\n%s", before, after, stacks[:runtime.Stack(stacks, true)])
}
