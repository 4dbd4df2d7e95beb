package rpc

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

func filesHeader(serial uint32) protocol.MessageHeader {
	return protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procFiles, Type: protocol.CallWithFds, Serial: serial}
}

func count(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// through checks that what is written to w comes out of r and that nobody
// else holds w.
func through(t *testing.T, w, r *os.File) {
	t.Helper()
	w.WriteString("through")
	w.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "through" {
		t.Errorf("read %q from the pipe: %v", got, err)
	}
}

func TestDescriptors(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for _, n := range []int{1, 3, MaxFiles} {
		var reads, writes []*os.File
		for range n {
			r, w := pipe(t)
			reads, writes = append(reads, r), append(writes, w)
		}
		c.Send(rpctest.Frame(filesHeader(7), append(count(uint32(n)), "the rest"...)))
		c.SendFiles(writes...)
		for _, w := range writes {
			w.Close()
		}
		p := c.Next()
		if p.Type != protocol.ReplyWithFds || p.Status != protocol.StatusOK || !bytes.Equal(p.Body, append(count(uint32(n)), "the rest"...)) {
			t.Fatalf("got %+v %x", p.MessageHeader, p.Body)
		}
		for i, w := range c.ReceiveFiles(n) {
			through(t, w, reads[i])
		}
	}
	// No descriptors at all is a plain reply.
	c.Send(rpctest.Frame(filesHeader(8), count(0)))
	if p := c.Next(); p.Type != protocol.Reply {
		t.Errorf("got %+v", p.MessageHeader)
	}
}

// TestStrayDescriptors sends descriptors that no message announces: they are
// closed, and are not taken for those of a later message.
func TestStrayDescriptors(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	strayRead, stray := pipe(t)
	frame := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho, Serial: 1}, []byte("abcd"))
	c.SendWithFile(frame, stray)
	stray.Close()
	if p := c.Next(); string(p.Body) != "abcd" {
		t.Fatalf("got %+v %q", p.MessageHeader, p.Body)
	}
	r, w := pipe(t)
	c.Send(rpctest.Frame(filesHeader(2), count(1)))
	c.SendFiles(w)
	w.Close()
	if p := c.Next(); p.Type != protocol.ReplyWithFds {
		t.Fatalf("got %+v", p.MessageHeader)
	}
	through(t, c.ReceiveFiles(1)[0], r)
	if n, err := strayRead.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the stray descriptor is still open: %d, %v", n, err)
	}
}

// TestDescriptorsClosed makes calls fail at every place after descriptors
// were received; newTestServer counts what is open in the end.
func TestDescriptorsClosed(t *testing.T) {
	for name, send := range map[string]func(c *rpctest.Client, w *os.File){
		"unknown procedure": func(c *rpctest.Client, w *os.File) {
			h := filesHeader(1)
			h.Proc = 999
			c.Send(rpctest.Frame(h, count(1)))
			c.SendFiles(w)
			c.Next().Error(t)
		},
		"the handler fails": func(c *rpctest.Client, w *os.File) {
			h := filesHeader(1)
			h.Proc = procFail
			c.Send(rpctest.Frame(h, count(1)))
			c.SendFiles(w)
			c.Next().Error(t)
		},
		"the handler does not want them": func(c *rpctest.Client, w *os.File) {
			h := filesHeader(1)
			h.Proc = procUrgent
			c.Send(rpctest.Frame(h, count(1)))
			c.SendFiles(w)
			c.Next()
		},
		"too few": func(c *rpctest.Client, w *os.File) {
			c.Send(rpctest.Frame(filesHeader(1), count(3)))
			c.SendFiles(w, w)
			c.Send([]byte{0})
			c.Closed()
		},
		"one and then nothing": func(c *rpctest.Client, w *os.File) {
			c.Send(rpctest.Frame(filesHeader(1), count(3)))
			c.SendFiles(w)
		},
		"too many in the reply": func(c *rpctest.Client, w *os.File) {
			h := filesHeader(1)
			h.Proc = procManyFiles
			c.Send(rpctest.Frame(h, count(1)))
			c.SendFiles(w)
			c.Next().Error(t)
		},
		"gone before the reply": func(c *rpctest.Client, w *os.File) {
			for range 5 {
				c.Send(rpctest.Frame(filesHeader(1), count(1)))
				c.SendFiles(w)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, nil)
			r, w := pipe(t)
			c := rpctest.Dial(t, s.path)
			send(c, w)
			c.Close()
			w.Close()
			if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("the server holds the descriptor: %d, %v", n, err)
			}
			r.Close()
		})
	}
}

// TestDescriptorsKeepFlags sends a descriptor that does not block: so it is
// to stay for everybody who shares it.
func TestDescriptorsKeepFlags(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	_, w := pipe(t)
	before := rpctest.Flags(t, w)
	c.Send(rpctest.Frame(filesHeader(1), count(1)))
	c.SendFiles(w)
	c.Next()
	back := c.ReceiveFiles(1)[0]
	defer back.Close()
	if after := rpctest.Flags(t, w); after != before {
		t.Errorf("the flags of a descriptor changed from %x to %x", before, after)
	}
}

// TestTooManyDescriptors hangs descriptors on the bytes of one message.
func TestTooManyDescriptors(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	_, w := pipe(t)
	frame := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho}, make([]byte, 100))
	for i := range MaxFiles + 1 {
		c.SendWithFile(frame[i:i+1], w)
	}
	c.Closed()
}
