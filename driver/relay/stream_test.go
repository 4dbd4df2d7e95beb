package relay

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

// tunnelled makes a daemon's handler of a stream whose packets the test
// writes and reads itself.
func tunnelled(serve func(*rpc.Tunnel)) rpc.Handler {
	return func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		tunnel, err := c.OpenTunnel()
		if err != nil {
			return nil, err
		}
		go func() {
			c.Answer(xdr.Void{}, nil)
			serve(tunnel)
		}()
		return nil, rpc.ErrLater
	}
}

var hole = rpc.StreamPacket{Type: protocol.StreamHole, Status: protocol.StatusContinue, Body: []byte("\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00")}

func content(text string) rpc.StreamPacket {
	return rpc.StreamPacket{Type: protocol.Stream, Status: protocol.StatusContinue, Body: []byte(text)}
}

var finish = rpc.StreamPacket{Type: protocol.Stream, Status: protocol.StatusOK}

func openStream(t *testing.T, c *rpctest.Client, info *protocol.Info) protocol.MessageHeader {
	t.Helper()
	p := do(t, c, info, info.NewArgs())
	if p.Status != protocol.StatusOK {
		t.Fatal(*p.Error(t).Message)
	}
	h := p.MessageHeader
	h.Type, h.Status = protocol.Stream, protocol.StatusContinue
	return h
}

// TestStreams passes data, holes and ends in both directions, two streams
// at a time.
func TestStreams(t *testing.T) {
	f := newFront(t, Config{})
	uploaded := make(chan rpc.StreamPacket, 10)
	d := startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"STORAGE_VOL_DOWNLOAD": tunnelled(func(s *rpc.Tunnel) {
			for _, p := range []rpc.StreamPacket{content("first"), hole, content("last"), content("")} {
				s.Send(p)
			}
			if p, err := s.Receive(); err == nil {
				s.Send(p)
			}
		}),
		"STORAGE_VOL_UPLOAD": tunnelled(func(s *rpc.Tunnel) {
			for {
				p, err := s.Receive()
				if err != nil {
					return
				}
				uploaded <- p
				if p.Status != protocol.StatusContinue {
					s.Send(finish)
				}
			}
		}),
	})
	c := f.dial(t)
	works(t, c) // so that the serials of both connections differ
	upload := openStream(t, c, protocol.StorageVolUpload.Info)
	download := openStream(t, c, protocol.StorageVolDownload.Info)
	for _, want := range []rpc.StreamPacket{content("first"), hole, content("last"), content("")} {
		if p := c.Next(); p.Type != want.Type || p.Serial != download.Serial || p.Proc != download.Proc || !bytes.Equal(p.Body, want.Body) {
			t.Errorf("got %+v %q, want %+v", p.MessageHeader, p.Body, want)
		}
	}
	for _, p := range []rpc.StreamPacket{content("up"), hole, content("more"), finish} {
		h := upload
		h.Type, h.Status = p.Type, p.Status
		c.Send(rpctest.Frame(h, p.Body))
		if got := <-uploaded; got.Type != p.Type || got.Status != p.Status || !bytes.Equal(got.Body, p.Body) {
			t.Errorf("the daemon got %+v, want %+v", got, p)
		}
	}
	if p := c.Next(); p.Serial != upload.Serial || p.Status != protocol.StatusOK {
		t.Errorf("got %+v, want the end of the upload", p.MessageHeader)
	}
	download.Status = protocol.StatusOK
	c.Send(rpctest.Frame(download, nil))
	if p := c.Next(); p.Serial != download.Serial || p.Status != protocol.StatusOK {
		t.Errorf("got %+v, want the end of the download", p.MessageHeader)
	}
	works(t, c)
	if n := len(d.server.Clients()); n != 2 {
		t.Errorf("%d connections to the daemon, want one for each driver", n)
	}
}

// TestStreamFlow: neither a client nor a daemon that stops reading makes the
// other's bytes pile up here, or anybody else wait.
func TestStreamFlow(t *testing.T) {
	var sent, received atomic.Int64
	release := make(chan struct{})
	handlers := map[string]rpc.Handler{
		"STORAGE_VOL_DOWNLOAD": tunnelled(func(s *rpc.Tunnel) {
			for s.Send(content(string(make([]byte, 1<<18)))) == nil {
				sent.Add(1 << 18)
			}
		}),
		"STORAGE_VOL_UPLOAD": tunnelled(func(s *rpc.Tunnel) {
			<-release
			for {
				p, err := s.Receive()
				if err != nil {
					return
				}
				received.Add(int64(len(p.Body)))
				if p.Status != protocol.StatusContinue {
					s.Send(finish)
				}
			}
		}),
	}
	f := newFront(t, Config{})
	startDaemon(t, f.dir, "libvirt-sock", handlers)
	other := f.dial(t)

	reader := f.dial(t)
	openStream(t, reader, protocol.StorageVolDownload.Info)
	steady(t, &sent)
	if n := sent.Load(); n > 8<<20 {
		t.Errorf("%d bytes wait for a client that does not read", n)
	}
	works(t, other)

	writer := f.dial(t)
	h := openStream(t, writer, protocol.StorageVolUpload.Info)
	const packets = 200
	var taken atomic.Int64
	go func() {
		for range packets {
			if _, err := writer.Write(rpctest.Frame(h, make([]byte, 1<<18))); err != nil {
				return
			}
			taken.Add(1 << 18)
		}
		h.Status = protocol.StatusOK
		writer.Write(rpctest.Frame(h, nil))
	}()
	steady(t, &taken)
	if n := taken.Load(); n > 8<<20 {
		t.Errorf("%d bytes wait for a daemon that does not read", n)
	}
	works(t, other)
	close(release)
	if p := writer.Next(); p.Status != protocol.StatusOK || received.Load() != packets<<18 {
		t.Errorf("%d bytes arrived, then %+v", received.Load(), p.MessageHeader)
	}
	reader.Close()
	eventually(t, "the daemon sends no more to one who left", func() bool { return len(f.Clients()) == 2 })
}

