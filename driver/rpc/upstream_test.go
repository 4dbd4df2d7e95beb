package rpc

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

func connect(t *testing.T, path string) *Upstream {
	t.Helper()
	u, err := Connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.Close()
		u.Release()
	})
	return u
}

func callHeader(procedure int32, serial uint32) protocol.MessageHeader {
	return protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procedure, Serial: serial}
}

// TestUpstream calls a server, small and large, with descriptors and without.
func TestUpstream(t *testing.T) {
	s := newTestServer(t, nil)
	u := connect(t, s.path)
	for serial, body := range [][]byte{nil, []byte("abcd"), bytes.Repeat([]byte("x"), 4<<20)} {
		sent := make(chan error, 1)
		go func() { sent <- u.Send(Frame{MessageHeader: callHeader(procEcho, uint32(serial)), Body: body}) }()
		f, err := u.Receive()
		if err != nil || f.Serial != uint32(serial) || f.Type != protocol.Reply || !bytes.Equal(f.Body, body) {
			t.Fatalf("%d bytes came back as %d in %+v: %v", len(body), len(f.Body), f.MessageHeader, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	h := callHeader(procFiles, 9)
	h.Type = protocol.CallWithFds
	if err := u.Send(Frame{MessageHeader: h, Body: []byte("abcd"), Files: []*os.File{file}}); err != nil {
		t.Fatal(err)
	}
	f, err := u.Receive()
	if err != nil || len(f.Files) != 1 || string(f.Body) != "abcd" {
		t.Fatalf("got %+v: %v", f, err)
	}
	var content [7]byte
	f.Files[0].ReadAt(content[:], 0)
	f.Files[0].Close()
	if string(content[:]) != "content" {
		t.Errorf("the descriptor reads %q", content)
	}
	if err := u.Send(Frame{Body: make([]byte, MaxMessage)}); err == nil {
		t.Error("a message larger than the limit is sent")
	}
}

// TestUpstreamStuck writes to a daemon that does not read: Close ends it.
func TestUpstreamStuck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u := connect(t, path)
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- u.Send(Frame{Body: make([]byte, 8<<20)}) }()
	}
	time.Sleep(20 * time.Millisecond)
	u.Close()
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("it was sent")
		}
	}
}

// TestUpstreamGarbage reads what no daemon sends.
func TestUpstreamGarbage(t *testing.T) {
	files := rpctest.Frame(protocol.MessageHeader{Type: protocol.ReplyWithFds}, []byte{0, 0, 0, 200})
	for name, text := range map[string][]byte{
		"short length": {0, 0, 0, 3}, "long length": {0x7f, 0, 0, 0}, "half a message": {0, 0, 0, 28, 1, 2}, "too many files": files,
	} {
		path := filepath.Join(t.TempDir(), "sock")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err == nil {
				c.Write(text)
				c.Close()
			}
		}()
		if f, err := connect(t, path).Receive(); err == nil {
			t.Errorf("%s is taken for %+v", name, f)
		}
		l.Close()
	}
}
