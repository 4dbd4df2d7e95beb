package rpc

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

// TestTunnel sends every kind of packet through: each comes back as it was,
// and OK and ERROR end the stream.
func TestTunnel(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for _, last := range []protocol.MessageStatus{protocol.StatusOK, protocol.StatusError} {
		h := streamHeader(procTunnel, call(c, procTunnel, nil).Serial)
		pass := func(kind protocol.MessageType, status protocol.MessageStatus, body string) {
			t.Helper()
			h.Type, h.Status = kind, status
			c.Send(rpctest.Frame(h, []byte(body)))
			if p := c.Next(); p.MessageHeader != h || string(p.Body) != body {
				t.Errorf("sent %+v %q, got %+v %q", h, body, p.MessageHeader, p.Body)
			}
		}
		pass(protocol.Stream, protocol.StatusContinue, "odd")
		pass(protocol.StreamHole, protocol.StatusContinue, "\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00")
		pass(protocol.Stream, protocol.StatusContinue, "")
		pass(protocol.Stream, protocol.StatusContinue, strings.Repeat("x", MaxStreamData))
		pass(protocol.Stream, last, "")
		h.Status = protocol.StatusContinue
		c.Send(rpctest.Frame(h, []byte("late")))
		if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
			t.Fatalf("after the end a packet came back: %+v", p.MessageHeader)
		}
	}
}

// TestTunnelWaits sends what nobody receives, large packets and empty ones:
// the client is not read, and nobody else waits.
func TestTunnelWaits(t *testing.T) {
	for name, size := range map[string]int{"large": MaxStreamData, "empty": 0} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, nil)
			c := rpctest.Dial(t, s.path)
			h := streamHeader(procDam, call(c, procDam, nil).Serial)
			const many = 20_000
			packets := min(many, many*100/(size+1))
			var sent atomic.Int64
			go func() {
				for range packets {
					if _, err := c.Write(rpctest.Frame(h, make([]byte, size))); err != nil {
						return
					}
					sent.Add(1)
				}
			}()
			conn := s.client(t, 0)
			eventually(t, "the client is not read", func() bool { return conn.keepalive.paused.Load() })
			conn.mu.Lock()
			tunnel := conn.streams[keyOf(h)].(*Tunnel)
			conn.mu.Unlock()
			tunnel.mu.Lock()
			if tunnel.inSize > streamBuffer+MaxStreamData+packetCost || len(tunnel.in) > streamBuffer/packetCost+1 {
				t.Errorf("%d packets of %d bytes wait", len(tunnel.in), tunnel.inSize)
			}
			tunnel.mu.Unlock()
			if p := call(rpctest.Dial(t, s.path), procEcho, []byte("abcd")); string(p.Body) != "abcd" {
				t.Error("another client waits")
			}
			close(s.release)
			for range packets {
				if p := c.Next(); len(p.Body) != size {
					t.Fatalf("got %+v of %d bytes", p.MessageHeader, len(p.Body))
				}
			}
		})
	}
}

// TestTunnelOfOneWhoGoes leaves with a tunnel open that is full.
func TestTunnelOfOneWhoGoes(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	h := streamHeader(procDam, call(c, procDam, nil).Serial)
	for range 2 {
		c.Send(rpctest.Frame(h, make([]byte, MaxStreamData)))
	}
	c.Close()
	eventually(t, "it is gone", func() bool { return len(s.Clients()) == 0 })
}

func TestTunnelLimit(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for range maxStreams {
		call(c, procDam, nil)
	}
	for _, procedure := range []uint32{procDam, procSink} {
		if e := call(c, procedure, nil).Error(t); !strings.Contains(*e.Message, "streams open") {
			t.Errorf("got %q", *e.Message)
		}
	}
}

// TestApart keeps more calls waiting than there are workers: they take none.
func TestApart(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.MinWorkers, l.MaxWorkers, l.PrioWorkers = 1, 1, 0 })
	var waiting []*rpctest.Client
	for range 4 {
		c := rpctest.Dial(t, s.path)
		for range 5 {
			c.Start(testProgram, testVersion, procApart, nil)
		}
		waiting = append(waiting, c)
	}
	if p := call(rpctest.Dial(t, s.path), procFail, nil); p.Status != protocol.StatusError {
		t.Errorf("got %+v", p.MessageHeader)
	}
	// One more of a client whose slots are taken is not even read.
	waiting[0].Start(testProgram, testVersion, procEcho, nil)
	eventually(t, "five calls of a client are served", func() bool { return len(s.client(t, 0).slots) == 5 })
	time.Sleep(20 * time.Millisecond)
	if n := len(s.client(t, 0).slots); n != 5 {
		t.Errorf("%d calls of one client are served, the limit is 5", n)
	}
	close(s.release)
	for _, c := range waiting {
		for range 5 {
			c.Next()
		}
	}
	waiting[0].Next()
}

func TestAnswerOnce(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for range 20 { // a slot given back twice would stop the connection
		if p := call(c, procTwice, nil); string(p.Body) != "once" {
			t.Fatalf("got %q", p.Body)
		}
	}
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Errorf("got %q", p.Body)
	}
}