// steady waits until a number grows no more.
func steady(t *testing.T, n *atomic.Int64) {
	t.Helper()
	last := int64(-1)
	eventually(t, "it stops", func() bool {
		time.Sleep(50 * time.Millisecond)
		was := last
		last = n.Load()
		return last > 0 && last == was
	})
}

// TestStreamsBreak ends streams in every other way: refused by the daemon,
// aborted by either side, by the daemon's death, and the way libvirt answers
// a hole that it cannot write, as if it were the reply to a call.
func TestStreamsBreak(t *testing.T) {
	f := newFront(t, Config{})
	aborted := make(chan rpc.StreamPacket, 1)
	handlers := map[string]rpc.Handler{
		"STORAGE_VOL_UPLOAD": func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
			return nil, &Error{Code: protocol.ErrNoStorageVol, Detail: "no such volume"}
		},
		"STORAGE_VOL_DOWNLOAD": tunnelled(func(s *rpc.Tunnel) {
			p, err := s.Receive()
			if err != nil {
				return
			}
			aborted <- p
			s.Send(finish)
		}),
	}
	d := startDaemon(t, f.dir, "libvirt-sock", handlers)
	c := f.dial(t)
	p := do(t, c, protocol.StorageVolUpload.Info, protocol.StorageVolUploadArgs{})
	fails(t, p, protocol.ErrNoStorageVol, "no such volume")
	late := p.MessageHeader
	late.Type, late.Status = protocol.Stream, protocol.StatusContinue
	c.Send(rpctest.Frame(late, []byte("late")))
	works(t, c)

	h := openStream(t, c, protocol.StorageVolDownload.Info)
	h.Status = protocol.StatusError
	c.Send(rpctest.Frame(h, nil))
	if p := <-aborted; p.Status != protocol.StatusError {
		t.Errorf("the daemon got %+v, want the client's abort", p)
	}
	if p := c.Next(); p.Type != protocol.Stream || p.Status != protocol.StatusOK {
		t.Errorf("got %+v", p.MessageHeader)
	}

	d.handle("STORAGE_VOL_DOWNLOAD", tunnelled(func(s *rpc.Tunnel) {
		s.Abort(&Error{Code: protocol.ErrOperationFailed, Detail: "disk on fire"})
	}))
	openStream(t, c, protocol.StorageVolDownload.Info)
	fails(t, c.Next(), protocol.ErrOperationFailed, "disk on fire")

	d.handle("STORAGE_VOL_DOWNLOAD", tunnelled(func(s *rpc.Tunnel) { s.Receive() }))
	h = openStream(t, c, protocol.StorageVolDownload.Info)
	d.crash()
	p = c.Next()
	if p.Type != protocol.Stream || p.Serial != h.Serial {
		t.Errorf("got %+v", p.MessageHeader)
	}
	fails(t, p, protocol.ErrOperationFailed, "in the middle of the transfer")
	d.start()
	works(t, c)
	d.stop()

	rawDaemon(t, d.path, func(h protocol.MessageHeader) []byte {
		reply := plainReply(h)
		if h.Proc == int32(protocol.StorageVolUpload.Number) {
			text := "cannot write a hole"
			body, _ := xdr.Marshal(&protocol.Error{Code: protocol.ErrOperationFailed, Message: &text})
			h.Type, h.Status = protocol.Reply, protocol.StatusError
			reply = append(reply, rpctest.Frame(h, body)...)
		}
		return reply
	})
	h = openStream(t, c, protocol.StorageVolUpload.Info)
	p = c.Next()
	if p.Type != protocol.Stream || p.Serial != h.Serial {
		t.Errorf("got %+v", p.MessageHeader)
	}
	fails(t, p, protocol.ErrOperationFailed, "cannot write a hole")
}

// TestDeathUnseen: the daemon dies while nobody looks, as its last packets
// wait for a client that does not read. The next call cannot have been seen
// by it, so it goes to the new daemon.
func TestDeathUnseen(t *testing.T) {
	f := newFront(t, Config{})
	var sent atomic.Int64
	d := startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"STORAGE_VOL_DOWNLOAD": tunnelled(func(s *rpc.Tunnel) {
			for s.Send(content(string(make([]byte, 1<<18)))) == nil {
				sent.Add(1 << 18)
			}
		}),
	})
	c := f.dial(t)
	h := openStream(t, c, protocol.StorageVolDownload.Info)
	steady(t, &sent)
	d.crash()
	d.start()
	start(t, c, protocol.StoragePoolLookupByName.Info, protocol.StoragePoolLookupByNameArgs{Name: "p"})
	eventually(t, "the new daemon has the call", func() bool { return d.calls("STORAGE_POOL_LOOKUP_BY_NAME") == 1 })
	ended, answered := false, false
	for !ended || !answered {
		switch p := c.Next(); {
		case p.Type == protocol.Reply:
			answered = p.Status == protocol.StatusOK
		case p.Serial == h.Serial && p.Status == protocol.StatusError:
			fails(t, p, protocol.ErrOperationFailed, "in the middle of the transfer")
			ended = true
		}
	}
}
