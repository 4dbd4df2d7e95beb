package rpc

import (
	"bytes"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

func TestStream(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	h := protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procStream, Type: protocol.Stream, Status: protocol.StatusContinue}
	h.Serial = call(c, procStream, nil).Serial
	sent := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), MaxStreamData)
			c.Write(rpctest.Frame(h, rest[:n]))
			rest = rest[n:]
		}
	}()
	var got []byte
	for {
		if len(got) == len(sent) {
			h.Status = protocol.StatusOK
			c.Send(rpctest.Frame(h, nil))
		}
		p := c.Next()
		if p.Serial != h.Serial || p.Type != protocol.Stream {
			t.Fatalf("got %+v", p.MessageHeader)
		}
		if p.Status == protocol.StatusOK {
			break
		}
		got = append(got, p.Body...)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d", len(got), len(sent))
	}
	// A late packet means nothing.
	c.Send(rpctest.Frame(h, []byte("late")))
	call(c, procEcho, nil)
}

// TestStreamAbort ends streams from the client's side: by an abort, and by
// going away while the server sends.
func TestStreamAbort(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	serial := call(c, procSource, nil).Serial
	c.Send(rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procSource,
		Type: protocol.Stream, Serial: serial, Status: protocol.StatusError}, nil))
	for {
		if p := c.Next(); p.Status == protocol.StatusOK && p.Type == protocol.Stream {
			break
		}
	}
	call(c, procEcho, nil)

	// This one stops in the middle and reads no more: only it waits.
	stuck := rpctest.Dial(t, s.path)
	call(stuck, procSource, nil)
	call(c, procEcho, nil)
	conn := s.client(t, 1)
	time.Sleep(50 * time.Millisecond)
	conn.out.mu.Lock()
	size := conn.out.waiting[kindData]
	conn.out.mu.Unlock()
	if size > 3<<20 {
		t.Errorf("%d bytes wait for a client that reads no stream", size)
	}
	stuck.Close()
	eventually(t, "it is gone", func() bool { return len(s.Clients()) == 1 })
}

func streamHeader(procedure int32, serial uint32) protocol.MessageHeader {
	return protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procedure,
		Type: protocol.Stream, Serial: serial, Status: protocol.StatusContinue}
}

// TestStreamWaits sends to a stream that nobody reads, until the server stops
// reading; when the stream is read at last all goes on.
func TestStreamWaits(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	h := streamHeader(procSink, call(c, procSink, nil).Serial)
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 40 {
			if _, err := c.Write(rpctest.Frame(h, make([]byte, MaxStreamData))); err != nil {
				t.Error(err)
				return
			}
			sent.Add(1)
		}
		h.Status = protocol.StatusOK
		c.Write(rpctest.Frame(h, nil))
	}()
	conn := s.client(t, 0)
	eventually(t, "the client is not read", func() bool { return conn.keepalive.paused.Load() })
	time.Sleep(50 * time.Millisecond)
	if n := sent.Load(); n > 8 {
		t.Errorf("%d packets were taken that nobody reads", n)
	}
	if p := call(rpctest.Dial(t, s.path), procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("another client waits")
	}
	close(s.release)
	<-done
	if p := c.Next(); p.Type != protocol.Stream || p.Status != protocol.StatusOK {
		t.Errorf("got %+v, want the end of the stream", p.MessageHeader)
	}
}

// TestStreamFinishedByServer keeps sending after the server has finished: it
// neither stops the connection nor comes to anything.
func TestStreamFinishedByServer(t *testing.T) {
	s := newTestServer(t, nil)
	close(s.release)
	c := rpctest.Dial(t, s.path)
	h := streamHeader(procShort, call(c, procShort, nil).Serial)
	if p := c.Next(); p.Type != protocol.Stream || p.Status != protocol.StatusContinue || len(p.Body) != 0 {
		t.Fatalf("got %+v, want the end of the server's data", p.MessageHeader)
	}
	for range 10 {
		c.Send(rpctest.Frame(h, make([]byte, MaxStreamData)))
	}
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("the connection is stuck")
	}
	h.Status = protocol.StatusOK
	c.Send(rpctest.Frame(h, nil))
	if p := c.Next(); p.Type != protocol.Stream || p.Status != protocol.StatusOK {
		t.Errorf("got %+v, want the end of the stream", p.MessageHeader)
	}
}

func TestStreamErrors(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	// The server aborts.
	h := streamHeader(procBroken, call(c, procBroken, nil).Serial)
	if p := c.Next(); p.Type != protocol.Stream || *p.Error(t).Message != "it broke" {
		t.Errorf("got %+v", p.MessageHeader)
	}
	c.Send(rpctest.Frame(h, []byte("late")))
	// A status that no client sends.
	h = streamHeader(procSink, call(c, procSink, nil).Serial)
	h.Status = 9
	c.Send(rpctest.Frame(h, nil))
	if p := c.Next(); *p.Error(t).Message != "stream aborted with unexpected status 9" {
		t.Errorf("got %+v", p.MessageHeader)
	}
	// A call that fails has no stream.
	h = streamHeader(procFailingStream, 0)
	p := call(c, procFailingStream, nil)
	p.Error(t)
	h.Serial = p.Serial
	c.Send(rpctest.Frame(h, []byte("late")))
	call(c, procEcho, nil)
	// Holes are for sparse streams.
	h = streamHeader(procSink, call(c, procSink, nil).Serial)
	h.Type = protocol.StreamHole
	c.Send(rpctest.Frame(h, make([]byte, 12)))
	c.Closed()
}

// TestStreamLimit opens streams without end: one too many is refused, and
// all end with the client.
func TestStreamLimit(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for range maxStreams {
		if p := call(c, procSink, nil); p.Status != protocol.StatusOK {
			t.Fatalf("a stream is refused: %s", *p.Error(t).Message)
		}
	}
	if e := call(c, procSink, nil).Error(t); !strings.Contains(*e.Message, "streams open") {
		t.Errorf("got %q", *e.Message)
	}
}
