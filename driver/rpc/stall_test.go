package rpc

import (
	"bytes"
	"context"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

// TestHalfFrame sends a part of a message and stops: that costs the
// connection. To be silent between messages does not.
func TestHalfFrame(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.FrameTimeout = 50 * time.Millisecond })
	frame := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho}, []byte("abcd"))
	idle := rpctest.Dial(t, s.path)
	call(idle, procEcho, nil)
	for _, n := range []int{1, 3, 4, 20, len(frame) - 1} {
		c := rpctest.Dial(t, s.path)
		c.Send(frame[:n])
		c.Closed()
	}
	files := rpctest.Dial(t, s.path)
	files.Send(rpctest.Frame(filesHeader(1), count(1)))
	time.Sleep(100 * time.Millisecond)
	call(idle, procEcho, nil)
}

// TestPieces sends messages cut at every place and many at once.
func TestPieces(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	frame := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho}, []byte("abcd"))
	for n := 1; n < len(frame); n++ {
		c.Send(frame[:n])
		time.Sleep(time.Millisecond)
		c.Send(frame[n:])
		if p := c.Next(); string(p.Body) != "abcd" {
			t.Fatalf("cut at %d it comes back as %q", n, p.Body)
		}
	}
	const many = 3000 // more than one buffer holds, so that some are cut
	go c.Write(bytes.Repeat(frame, many))
	for range many {
		if p := c.Next(); string(p.Body) != "abcd" {
			t.Fatalf("got %q", p.Body)
		}
	}
}

// TestRepliesNotRead asks for far more than the client reads: calls beyond
// the limit are not even read, none is lost, nobody else waits.
func TestRepliesNotRead(t *testing.T) {
	const calls = 60
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for range calls {
		c.Start(testProgram, testVersion, procBig, nil)
	}
	conn := s.client(t, 0)
	eventually(t, "all slots are taken", func() bool { return len(conn.slots) == cap(conn.slots) })
	time.Sleep(50 * time.Millisecond)
	conn.out.mu.Lock()
	waiting := conn.out.waiting[kindReply]
	conn.out.mu.Unlock()
	if waiting > 6<<20 {
		t.Errorf("%d bytes of replies wait, five of 1 MiB may", waiting)
	}
	// What waits in replies is no reason to lose an event.
	if err := conn.Send(testProgram, testVersion, 107, data("an event")); err != nil {
		t.Error(err)
	}
	if p := call(rpctest.Dial(t, s.path), procUrgent, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("another client waits")
	}
	replies, events := 0, 0
	for replies+events < calls+1 {
		switch p := c.Next(); {
		case p.Type == protocol.Reply && len(p.Body) == 1<<20:
			replies++
		case p.Type == protocol.Message:
			events++
		default:
			t.Fatalf("got %+v", p.MessageHeader)
		}
	}
	eventually(t, "all slots are free", func() bool { return len(conn.slots) == 0 })
}

// TestGoneWhileNotRead closes clients whose data waits unread before the end
// of file.
func TestGoneWhileNotRead(t *testing.T) {
	t.Run("all slots taken", func(t *testing.T) {
		s := newTestServer(t, nil)
		c := rpctest.Dial(t, s.path)
		for range 20 {
			c.Start(testProgram, testVersion, procSleep, nil)
		}
		conn := s.client(t, 0)
		eventually(t, "all slots are taken", func() bool { return len(conn.slots) == cap(conn.slots) })
		c.Close()
		eventually(t, "the calls' context ends", func() bool { return conn.ctx.Err() != nil })
	})
	t.Run("replies unread", func(t *testing.T) {
		s := newTestServer(t, nil)
		c := rpctest.Dial(t, s.path)
		for range 20 {
			c.Start(testProgram, testVersion, procBig, nil)
		}
		s.client(t, 0)
		c.Close()
		eventually(t, "the client is gone", func() bool { return len(s.Clients()) == 0 })
	})
	t.Run("stream full", func(t *testing.T) {
		s := newTestServer(t, nil)
		c := rpctest.Dial(t, s.path)
		h := streamHeader(procSink, call(c, procSink, nil).Serial)
		go func() {
			for range 100 {
				if _, err := c.Write(rpctest.Frame(h, make([]byte, MaxStreamData))); err != nil {
					return
				}
			}
		}()
		conn := s.client(t, 0)
		eventually(t, "the client is not read", func() bool { return conn.keepalive.paused.Load() })
		c.Close()
		eventually(t, "the client is gone", func() bool { return len(s.Clients()) == 0 })
	})
}

// TestCloseAfterReply lets events pass while a client says good-bye: the
// reply still arrives.
func TestCloseAfterReply(t *testing.T) {
	s := newTestServer(t, nil)
	for range 100 {
		c := rpctest.Dial(t, s.path)
		call(c, procEcho, nil)
		conn := s.Clients()[len(s.Clients())-1]
		ctx, stop := context.WithCancel(t.Context())
		go func() {
			for ctx.Err() == nil && conn.Send(testProgram, testVersion, 107, data("event")) == nil {
				time.Sleep(10 * time.Microsecond)
			}
		}()
		if p := call(c, procBye, nil); string(p.Body) != "bye!" {
			t.Fatalf("got %q", p.Body)
		}
		c.Closed()
		stop()
	}
}
