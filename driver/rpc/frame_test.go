package rpc

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

// TestMalformed sends what no client sends. Each costs its own connection
// and nothing else.
func TestMalformed(t *testing.T) {
	s := newTestServer(t, nil)
	good := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho}, nil)
	word := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, bad := range map[string][]byte{
		"length zero":         word(0),
		"shorter than header": append(word(27), make([]byte, 23)...),
		"too long":            word(32<<20 + 5),
		"all ones":            bytes.Repeat([]byte{0xff}, 64),
		"a web browser":       []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"too many files":      rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: 1, Proc: procFiles, Type: protocol.CallWithFds}, word(33)),
		"files without count": rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: 1, Proc: procFiles, Type: protocol.CallWithFds}, nil),
		"files that lack":     append(rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: 1, Proc: procFiles, Type: protocol.CallWithFds}, word(2)), 0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			c := rpctest.Dial(t, s.path)
			c.Send(bad)
			c.Closed()
		})
	}
	t.Run("not for a server", func(t *testing.T) {
		c := rpctest.Dial(t, s.path)
		for _, kind := range []protocol.MessageType{protocol.Reply, protocol.Message, protocol.ReplyWithFds, 99} {
			c.Send(rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: 1, Proc: procEcho, Type: kind}, nil))
		}
		if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
			t.Error("messages that mean nothing were not dropped")
		}
	})
	c := rpctest.Dial(t, s.path)
	c.Send(good)
	if p := c.Next(); p.Status != protocol.StatusOK {
		t.Error("the server is of no more use")
	}
}

// TestLyingLength announces 32 MiB and sends nothing: no memory is taken.
func TestLyingLength(t *testing.T) {
	s := newTestServer(t, nil)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 50 {
		rpctest.Dial(t, s.path).Send(binary.BigEndian.AppendUint32(nil, 32<<20))
	}
	eventually(t, "all are connected", func() bool { return len(s.Clients()) == 50 })
	time.Sleep(50 * time.Millisecond)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("50 announcements of 32 MiB cost %d bytes", grown)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho, Serial: 1}, []byte("abcd")))
	f.Add(rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procStream, Type: protocol.Stream}, nil))
	f.Add(rpctest.Frame(protocol.MessageHeader{Prog: protocol.KeepaliveProgram, Vers: 1, Proc: 1, Type: protocol.Message}, nil))
	f.Add(rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: 1, Proc: procFiles, Type: protocol.CallWithFds}, []byte{0, 0, 0, 0}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	s := newTestServer(f, nil)
	close(s.release)
	f.Fuzz(func(t *testing.T, frames []byte) {
		if len(frames) > 1<<16 {
			return
		}
		c := rpctest.Dial(t, s.path)
		c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		c.Write(frames)
		c.CloseWrite()
		// Whatever it was, the server lives.
		other := rpctest.Dial(t, s.path)
		call(other, procEcho, nil)
		c.Close()
		other.Close()
	})
}
