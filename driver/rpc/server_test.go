package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

const testProgram, testVersion = 0x20008086, 1

// Procedures of the test program.
const (
	procEcho   = 1  // inline
	procSleep  = 2  // pool: until the test lets it go
	procFail   = 3  // an error of the application
	procStream = 4  // a stream that echoes
	procFiles  = 5  // answers with as many descriptors as it got
	procPanics = 6  // unused numbers are unknown
	procSource = 7  // a stream without end
	procUrgent = 8  // priority pool
	procBye    = 9  // close after reply
	procAlive  = 10 // enables keepalive

	procManyFiles = 11 // answers with more descriptors than a message may carry
	procSink      = 12 // a stream that is not read until the test lets it go
	procBig       = 13 // an inline answer of 1 MiB
)

type testServer struct {
	*Server
	path    string
	release chan struct{}
}

func (s *testServer) Lookup(procedure uint32) (Handler, Mode, bool) {
	echo := func(_ context.Context, c *Call) (xdr.Marshaler, error) { return data(c.Payload), nil }
	switch procedure {
	case procEcho:
		return echo, Inline, true
	case procUrgent:
		return echo, PoolPriority, true
	case procSleep:
		return func(ctx context.Context, c *Call) (xdr.Marshaler, error) {
			select {
			case <-s.release:
			case <-ctx.Done():
			}
			return xdr.Void{}, nil
		}, Pool, true
	case procFail:
		return func(context.Context, *Call) (xdr.Marshaler, error) { return nil, errors.New("it failed") }, Pool, true
	case procStream:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			stream := c.OpenStream()
			go func() {
				io.Copy(stream, stream)
				stream.Finish()
			}()
			return xdr.Void{}, nil
		}, Pool, true
	case procSource:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			stream := c.OpenStream()
			go func() {
				for {
					if _, err := stream.Write(make([]byte, 1<<20)); err != nil {
						return
					}
				}
			}()
			return xdr.Void{}, nil
		}, Pool, true
	case procFiles:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			c.ReplyFiles(c.TakeFiles()...)
			return data(c.Payload), nil
		}, Pool, true
	case procManyFiles:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			for range MaxFiles + 1 {
				f, err := os.Open("/dev/null")
				if err != nil {
					return nil, err
				}
				c.ReplyFiles(f)
			}
			return xdr.Void{}, nil
		}, Pool, true
	case procSink:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			stream := c.OpenStream()
			go func() {
				select {
				case <-s.release:
				case <-stream.Done():
				}
				io.Copy(io.Discard, stream)
				stream.Finish()
			}()
			return xdr.Void{}, nil
		}, Pool, true
	case procBig:
		return func(context.Context, *Call) (xdr.Marshaler, error) { return data(make([]byte, 1<<20)), nil }, Inline, true
	case procBye:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			c.Conn.CloseAfterReply()
			return data("bye!"), nil
		}, Inline, true
	case procAlive:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			c.Conn.EnableKeepalive()
			return xdr.Void{}, nil
		}, Inline, true
	}
	return nil, 0, false
}

// data is a body that is sent as it is.
type data []byte

func (d data) EncodeXDR(e *xdr.Encoder) error {
	e.FixedOpaque(d)
	return e.Err()
}

func newTestServer(t testing.TB, change func(*Limits)) *testServer {
	t.Helper()
	l := Limits{MaxClients: 6000, MaxAnonymousClients: 6000, MaxClientRequests: 5, MinWorkers: 2, MaxWorkers: 10, PrioWorkers: 2}
	if change != nil {
		change(&l)
	}
	before := runtime.NumGoroutine()
	files := openFiles(t)
	s := &testServer{path: filepath.Join(t.TempDir(), "sock"), release: make(chan struct{})}
	s.Server = NewServer("test", l, func(err error) *protocol.Error {
		text := err.Error()
		return &protocol.Error{Code: 1, Message: &text, Level: 2}
	})
	s.Register(testProgram, testVersion, s)
	s.OnConnect(func(c *Conn) { c.SetAuthenticated() })
	listener, err := Listen(s.path, 0o600, os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(listener, ListenerOptions{})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if _, plain := t.(*testing.T); !plain {
			return // fuzzing and benchmarking have goroutines of their own
		}
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
		eventually(t, "descriptors are closed", func() bool { return openFiles(t) <= files })
	})
	return s
}

// client waits for the n-th client and gives the server's side of it.
func (s *testServer) client(t testing.TB, n int) *Conn {
	t.Helper()
	eventually(t, "the client is connected", func() bool { return len(s.Clients()) > n })
	return s.Clients()[n]
}

func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 500 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("it does not come true that %s", what)
}

func call(c *rpctest.Client, procedure uint32, body []byte) rpctest.Packet {
	return c.Call(testProgram, testVersion, procedure, body)
}

