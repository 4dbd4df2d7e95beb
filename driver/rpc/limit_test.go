package rpc

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/driver/rpc/rpctest"
)

func TestRequestLimit(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.MaxClientRequests = 3 })
	c := rpctest.Dial(t, s.path)
	for range 5 {
		c.Start(testProgram, testVersion, procSleep, nil)
	}
	last := c.Start(testProgram, testVersion, procEcho, nil)
	conn := s.client(t, 0)
	eventually(t, "three calls are served", func() bool { return len(conn.slots) == 3 && s.Pool().Queue == 0 })
	time.Sleep(50 * time.Millisecond)
	if n := s.Pool(); n.Queue != 0 || len(conn.slots) != 3 {
		t.Errorf("%d calls are served and %d queued, the limit is 3", len(conn.slots), n.Queue)
	}
	// Another client is not kept waiting by this one.
	other := rpctest.Dial(t, s.path)
	if p := call(other, procUrgent, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("another client gets no answer")
	}
	close(s.release)
	for {
		if c.Next().Serial == last {
			break
		}
	}
}

func TestIdleClients(t *testing.T) {
	const n = 5000
	var limit unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if limit.Max < 2*n+100 {
		t.Fatalf("needs %d open files, this process may have %d", 2*n+100, limit.Max)
	}
	s := newTestServer(t, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	clients := make([]*net.UnixConn, 0, n)
	for range n {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
		for errors.Is(err, unix.EAGAIN) { // the backlog is full: a client that may block waits
			time.Sleep(time.Millisecond)
			c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	eventually(t, "all are connected", func() bool { return len(s.Clients()) == n })
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)
	t.Logf("an idle client costs %d bytes, the test's end included", used/n)
	if used > 50<<20 {
		t.Errorf("%d idle clients cost %d MiB", n, used>>20)
	}
	c := rpctest.Dial(t, s.path)
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("a new client gets no answer")
	}
}

func TestClientLimit(t *testing.T) {
	s := newTestServer(t, func(l *Limits) {
		if l.MaxClients = 2; os.Geteuid() != 0 {
			l.MaxClients *= userShare
		}
	})
	a, b := rpctest.Dial(t, s.path), rpctest.Dial(t, s.path)
	call(a, procEcho, nil)
	call(b, procEcho, nil)
	rpctest.Dial(t, s.path).Closed()
	a.Close()
	eventually(t, "the client is gone", func() bool { return s.ClientLimits().Current == 1 })
	call(rpctest.Dial(t, s.path), procEcho, nil)
}

// TestSlowReader gets events and reads none: it is disconnected, and the
// sender never waits.
func TestSlowReader(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.SendQueue = 1 << 20 })
	c := rpctest.Dial(t, s.path)
	call(c, procEcho, nil)
	conn := s.client(t, 0)
	start, sent := time.Now(), 0
	for conn.Send(testProgram, testVersion, 107, data(make([]byte, 64<<10))) == nil {
		if sent++; sent > 1000 {
			t.Fatal("64 MiB of events wait for a client that does not read")
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the sender waited %s", took)
	}
	<-conn.Done()
	if !strings.Contains(conn.Reason(), "does not read") || !conn.GivenUp() {
		t.Errorf("the reason given is %q, given up: %v", conn.Reason(), conn.GivenUp())
	}
}
