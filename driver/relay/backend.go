package relay

import (
	"sync"
	"sync/atomic"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
)

// backend is one connection to a daemon. One goroutine reads it; whoever has
// something to send writes.
type backend struct {
	name  string // of the socket, for messages
	up    *rpc.Upstream
	heard atomic.Int64 // when something came last, or was handed over; unix nanoseconds

	hooks
	release func() // gives its place among all connections back

	mu      sync.Mutex
	serial  uint32
	waiting map[uint32]*waiting // calls without a reply
	tunnels map[uint32]tunnel   // streams, by the serial of their call
	ended   bool
	gone    chan struct{} // closed then
}

// tunnel is the other end of a stream: a client's (*rpc.Tunnel), or one of the
// daemon's own.
type tunnel interface {
	Send(rpc.StreamPacket) error        // takes what the daemon sends
	Receive() (rpc.StreamPacket, error) // gives what it is to be sent
	Abort(error)                        // the connection broke
}

// hooks are what the owner of a connection hears of. They run on the
// goroutine that reads and must not wait; nil ones are left out.
type hooks struct {
	event func(b *backend, info *protocol.Info, body []byte) // the body may be changed, not kept
	end   func(*backend)
}

// waiting is a call whose reply has not come.
type waiting struct {
	info   *protocol.Info
	tunnel tunnel
	reply  func(answer)
	sent   bool
}

// answer is the reply to a call, or why there is none: an rpc.RawError is the
// daemon's own, an *Error tells that the connection broke.
type answer struct {
	rpc.Frame // the body may be changed, not kept
	err       error
}

func newBackend(name string, up *rpc.Upstream, h hooks, release func()) *backend {
	b := &backend{
		name: name, up: up, hooks: h, release: release,
		waiting: map[uint32]*waiting{}, tunnels: map[uint32]tunnel{}, gone: make(chan struct{}),
	}
	go b.read()
	return b
}

// start sends a call, waiting for a daemon that does not read, and closes its
// files. It is false when the connection ended before the call was out: the
// daemon knows nothing of it, so another connection may be tried. Otherwise
// reply is called exactly once, usually on the goroutine that reads, so it
// must not wait; everything the daemon sends later comes after it.
func (b *backend) start(info *protocol.Info, args rpc.Frame, end tunnel, reply func(answer)) bool {
	b.mu.Lock()
	b.serial++
	args.MessageHeader = protocol.MessageHeader{
		Prog: info.Program, Vers: info.Version, Proc: int32(info.Number), Type: protocol.Call, Serial: b.serial,
	}
	if len(args.Files) > 0 {
		args.Type = protocol.CallWithFds
	}
	w := &waiting{info: info, tunnel: end, reply: reply}
	b.waiting[args.Serial] = w
	b.mu.Unlock()
	err := b.up.Send(args)
	b.mu.Lock()
	w.sent = err == nil
	_, open := b.waiting[args.Serial]
	left := open && (!w.sent || b.ended) // to us: fail does not know it
	if left {
		delete(b.waiting, args.Serial)
	}
	b.mu.Unlock()
	if err != nil {
		b.close()
		return !left
	}
	if left {
		reply(answer{err: errLost(b.name, info)})
	}
	return true
}

// isDone tells that the connection has ended.
func (b *backend) isDone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

// close ends the connection: calls and streams fail.
func (b *backend) close() { b.up.Close() }

// read serves the connection until it ends.
func (b *backend) read() {
	for {
		f, err := b.up.Receive()
		if err != nil {
			break
		}
		b.hear()
		b.take(f)
		b.hear() // a stream may have had to wait for whom it is for
	}
	b.up.Close()
	b.up.Release()
	b.fail()
}

func (b *backend) hear() { b.heard.Store(time.Now().UnixNano()) }

func (b *backend) take(f rpc.Frame) {
	switch f.Type {
	case protocol.Reply, protocol.ReplyWithFds:
		b.reply(f)
	case protocol.Stream, protocol.StreamHole:
		b.stream(f)
	case protocol.Message:
		if info := events[uint32(f.Proc)]; info != nil && f.Prog == info.Program && b.event != nil {
			b.event(b, info, f.Body)
		}
		if f.Prog == protocol.KeepaliveProgram && f.Proc == int32(protocol.KeepaliveProcPing) { // only where it was asked for
			pong := protocol.MessageHeader{Prog: f.Prog, Vers: f.Vers, Proc: int32(protocol.KeepaliveProcPong), Type: protocol.Message}
			go b.up.Send(rpc.Frame{MessageHeader: pong})
		}
	}
}

func (b *backend) reply(f rpc.Frame) {
	b.mu.Lock()
	w, ok := b.waiting[f.Serial]
	delete(b.waiting, f.Serial)
	if ok && w.tunnel != nil && f.Status == protocol.StatusOK {
		b.tunnels[f.Serial] = w.tunnel
	}
	b.mu.Unlock()
	switch {
	case !ok:
		for _, file := range f.Files {
			file.Close()
		}
		if f.Status == protocol.StatusError {
			// libvirt's answer to a hole that it cannot write has the type of a reply.
			f.Type = protocol.Stream
			b.stream(f)
		}
	case f.Status != protocol.StatusOK:
		w.reply(answer{err: rpc.RawError(f.Body)})
	default:
		w.reply(answer{Frame: f})
		if w.tunnel != nil {
			go b.upload(w.tunnel, f.MessageHeader)
		}
	}
}

// stream passes a packet on to the client. A client that reads slowly makes
// this connection wait, which is the client's own.
func (b *backend) stream(f rpc.Frame) {
	b.mu.Lock()
	tunnel := b.tunnels[f.Serial]
	b.mu.Unlock()
	if tunnel == nil {
		return // late: the client is done with it
	}
	err := tunnel.Send(rpc.StreamPacket{Type: f.Type, Status: f.Status, Body: f.Body})
	if err != nil || f.Status != protocol.StatusContinue {
		b.mu.Lock()
		delete(b.tunnels, f.Serial)
		b.mu.Unlock()
	}
}

// upload passes on what the client sends, until the stream or the connection
// ends. A daemon that does not read makes the client wait.
func (b *backend) upload(end tunnel, h protocol.MessageHeader) {
	for {
		p, err := end.Receive()
		if err != nil {
			return
		}
		h.Type, h.Status = p.Type, p.Status
		if b.up.Send(rpc.Frame{MessageHeader: h, Body: p.Body}) != nil {
			b.close()
			return
		}
	}
}

// fail answers whatever still waits when the connection has ended. Calls on
// their way out are left to those who send them.
func (b *backend) fail() {
	var calls []*waiting
	b.mu.Lock()
	for serial, w := range b.waiting {
		if w.sent {
			calls = append(calls, w)
			delete(b.waiting, serial)
		}
	}
	tunnels := b.tunnels
	b.tunnels, b.ended = nil, true
	b.mu.Unlock()
	close(b.gone)
	b.release()
	if b.end != nil {
		b.end(b)
	}
	for _, w := range calls {
		w.reply(answer{err: errLost(b.name, w.info)})
	}
	for _, tunnel := range tunnels {
		tunnel.Abort(errStreamLost(b.name))
	}
}
