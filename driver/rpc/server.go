package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	Apart                    // on a goroutine of its own: it waits for another daemon, which may hang
)

// Handler answers a call. ctx ends when the client goes away. With the error
// ErrLater the answer is what Call.Answer will be given.
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

	SendQueue    int           // bytes of events waiting for a client that does not read; 0: 16 MiB
	AuthTimeout  time.Duration // for a client to authenticate, calls being served not counted; 0: one minute
	FrameTimeout time.Duration // for the rest of a message once begun, or 64 KiB of it; 0: one minute
}

// Server serves programs to the clients of any number of sockets.
type Server struct {
	name        string
	encodeError func(error) *protocol.Error
	pool        *pool
	onConnect   []func(*Conn)
	programs    map[uint32]registered
	nextID      atomic.Uint64
	draining    atomic.Bool // no new calls
	large       budget
	serving     sync.WaitGroup // the goroutines that read

	mu        sync.Mutex
	limits    Limits
	clients   map[uint64]*Conn
	waiting   []*Conn // of these, not yet served
	asked     int     // of these, being asked who they are
	users     map[uint32]*usage
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
	if l.AuthTimeout == 0 {
		l.AuthTimeout = defaultAuthTimeout
	}
	if l.FrameTimeout == 0 {
		l.FrameTimeout = defaultFrameTimeout
	}
	return &Server{
		name: name, limits: l, encodeError: encodeError,
		pool:     newPool(l.MinWorkers, max(1, l.MinWorkers, l.MaxWorkers), l.PrioWorkers),
		programs: map[uint32]registered{}, clients: map[uint64]*Conn{}, users: map[uint32]*usage{}, large: budget{used: map[uint32]int{}},
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
// no error. The server closes the listener when it shuts down.
func (s *Server) Serve(l *net.UnixListener, o ListenerOptions) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return l.Close()
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
		s.ServeConn(sock, o) // a client that is refused finds out by itself
	}
}

// ServeConn serves one client, whose socket it closes in the end. The error
// tells why the client was not admitted.
func (s *Server) ServeConn(sock *net.UnixConn, o ListenerOptions) (*Conn, error) {
	c, err := newConn(s, sock, o)
	if err != nil {
		sock.Close()
		return nil, err
	}
	for _, f := range s.onConnect {
		f(c)
	}
	if err := s.admit(c); err != nil {
		c.Close(err.Error())
		go c.ended()
		return nil, err
	}
	s.serveWaiting()
	return c, nil
}

// reserved is the share of the client limit that only root can use, so that
// users cannot lock out the administrator.
const reserved = 10 // one in ten

func (s *Server) forget(c *Conn) {
	s.mu.Lock()
	if _, admitted := s.clients[c.id]; admitted {
		s.known(c)
		delete(s.clients, c.id)
		u := s.users[c.peer.UID]
		if u.clients--; u.clients == 0 {
			delete(s.users, c.peer.UID)
		}
	}
	s.mu.Unlock()
	s.serveWaiting()
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
	return ClientLimits{s.limits.MaxClients, len(s.clients), s.limits.MaxAnonymousClients, s.asked}
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
	s.limits.MaxClients, s.limits.MaxAnonymousClients = max, anonymous
	s.mu.Unlock()
	s.serveWaiting()
	return nil
}

// Pool tells what the workers do.
func (s *Server) Pool() PoolStats { return s.pool.stats() }

// SetPool changes the number of workers.
func (s *Server) SetPool(min, max, prio int) error { return s.pool.set(min, max, prio) }

// Shutdown stops accepting clients and calls, lets the calls that run finish
// and their replies go out until ctx ends, closes all clients and waits, again
// until ctx ends, for what their owners do at the end. The error is ctx's when
// something was cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for _, l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	s.draining.Store(true)
	err := waitUntil(ctx, func() bool {
		return !slices.ContainsFunc(s.Clients(), func(c *Conn) bool { return len(c.slots) > 0 })
	})
	for _, c := range s.Clients() {
		c.Close("the server shuts down")
	}
	s.pool.close()
	ended := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return errors.Join(err, waitUntil(ctx, func() bool { return !s.pool.running() }))
}

// waitUntil asks again and again. Its use is rare and its conditions are
// spread over many clients.
func waitUntil(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// lookup finds the handler of a call; the error is what libvirt's server
// answers (virnetserverprogram.c), in its words. Numbers are printed as the
// signed ones that C's format makes of them.
func (s *Server) lookup(h protocol.MessageHeader) (Handler, Mode, error) {
	p, ok := s.programs[h.Prog]
	if !ok || p.version != h.Vers {
		return nil, 0, Errorf("Cannot find program %d version %d", int32(h.Prog), int32(h.Vers))
	}
	if h.Status != protocol.StatusOK {
		return nil, 0, Errorf("Unexpected message status %d", uint32(h.Status))
	}
	handler, mode, ok := p.Lookup(uint32(h.Proc))
	if !ok {
		return nil, 0, Errorf("unknown procedure: %d", h.Proc)
	}
	return handler, mode, nil
}
