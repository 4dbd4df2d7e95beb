package rpc

import (
	"bytes"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

func TestKeepalive(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.KeepaliveInterval, l.KeepaliveCount = 100*time.Millisecond, 2 }) // it answers within three of them, on a busy host too
	ping := rpctest.Frame(protocol.MessageHeader{Prog: protocol.KeepaliveProgram, Vers: 1, Proc: 1, Type: protocol.Message}, nil)

	silent := rpctest.Dial(t, s.path)
	conn := s.client(t, 0) // as long as it is there
	call(silent, procAlive, nil)
	if p := silent.Next(); p.Prog != protocol.KeepaliveProgram || p.Proc != 1 {
		t.Fatalf("got %+v, want a ping", p.MessageHeader)
	}
	silent.Closed()
	<-conn.Done()
	if !conn.GivenUp() {
		t.Errorf("the reason given is %q, of the client", conn.Reason())
	}

	// A client that was not asked to answer is not pinged, and gets its own
	// pings answered.
	c := rpctest.Dial(t, s.path)
	c.Send(ping)
	if p := c.Next(); p.Prog != protocol.KeepaliveProgram || p.Proc != 2 {
		t.Fatalf("got %+v, want a pong", p.MessageHeader)
	}
	time.Sleep(400 * time.Millisecond)
	call(c, procEcho, nil)

	// Anything received counts as a sign of life; a busy host takes its time for it.
	s = newTestServer(t, func(l *Limits) { l.KeepaliveInterval, l.KeepaliveCount = 500*time.Millisecond, 2 })
	alive := rpctest.Dial(t, s.path)
	call(alive, procAlive, nil)
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		call(alive, procEcho, nil)
	}
}

// TestLateTicks answers every ping at once, but the server's timer is late: when
// it looks again an interval has gone by since the answer.
func TestLateTicks(t *testing.T) {
	k := &keepalive{began: time.Now(), interval: 10 * time.Millisecond, count: 5}
	k.timer = time.AfterFunc(time.Hour, func() {})
	defer k.stop()
	k.heard()
	for n := range 20 {
		time.Sleep(k.interval + time.Millisecond)
		switch k.due() {
		case pingClient:
			k.heard()
		case dropClient:
			t.Fatalf("given up at the %dth look, though it has answered every ping", n+1)
		}
	}
	for n := 0; ; n++ {
		time.Sleep(k.interval + time.Millisecond)
		if k.due() == dropClient {
			if n != k.count {
				t.Errorf("given up after %d pings without an answer, not %d", n, k.count)
			}
			break
		}
	}
}

// TestPingFlood pings without reading the answers, which must not gather.
func TestPingFlood(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	ping := rpctest.Frame(protocol.MessageHeader{Prog: protocol.KeepaliveProgram, Vers: 1, Proc: 1, Type: protocol.Message}, nil)
	conn := s.client(t, 0)
	for range 100 {
		c.Send(bytes.Repeat(ping, 1000))
	}
	time.Sleep(20 * time.Millisecond)
	conn.out.mu.Lock()
	waiting := conn.out.waiting[kindControl]
	conn.out.mu.Unlock()
	if waiting == 0 || waiting > 2*controlShare {
		t.Errorf("%d bytes of answers to pings wait", waiting)
	}
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("the client gets no answer any more")
	}
}
