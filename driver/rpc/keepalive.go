package rpc

import (
	"sync"
	"sync/atomic"
	"time"

	"virtvzd/driver/protocol"
)

// keepalive pings a client that has been silent and gives it up when pings
// stay unanswered (src/rpc/virkeepalive.c). Anything received counts.
type keepalive struct {
	interval time.Duration
	count    int

	began  time.Time
	last   atomic.Int64 // when something was received, in ns since it began
	paused atomic.Bool  // we do not read, so silence is our own fault

	mu         sync.Mutex
	timer      *time.Timer
	pinged     time.Duration // since it began
	unanswered int
	stopped    bool
}

// EnableKeepalive begins to ping, for clients that said they answer.
func (c *Conn) EnableKeepalive() {
	k := &c.keepalive
	if k.interval <= 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.timer == nil && !k.stopped {
		k.heard()
		k.timer = time.AfterFunc(k.interval, func() { k.tick(c) })
	}
}

func (k *keepalive) heard() { k.last.Store(int64(time.Since(k.began))) }
func (k *keepalive) pause() { k.paused.Store(true) }
func (k *keepalive) resume() {
	k.heard()
	k.paused.Store(false)
}

func (k *keepalive) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	if k.timer != nil {
		k.timer.Stop()
	}
}

// tick runs when the client may have been silent for an interval.
func (k *keepalive) tick(c *Conn) {
	switch k.due() {
	case pingClient:
		k.send(c, protocol.KeepaliveProcPing)
	case dropClient:
		c.close("the client did not answer keepalive messages", true)
	}
}

type dueAction int

const (
	nothing dueAction = iota
	pingClient
	dropClient
)

// due decides what to do now and when to look again.
func (k *keepalive) due() dueAction {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, last := time.Since(k.began), time.Duration(k.last.Load())
	silent := now - last
	if last > k.pinged {
		k.unanswered = 0 // even if it was so soon that an interval has gone by since
	}
	switch {
	case k.stopped:
		return nothing
	case k.paused.Load():
		k.unanswered = 0
		k.timer.Reset(k.interval)
		return nothing
	case silent < k.interval:
		k.timer.Reset(max(k.interval-silent, time.Millisecond))
		return nothing
	case k.unanswered >= k.count:
		return dropClient
	}
	k.unanswered++
	k.pinged = now
	k.timer.Reset(k.interval)
	return pingClient
}

// message answers a ping. A pong needs nothing more: it was heard.
func (k *keepalive) message(c *Conn, h protocol.MessageHeader) {
	if h.Proc == int32(protocol.KeepaliveProcPing) {
		k.send(c, protocol.KeepaliveProcPong)
	}
}

func (k *keepalive) send(c *Conn, procedure protocol.KeepaliveProcedure) {
	frame, err := encodeFrame(protocol.MessageHeader{
		Prog: protocol.KeepaliveProgram, Vers: protocol.KeepaliveVersion, Proc: int32(procedure), Type: protocol.Message,
	}, nil)
	if err == nil && c.out.add(packet{kind: kindControl, frame: frame}) == nil {
		c.out.flush(c)
	}
}
