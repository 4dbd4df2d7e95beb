package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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
	sock      *net.UnixConn
	peer      Peer
	readOnly  bool
	connected time.Time

	ctx    context.Context
	cancel context.CancelFunc

	authenticated atomic.Bool
	value         any
	slots         chan struct{} // one element for each call being served

	in        input
	out       output
	keepalive keepalive

	mu      sync.Mutex // protects streams and onClose
	streams map[streamKey]*Stream
	onClose []func()

	closeOnce sync.Once
	reason    atomic.Pointer[string]
}

func newConn(s *Server, sock *net.UnixConn, o ListenerOptions) (*Conn, error) {
	peer, err := peerOf(sock)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	limits := s.limits
	s.mu.Unlock()
	c := &Conn{
		id: s.nextID.Add(1), server: s, sock: sock, peer: peer, readOnly: o.ReadOnly, connected: time.Now(),
		slots: make(chan struct{}, max(1, limits.MaxClientRequests)),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.out.init(limits.SendQueue)
	c.keepalive.interval, c.keepalive.count = limits.KeepaliveInterval, limits.KeepaliveCount
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
func (c *Conn) SetAuthenticated() { c.authenticated.Store(true) }

// Value and SetValue keep what the server's owner knows of the client. Set
// it in OnConnect; it must not change later.
func (c *Conn) Value() any     { return c.value }
func (c *Conn) SetValue(v any) { c.value = v }

// Done is closed when the client is gone.
func (c *Conn) Done() <-chan struct{} { return c.ctx.Done() }

// Reason is why the connection was closed.
func (c *Conn) Reason() string {
	if r := c.reason.Load(); r != nil {
		return *r
	}
	return ""
}

// OnClose has f called once the client is gone, in the order of
// registration, on a goroutine of its own.
func (c *Conn) OnClose(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onClose = append(c.onClose, f)
}

// Close ends the connection at once.
func (c *Conn) Close(reason string) {
	c.closeOnce.Do(func() {
		c.reason.Store(&reason)
		c.cancel()
		c.sock.Close()
		c.out.close()
		c.keepalive.stop()
		c.mu.Lock()
		streams := c.streams
		c.streams = nil
		c.mu.Unlock()
		for _, s := range streams {
			s.abortLocal(io.ErrClosedPipe)
		}
	})
}

// CloseAfterReply ends the connection once everything queued so far, and the
// reply of the call being handled inline, is sent.
func (c *Conn) CloseAfterReply() { c.out.closeWhenEmpty() }

// abandon ends a connection that was not admitted.
func (c *Conn) abandon() {
	c.Close("too many clients")
	go c.ended()
}

// ended releases all that belongs to the client.
func (c *Conn) ended() {
	c.server.forget(c)
	closeFiles(c.in.files)
	c.mu.Lock()
	callbacks := c.onClose
	c.onClose = nil
	c.mu.Unlock()
	for _, f := range callbacks {
		f()
	}
}

// serve reads until the client goes or breaks the protocol.
func (c *Conn) serve() {
	var err error
	for err == nil {
		var frame []byte
		if frame, err = c.in.frame(c.sock); err == nil {
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

// dispatch handles one frame, which is valid only for the time of the call.
func (c *Conn) dispatch(frame []byte) error {
	h, body := parseHeader(frame), frame[frameStart:]
	switch {
	case h.Prog == protocol.KeepaliveProgram:
		c.keepalive.message(c, h)
		return nil
	case h.Type == protocol.Call:
		return c.call(h, body, nil)
	case h.Type == protocol.CallWithFds:
		d := xdr.NewDecoder(body)
		n := d.Uint32()
		if d.Err() != nil || n > MaxFiles {
			return fmt.Errorf("a message announces %d descriptors, the limit is %d", n, MaxFiles)
		}
		body = append([]byte(nil), body[4:]...) // reading descriptors reuses the buffer
		files, err := c.in.take(c.sock, int(n))
		if err != nil {
			return err
		}
		return c.call(h, body, files)
	case h.Type == protocol.Stream:
		return c.streamPacket(h, body)
	}
	c.refuse(h, Errorf("Unexpected message type %d", h.Type))
	return nil
}

// Call is one request.
type Call struct {
	Conn    *Conn
	Header  protocol.MessageHeader
	Payload []byte     // the encoded arguments; an inline handler must not keep them
	Files   []*os.File // received with the call, closed after it unless taken

	replyFiles []*os.File
	stream     *Stream
}

// TakeFiles makes the handler the owner of the received descriptors.
func (c *Call) TakeFiles() []*os.File {
	files := c.Files
	c.Files = nil
	return files
}

// ReplyFiles sends descriptors with the reply; they are closed after.
func (c *Call) ReplyFiles(files ...*os.File) { c.replyFiles = append(c.replyFiles, files...) }

// call serves a request when one of the client's slots is free; until then
// nothing more is read from it.
func (c *Conn) call(h protocol.MessageHeader, body []byte, files []*os.File) error {
	select {
	case c.slots <- struct{}{}:
	default:
		c.keepalive.pause()
		select {
		case c.slots <- struct{}{}:
			c.keepalive.resume()
		case <-c.ctx.Done():
			closeFiles(files)
			return c.ctx.Err()
		}
	}
	handler, mode, err := c.server.lookup(h)
	if err != nil {
		closeFiles(files)
		c.refuse(h, err)
		<-c.slots
		return nil
	}
	call := &Call{Conn: c, Header: h, Payload: body, Files: files}
	if mode == Inline {
		c.answer(call, handler, c.out.flushHere)
		return nil
	}
	call.Payload = append([]byte(nil), body...)
	c.server.pool.run(mode == PoolPriority, func() { c.answer(call, handler, c.out.flushElsewhere) })
	return nil
}

// answer runs the handler and sends what it returns.
func (c *Conn) answer(call *Call, handler Handler, flush func(*Conn)) {
	defer func() { <-c.slots }()
	ret, err := handler(c.ctx, call)
	closeFiles(call.Files)
	h := call.Header
	h.Type, h.Status = protocol.Reply, protocol.StatusOK
	if err == nil && len(call.replyFiles) > 0 {
		h.Type, ret = protocol.ReplyWithFds, withFiles{len(call.replyFiles), ret}
	}
	var frame []byte
	if err == nil {
		frame, err = encodeFrame(h, ret)
	}
	if err != nil {
		closeFiles(call.replyFiles)
		call.replyFiles = nil
		if call.stream != nil {
			call.stream.drop(err)
		}
		frame = c.errorFrame(h, err)
	}
	if c.out.add(outgoing{frame, call.replyFiles}) != nil {
		closeFiles(call.replyFiles)
	}
	if call.stream != nil {
		close(call.stream.started)
	}
	flush(c)
}

// refuse answers a call that reaches no handler.
func (c *Conn) refuse(h protocol.MessageHeader, err error) {
	h.Type = protocol.Reply
	c.out.add(outgoing{frame: c.errorFrame(h, err)})
	c.out.flushHere(c)
}

func (c *Conn) errorFrame(h protocol.MessageHeader, err error) []byte {
	if h.Type == protocol.ReplyWithFds {
		h.Type = protocol.Reply
	}
	h.Status = protocol.StatusError
	frame, encodeErr := encodeFrame(h, c.server.wireError(err))
	if encodeErr != nil { // the text is too long for the wire
		frame, _ = encodeFrame(h, c.server.wireError(errors.New("the error cannot be told: "+encodeErr.Error())))
	}
	return frame
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
	if err := c.out.add(outgoing{frame: frame}); err != nil {
		c.Close(err.Error())
		return err
	}
	c.out.flushElsewhere(c)
	return nil
}
