package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

// daemon is a libvirt daemon whose every answer the test decides.
type daemon struct {
	t        *testing.T
	path     string
	firstID  int32 // before those of the event callbacks it gives out
	handlers map[string]rpc.Handler

	server   *rpc.Server
	listener net.Listener

	mu     sync.Mutex
	opened []protocol.ConnectOpenArgs
	whos   []protocol.ConnectSetIdentityArgs
	names  []string // of the calls that came, in order
}

// startDaemon serves a socket in dir until the test ends or stop is called.
func startDaemon(t *testing.T, dir, socket string, handlers map[string]rpc.Handler) *daemon {
	t.Helper()
	d := &daemon{t: t, path: filepath.Join(dir, socket), firstID: 70, handlers: handlers}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	d.server = rpc.NewServer("fake", rpc.Limits{MaxClients: 100, MaxAnonymousClients: 100, MaxClientRequests: 5, MaxWorkers: 20}, encodeError)
	d.server.OnConnect(func(c *rpc.Conn) { c.SetAuthenticated() })
	d.server.Register(protocol.RemoteProgram, protocol.RemoteVersion, d)
	l, err := rpc.Listen(d.path, 0o600, os.Getgid())
	if err != nil {
		d.t.Fatal(err)
	}
	d.listener = l
	go d.server.Serve(l, rpc.ListenerOptions{})
}

// stop is the end of the daemon as systemd does it; the socket goes too.
func (d *daemon) stop() {
	os.Remove(d.path)
	d.crash()
}

// crash leaves the socket behind.
func (d *daemon) crash() {
	d.listener.Close()
	for _, c := range d.server.Clients() {
		c.Close("crash")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	d.server.Shutdown(ctx)
}

func (d *daemon) Lookup(number uint32) (rpc.Handler, rpc.Mode, bool) {
	info := byNumber(number)
	if info == nil {
		return nil, 0, false
	}
	return func(ctx context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		d.mu.Lock()
		d.names = append(d.names, info.Name)
		h := d.handlers[info.Name]
		d.mu.Unlock()
		if h != nil {
			return h(ctx, c)
		}
		return d.usual(info, c)
	}, rpc.Pool, true
}

// usual is what a daemon answers unless the test wants something else.
func (d *daemon) usual(info *protocol.Info, c *rpc.Call) (xdr.Marshaler, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch info {
	case protocol.AuthList.Info:
		return protocol.AuthListRet{Types: []protocol.AuthType{protocol.AuthTypeNone}}, nil
	case protocol.ConnectOpen.Info:
		d.opened = append(d.opened, protocol.ConnectOpenArgs{})
		return xdr.Void{}, xdr.Unmarshal(c.Payload, &d.opened[len(d.opened)-1])
	case protocol.ConnectSetIdentity.Info:
		d.whos = append(d.whos, protocol.ConnectSetIdentityArgs{})
		return xdr.Void{}, xdr.Unmarshal(c.Payload, &d.whos[len(d.whos)-1])
	case protocol.ConnectNetworkEventRegisterAny.Info:
		d.firstID++
		return protocol.ConnectNetworkEventRegisterAnyRet{CallbackID: d.firstID}, nil
	}
	return info.NewRet(), nil
}

// announce sends an event to all who are connected, whatever they asked for.
func (d *daemon) announce(callback int32, name string) {
	for _, c := range d.server.Clients() {
		sendEvent(c, callback, name)
	}
}

func sendEvent(c *rpc.Conn, callback int32, name string) {
	info := protocol.NetworkEventLifecycle.Info
	c.Send(info.Program, info.Version, info.Number, protocol.NetworkEventLifecycleMsg{CallbackID: callback, Net: protocol.NonnullNetwork{Name: name}})
}

// handle changes how a procedure is answered.
func (d *daemon) handle(name string, h rpc.Handler) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.handlers == nil {
		d.handlers = map[string]rpc.Handler{}
	}
	d.handlers[name] = h
}

func (d *daemon) givesIDsFrom(id int32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.firstID = id
}

// opens are the connections so far, and the identities they were given.
func (d *daemon) opens() ([]protocol.ConnectOpenArgs, []protocol.ConnectSetIdentityArgs) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.opened), slices.Clone(d.whos)
}

func (d *daemon) calls(name string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, have := range d.names {
		if have == name {
			n++
		}
	}
	return n
}

func byNumber(number uint32) *protocol.Info {
	for _, info := range protocol.Remote() {
		if info.Number == number && !info.IsEvent() {
			return info
		}
	}
	return nil
}

func encodeError(err error) *protocol.Error {
	e := &Error{Code: protocol.ErrInternalError, Detail: err.Error()}
	errors.As(err, &e)
	return &protocol.Error{Code: e.Code, Message: &e.Detail, Level: protocol.ErrError}
}