func TestCalls(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for _, size := range []int{0, 4, 100, 4096, 1 << 20, 30 << 20} {
		body := bytes.Repeat([]byte{7, 8, 9, 1}, size/4)
		for _, procedure := range []uint32{procEcho, procUrgent} {
			if p := call(c, procedure, body); p.Status != protocol.StatusOK || !bytes.Equal(p.Body, body) {
				t.Fatalf("%d bytes came back as %d, status %d", size, len(p.Body), p.Status)
			}
		}
	}
	if e := call(c, procFail, nil).Error(t); *e.Message != "it failed" {
		t.Errorf("got %q", *e.Message)
	}
	if p := call(c, procBye, nil); string(p.Body) != "bye!" {
		t.Errorf("got %q before the connection was closed", p.Body)
	}
	c.Closed()
}

func TestUnknown(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for _, u := range []struct {
		program, version, procedure uint32
		want                        string
	}{
		{1234, 1, 1, "Cannot find program 1234 version 1"},
		{testProgram, 9, 1, "Cannot find program 536903814 version 9"},
		{0xffffffff, 1, 1, "Cannot find program -1 version 1"},
		{testProgram, testVersion, 999, "unknown procedure: 999"},
	} {
		e := c.Call(u.program, u.version, u.procedure, nil).Error(t)
		if e.Code != 39 || e.Domain != 7 || e.Level != 2 || *e.Message != u.want {
			t.Errorf("got code %d domain %d level %d %q, want %q", e.Code, e.Domain, e.Level, *e.Message, u.want)
		}
	}
	// The connection goes on.
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("the connection is of no more use")
	}
}

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

func TestRequestLimit(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.MaxClientRequests = 3 })
	c := rpctest.Dial(t, s.path)
	for range 5 {
		c.Start(testProgram, testVersion, procSleep, nil)
	}
	last := c.Start(testProgram, testVersion, procEcho, nil)
	conn := s.client(t, 0)
	eventually(t, "three calls are served", func() bool { return len(conn.slots) == 3 })
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

// TestPriority fills all workers: urgent calls are answered all the same.
func TestPriority(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.MinWorkers, l.MaxWorkers, l.PrioWorkers = 1, 2, 1 })
	defer close(s.release)
	for range 4 {
		rpctest.Dial(t, s.path).Start(testProgram, testVersion, procSleep, nil)
	}
	eventually(t, "the workers are busy", func() bool { p := s.Pool(); return p.Free == 0 && p.Queue == 2 })
	c := rpctest.Dial(t, s.path)
	if p := call(c, procUrgent, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("an urgent call waits")
	}
	if err := s.SetPool(1, 6, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.SetPool(5, 4, 1); err == nil {
		t.Error("a minimum above the maximum was accepted")
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
	if used > 100<<20 {
		t.Errorf("%d idle clients cost %d MiB", n, used>>20)
	}
	c := rpctest.Dial(t, s.path)
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("a new client gets no answer")
	}
}

func TestClientLimit(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.MaxClients = 2 })
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
	if !strings.Contains(conn.Reason(), "does not read") {
		t.Errorf("the reason given is %q", conn.Reason())
	}
}

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

func TestKeepalive(t *testing.T) {
	s := newTestServer(t, func(l *Limits) { l.KeepaliveInterval, l.KeepaliveCount = 20*time.Millisecond, 2 })
	ping := rpctest.Frame(protocol.MessageHeader{Prog: protocol.KeepaliveProgram, Vers: 1, Proc: 1, Type: protocol.Message}, nil)

	silent := rpctest.Dial(t, s.path)
	call(silent, procAlive, nil)
	if p := silent.Next(); p.Prog != protocol.KeepaliveProgram || p.Proc != 1 {
		t.Fatalf("got %+v, want a ping", p.MessageHeader)
	}
	silent.Closed()

	// A client that was not asked to answer is not pinged, and gets its own
	// pings answered.
	c := rpctest.Dial(t, s.path)
	c.Send(ping)
	if p := c.Next(); p.Prog != protocol.KeepaliveProgram || p.Proc != 2 {
		t.Fatalf("got %+v, want a pong", p.MessageHeader)
	}
	time.Sleep(100 * time.Millisecond)
	call(c, procEcho, nil)

	// Anything received counts as a sign of life.
	alive := rpctest.Dial(t, s.path)
	call(alive, procAlive, nil)
	for range 20 {
		time.Sleep(10 * time.Millisecond)
		call(alive, procEcho, nil)
	}
}

func TestListen(t *testing.T) {
	s := newTestServer(t, nil)
	if _, err := Listen(s.path, 0o600, 0); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a socket in use was taken: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	os.WriteFile(plain, nil, 0o600)
	if _, err := Listen(plain, 0o600, 0); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file was replaced by a socket: %v", err)
	}
	info, err := os.Stat(s.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
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

func BenchmarkCall(b *testing.B) {
	s := newTestServer(b, nil)
	c := rpctest.Dial(b, s.path)
	for b.Loop() {
		call(c, procEcho, nil)
	}
}
