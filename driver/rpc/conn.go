package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Conn is one client.
type Conn struct {
	id        uint64
	server    *Server
	peer      Peer
	readOnly  bool
	connected time.Time

	ctx    context.Context
	cancel context.CancelFunc

	authenticated atomic.Bool
	asked         bool // counts as one that is being asked who it is; under the server's mu
	value         any
	slots         chan struct{} // one element for each call whose reply is not out
	leaving       atomic.Bool   // close when all replies are out
	running       atomic.Int32  // calls whose handlers have not returned

	link      link
	in        input
	out       output
	keepalive keepalive

	mu         sync.Mutex // protects what follows
	streams    map[streamKey]endpoint
	impatience *time.Timer // ends a client that does not authenticate
	onClose    []func()
	gone       bool // the onClose functions have been taken to be called

	closeOnce sync.Once
	reason    atomic.Pointer[string]
	givenUp   atomic.Bool
}

func newConn(s *Server, sock *net.UnixConn, o ListenerOptions) (*Conn, error) {
	s.mu.Lock()
	limits := s.limits
	s.mu.Unlock()
	c := &Conn{
		id: s.nextID.Add(1), server: s, readOnly: o.ReadOnly, connected: time.Now(),
		slots: make(chan struct{}, max(1, limits.MaxClientRequests)),
	}
	c.in.link, c.in.timeout, c.in.conn = &c.link, limits.FrameTimeout, c
	err := c.link.init(sock, &c.in)
	if err == nil {
		c.peer, err = peerOf(c.link.raw)
	}
	if err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.out.init(limits.SendQueue)
	c.keepalive.began, c.keepalive.interval, c.keepalive.count = c.connected, limits.KeepaliveInterval, limits.KeepaliveCount
	return c, nil
}

// ID is unique in the server's lifetime.
func (c *Conn) ID() uint64 { return c.id }

// Peer is the process that connected.
func (c *Conn) Peer() Peer { return c.peer }

// ReadOnly tells whether the client came through a read-only socket.
func (c *Conn) ReadOnly() bool { return c.readOnly }

// ConnectedAt is when the client came.
func (c *Conn) ConnectedAt() time.Time { return c.connected }

// SetAuthenticated tells that the client is no longer anonymous, which is
// what the limit of anonymous clients is about.
func (c *Conn) SetAuthenticated() {
	c.authenticated.Store(true)
	c.server.mu.Lock()
	c.server.known(c)
	c.server.mu.Unlock()
	c.server.serveWaiting() // its place is another's
}

// Value and SetValue keep what the server's owner knows of the client. Set
// it in OnConnect; it must not change later.
func (c *Conn) Value() any     { return c.value }
func (c *Conn) SetValue(v any) { c.value = v }

// Done is closed when the client is gone.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Context ends when the client is gone.
func (c *Conn) Context() context.Context { return c.ctx }

// Reason is why the connection was closed; empty while it is open.
func (c *Conn) Reason() string {
	if r := c.reason.Load(); r != nil {
		return *r
	}
	return ""
}

// GivenUp tells whether the connection was closed because the client was too
// slow or silent, which nobody but the server can know.
func (c *Conn) GivenUp() bool { return c.givenUp.Load() }

// OnClose has f called once the client is gone, in the order of
// registration, on a goroutine of its own.
func (c *Conn) OnClose(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		go f()
		return
	}
	c.onClose = append(c.onClose, f)
}

// Close ends the connection at once. What was queued is not sent, calls that
// run see their context end.
func (c *Conn) Close(reason string) { c.close(reason, false) }

func (c *Conn) close(reason string, givenUp bool) {
	c.closeOnce.Do(func() {
		c.reason.Store(&reason)
		c.givenUp.Store(givenUp)
		c.cancel()
		c.link.sock.Close()
		c.out.close()
		c.keepalive.stop()
		c.mu.Lock()
		streams := c.streams
		c.streams = nil
		if c.impatience != nil {
			c.impatience.Stop()
		}
		c.mu.Unlock()
		for _, s := range streams {
			s.stop(io.ErrClosedPipe)
		}
		c.server.stopWaiting(c)
	})
}

// CloseAfterReply ends the connection once the replies of all calls that are
// being served are sent. Called outside of a call it may close at once.
func (c *Conn) CloseAfterReply() {
	c.leaving.Store(true)
	c.leaveWhenIdle()
}

func (c *Conn) leaveWhenIdle() {
	if c.leaving.Load() && len(c.slots) == 0 {
		c.Close("the client closed the connection")
	}
}

// release gives a call's slot back, when its reply is out.
func (c *Conn) release() {
	<-c.slots
	c.leaveWhenIdle()
}

// ended releases all that belongs to the client.
func (c *Conn) ended() {
	c.server.forget(c)
	c.in.close()
	c.mu.Lock()
	callbacks := c.onClose
	c.onClose, c.gone = nil, true
	c.mu.Unlock()
	for _, f := range callbacks {
		f()
	}
}

// serve reads until the client goes or breaks the protocol.
func (c *Conn) serve() {
	defer c.server.serving.Done()
	var err error
	for err == nil {
		var frame []byte
		if frame, err = c.in.frame(); err == nil {
			c.keepalive.heard()
			err = c.dispatch(frame)
		}
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the client disconnected")
	}
	c.Close(err.Error())
	c.ended()
}

// stallCheck is how often we look whether a client that is not being read
// has gone away: the end of file is behind the data that waits.
const stallCheck = 500 * time.Millisecond

// stall tells that the client is not read until resume is called. Its silence
// is our own fault meanwhile.
func (c *Conn) stall() (resume func()) {
	c.keepalive.pause()
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(stallCheck)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-c.ctx.Done():
				return
			case <-tick.C:
				if c.link.hungUp() {
					c.Close("the client disconnected")
				}
			}
		}
	}()
	return func() {
		close(stop)
		c.keepalive.resume()
	}
}

// Send queues a message the client did not ask for. It never waits: a
// client that does not read is disconnected when its queue is full.
func (c *Conn) Send(program, version, procedure uint32, body xdr.Marshaler) error {
	frame, err := encodeFrame(protocol.MessageHeader{
		Prog: program, Vers: version, Proc: int32(procedure), Type: protocol.Message, Serial: 1,
	}, body)
	if err != nil {
		return err
	}
	if err := c.out.add(packet{kind: kindEvent, frame: frame}); err != nil {
		c.close(err.Error(), err == errSlowClient)
		return err
	}
	c.out.flush(c)
	return nil
}
