package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Mode tells where a procedure runs.
type Mode int

const (
	Inline       Mode = iota // where the call was read: it only looks at memory
	Pool                     // on a worker
	PoolPriority             // on a worker, also one kept free for short calls
)

// Handler answers a call. ctx ends when the client goes away.
type Handler func(ctx context.Context, call *Call) (xdr.Marshaler, error)

// Program is the procedures behind one program number.
type Program interface {
	Lookup(procedure uint32) (h Handler, mode Mode, ok bool)
}

// Limits bound what clients can make a server do. They are libvirt's, with
// its names in the configuration.
type Limits struct {
	MaxClients          int
	MaxAnonymousClients int // of these, not yet authenticated
	MaxClientRequests   int // calls of one client being served

	MinWorkers, MaxWorkers, PrioWorkers int

	KeepaliveInterval time.Duration // zero or less: never ping
	KeepaliveCount    int           // unanswered pings before the client is dropped

	SendQueue int // bytes waiting for a client that does not read; 0: 16 MiB
}

// Server serves programs to the clients of any number of sockets.
type Server struct {
	name        string
	encodeError func(error) *protocol.Error
	pool        *pool
	onConnect   []func(*Conn)
	programs    map[uint32]registered
	nextID      atomic.Uint64

	mu        sync.Mutex
	limits    Limits
	clients   map[uint64]*Conn
	listeners []*net.UnixListener
	closed    bool
}

type registered struct {
	version uint32
	Program
}

const defaultSendQueue = 16 << 20

// NewServer makes a server. encodeError gives an error its form on the wire.
func NewServer(name string, l Limits, encodeError func(error) *protocol.Error) *Server {
	if l.SendQueue == 0 {
		l.SendQueue = defaultSendQueue
	}
	return &Server{
		name: name, limits: l, encodeError: encodeError,
		pool:     newPool(l.MinWorkers, l.MaxWorkers, l.PrioWorkers),
		programs: map[uint32]registered{}, clients: map[uint64]*Conn{},
	}
}

// Name is the server's name for virt-admin.
func (s *Server) Name() string { return s.name }

// Register adds a program. Call it before Serve.
func (s *Server) Register(program, version uint32, p Program) {
	s.programs[program] = registered{version, p}
}

// OnConnect has f called for each new client before its first call is read.
func (s *Server) OnConnect(f func(*Conn)) { s.onConnect = append(s.onConnect, f) }

// ListenerOptions belong to one socket.
type ListenerOptions struct {
	ReadOnly bool
}

// Serve accepts clients until the listener or the server is closed, which is
// no error.
func (s *Server) Serve(l *net.UnixListener, o ListenerOptions) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	for {
		sock, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case isShortage(err):
			// Too many open files: clients wait in the backlog meanwhile.
			time.Sleep(100 * time.Millisecond)
			continue
		case err != nil:
			return fmt.Errorf("cannot accept clients any more: %w", err)
		}
		if c, err := newConn(s, sock, o); err != nil || !s.admit(c) {
			sock.Close()
		} else {
			go c.serve()
		}
	}
}

// reserved is the share of the client limit that only root can use, so that
// users cannot lock out the administrator.
const reserved = 10 // one in ten

// admit counts a new client in, unless there are too many.
func (s *Server) admit(c *Conn) bool {
	for _, f := range s.onConnect {
		f(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.limits.MaxClients
	if c.peer.UID != 0 {
		limit -= limit / reserved
	}
	if s.closed || len(s.clients) >= limit || !c.authenticated.Load() && s.anonymous() >= s.limits.MaxAnonymousClients {
		c.abandon()
		return false
	}
	s.clients[c.id] = c
	return true
}

// anonymous counts clients that are not authenticated; s.mu is held.
func (s *Server) anonymous() int {
	n := 0
	for _, c := range s.clients {
		if !c.authenticated.Load() {
			n++
		}
	}
	return n
}

func (s *Server) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, c.id)
}

// Clients lists the clients in the order in which they came.
func (s *Server) Clients() []*Conn {
	s.mu.Lock()
	list := make([]*Conn, 0, len(s.clients))
	for _, c := range s.clients {
		list = append(list, c)
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *Conn) int { return int(int64(a.id) - int64(b.id)) })
	return list
}

// ClientLimits is what virt-admin server-clients-info shows.
type ClientLimits struct {
	Max, Current            int
	AnonymousMax, Anonymous int
}

// ClientLimits tells the limits and how much of them is used.
func (s *Server) ClientLimits() ClientLimits {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ClientLimits{s.limits.MaxClients, len(s.clients), s.limits.MaxAnonymousClients, s.anonymous()}
}

// SetClientLimits changes the limits; clients beyond them stay.
func (s *Server) SetClientLimits(max, anonymous int) error {
	if max < 1 || anonymous < 1 {
		return errors.New("a server must admit at least one client")
	}
	if anonymous > max {
		return fmt.Errorf("the limit of unauthenticated clients (%d) must not be above that of all clients (%d)", anonymous, max)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits.MaxClients, s.limits.MaxAnonymousClients = max, anonymous
	return nil
}

// Pool tells what the workers do.
func (s *Server) Pool() PoolStats { return s.pool.stats() }

// SetPool changes the number of workers.
func (s *Server) SetPool(min, max, prio int) error { return s.pool.set(min, max, prio) }

// Shutdown stops accepting, lets calls that run finish until ctx ends, and
// closes all clients.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for _, l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	err := s.idle(ctx)
	for _, c := range s.Clients() {
		c.Close("the server shuts down")
	}
	s.pool.close()
	return err
}

// idle waits until no call is being served.
func (s *Server) idle(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for slices.ContainsFunc(s.Clients(), func(c *Conn) bool { return len(c.slots) > 0 }) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// lookup finds the handler of a call; the error is what libvirt's server
// answers for unknown ones.
func (s *Server) lookup(h protocol.MessageHeader) (Handler, Mode, error) {
	p, ok := s.programs[h.Prog]
	if !ok {
		return nil, 0, Errorf("Cannot find program %d version %d", h.Prog, h.Vers)
	}
	if p.version != h.Vers {
		return nil, 0, Errorf("program version mismatch (actual %x, expected %x)", h.Vers, p.version)
	}
	handler, mode, ok := p.Lookup(uint32(h.Proc))
	if !ok {
		return nil, 0, Errorf("unknown procedure: %d", h.Proc)
	}
	return handler, mode, nil
}

// Error is a failure of the protocol itself: libvirt's error 39 of domain 7,
// which clients map to "not supported".
type Error struct{ Text string }

// Errorf makes an Error.
func Errorf(format string, args ...any) *Error { return &Error{fmt.Sprintf(format, args...)} }

func (e *Error) Error() string { return e.Text }

// wireError gives an error the form clients get.
func (s *Server) wireError(err error) *protocol.Error {
	var own *Error
	if !errors.As(err, &own) {
		return s.encodeError(err)
	}
	template := "%s"
	return &protocol.Error{
		Code: protocol.ErrRpc, Domain: protocol.FromRpc, Level: protocol.ErrError,
		Message: &own.Text, Str1: &template, Str2: &own.Text, Int1: -1, Int2: -1,
	}
}

// Listen makes a socket. A stale one at the path is replaced; one that is in
// use is not.
func Listen(path string, mode os.FileMode, gid int) (*net.UnixListener, error) {
	if probe, err := net.Dial("unix", path); err == nil {
		probe.Close()
		return nil, fmt.Errorf("%s is in use: another daemon serves it", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s exists and is not a socket: remove it", path)
		}
		os.Remove(path)
	}
	return listenUnix(path, mode, gid)
}