// front is our own daemon with nothing but a relay.
type front struct {
	*rpc.Server
	relay *Relay
	dir   string // where the daemons' sockets are looked for
	path  string
	who   atomic.Pointer[Caller] // of every call
}

func (f *front) Lookup(number uint32) (rpc.Handler, rpc.Mode, bool) {
	info := byNumber(number)
	if info == nil {
		return nil, 0, false
	}
	owner, ok := Owner(info)
	return func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		return c.Conn.Value().(*Session).Forward(*f.who.Load(), owner, c, info)
	}, rpc.Apart, ok
}

// newFront checks in the end that nothing is left.
func newFront(t *testing.T, c Config) *front {
	t.Helper()
	before := runtime.NumGoroutine()
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	c.Dir = dir
	f := &front{relay: New(c), dir: dir, path: filepath.Join(dir, "front")}
	f.who.Store(&Caller{PID: 1, StartTime: 2, UID: 3})
	f.Server = rpc.NewServer("front", rpc.Limits{MaxClients: 100, MaxAnonymousClients: 100, MaxClientRequests: 5, MaxWorkers: 1, SendQueue: 1 << 20}, encodeError)
	f.Register(protocol.RemoteProgram, protocol.RemoteVersion, f)
	f.OnConnect(func(c *rpc.Conn) { c.SetAuthenticated(); c.SetValue(f.relay.Session(c)) })
	l, err := rpc.Listen(f.path, 0o600, os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	go f.Serve(l, rpc.ListenerOptions{})
	t.Cleanup(func() { // after the daemons' own
		defer os.RemoveAll(dir)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := f.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		eventually(t, "all connections are closed", func() bool { return f.connections() == 0 })
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return f
}

// connections is how many to other daemons are open.
func (f *front) connections() int {
	f.relay.mu.Lock()
	defer f.relay.mu.Unlock()
	return f.relay.total
}

func (f *front) dial(t *testing.T) *rpctest.Client { return rpctest.Dial(t, f.path) }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<16)
	t.Errorf("it does not come true that %s\n%s", what, buf[:runtime.Stack(buf, true)])
}

func start(t testing.TB, c *rpctest.Client, info *protocol.Info, args xdr.Marshaler) uint32 {
	t.Helper()
	body, err := xdr.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	return c.Start(info.Program, info.Version, info.Number, body)
}

func do(t testing.TB, c *rpctest.Client, info *protocol.Info, args xdr.Marshaler) rpctest.Packet {
	t.Helper()
	serial := start(t, c, info, args)
	for {
		if p := c.Next(); p.Serial == serial && p.Type == protocol.Reply {
			return p
		}
	}
}

// works is a call that must succeed.
func works(t testing.TB, c *rpctest.Client) {
	t.Helper()
	if p := do(t, c, protocol.NetworkLookupByName.Info, protocol.NetworkLookupByNameArgs{Name: "lan"}); p.Status != protocol.StatusOK {
		t.Fatalf("a plain call fails: %s", *p.Error(t).Message)
	}
}

// fails is an answer that must be an error with these words.
func fails(t testing.TB, p rpctest.Packet, code int32, words ...string) {
	t.Helper()
	e := p.Error(t)
	for _, w := range words {
		if !strings.Contains(*e.Message, w) {
			t.Errorf("%q is missing in %q", w, *e.Message)
		}
	}
	if e.Code != code {
		t.Errorf("code %d, want %d: %s", e.Code, code, *e.Message)
	}
}

// silent accepts connections on a socket and never says anything.
func silent(t *testing.T, dir, socket string) (accepted func() int) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(dir, socket))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
		for _, c := range conns {
			c.Close()
		}
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(conns)
	}
}

// rawDaemon answers each message with bytes of the test's choice.
func rawDaemon(t *testing.T, path string, answer func(protocol.MessageHeader) []byte) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	clients.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			clients.Go(func() {
				defer c.Close()
				for {
					h, err := readHeader(c)
					if err != nil {
						return
					}
					c.Write(answer(h))
				}
			})
		}
	})
	stop = sync.OnceFunc(func() { l.Close() })
	t.Cleanup(stop)
	return stop
}

func readHeader(r io.Reader) (h protocol.MessageHeader, err error) {
	var start [28]byte
	if _, err := io.ReadFull(r, start[:]); err != nil {
		return h, err
	}
	h.DecodeXDR(xdr.NewDecoder(start[4:]))
	_, err = io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(start[:]))-28)
	return h, err
}

// plainReply is the raw form of success.
func plainReply(h protocol.MessageHeader) []byte {
	h.Type = protocol.Reply
	if h.Proc == int32(protocol.AuthList.Number) {
		return rpctest.Frame(h, []byte{0, 0, 0, 1, 0, 0, 0, 0})
	}
	return rpctest.Frame(h, nil)
}
