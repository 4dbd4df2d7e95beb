package rpc

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

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

	procShort         = 14 // a stream that the server finishes at once
	procBroken        = 15 // a stream that the server aborts
	procFailingStream = 16 // an error after the stream was made

	procTunnel = 17 // sends each packet of the stream back as it is
	procDam    = 18 // a tunnel that nobody receives from until the test lets it go
	procApart  = 19 // apart: until the test lets it go
	procTwice  = 20 // answered later, and then once more
)

type testServer struct {
	*Server
	path    string
	release chan struct{}
	guarded atomic.Bool // clients are not authenticated when they come
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
	case procShort, procBroken:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			stream := c.OpenStream()
			if procedure == procShort {
				go stream.Finish()
			} else {
				go stream.Abort(errors.New("it broke"))
			}
			return xdr.Void{}, nil
		}, Pool, true
	case procFailingStream:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			stream := c.OpenStream()
			go stream.Write([]byte("to nobody"))
			return nil, errors.New("it failed")
		}, Pool, true
	case procTunnel, procDam:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			tunnel, err := c.OpenTunnel()
			if err != nil {
				return nil, err
			}
			go func() {
				c.Answer(xdr.Void{}, nil)
				if procedure == procDam {
					select {
					case <-s.release:
					case <-c.Conn.Done():
					}
				}
				for {
					p, err := tunnel.Receive()
					if err != nil || tunnel.Send(p) != nil {
						return
					}
				}
			}()
			return nil, ErrLater
		}, Apart, true
	case procApart:
		h, _, ok := s.Lookup(procSleep)
		return h, Apart, ok
	case procTwice:
		return func(_ context.Context, c *Call) (xdr.Marshaler, error) {
			c.Answer(data("once"), nil)
			c.Answer(data("more"), nil)
			return nil, ErrLater
		}, Apart, true
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
	l := Limits{MaxClients: 12000, MaxAnonymousClients: 12000, MaxClientRequests: 5, MinWorkers: 2, MaxWorkers: 10, PrioWorkers: 2}
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
	s.OnConnect(func(c *Conn) {
		if !s.guarded.Load() {
			c.SetAuthenticated()
		}
	})
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

// openFiles counts descriptors, with the poller's own: os.Open, unlike os.ReadDir,
// has it made, or the first test would find that it leaves two.
func openFiles(t testing.TB) int {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
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
