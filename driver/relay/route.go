package relay

import (
	"context"
	"net"
	"reflect"
	"sync"
	"time"
)

// route is a client's way to one daemon. The connection is made when a call
// needs it, and once more when it broke.
type route struct {
	session *Session
	driver  Driver
	opening chan struct{} // holds an element while the connection is made

	mu        sync.Mutex
	backend   *backend // nil: not connected
	caller    Caller   // whom the last connection was opened for
	closed    bool     // the client is gone
	callbacks map[int32]*callback
	nextID    int32
	returning bool // a goroutine tries to connect again
}

func newRoute(s *Session, d Driver) *route {
	return &route{session: s, driver: d, opening: make(chan struct{}, 1), callbacks: map[int32]*callback{}}
}

// open gives the connection, making it if there is none.
func (rt *route) open(ctx context.Context, who Caller) (*backend, error) {
	if b := rt.current(who); b != nil {
		return b, nil
	}
	select {
	case rt.opening <- struct{}{}:
		defer func() { <-rt.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b := rt.current(who); b != nil {
		return b, nil
	}
	b, err := rt.session.relay.dial(ctx, rt.driver, &who, hooks{event: rt.event, end: rt.ended})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := rt.restore(ctx, b); err != nil {
		b.close()
		return nil, errUnreachable(rt.driver, b.name, err)
	}
	return b, rt.use(b, who)
}

// current is the connection if it can be used for a caller. One opened for
// another is closed: it is not for both.
func (rt *route) current(who Caller) *backend {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.backend == nil || reflect.DeepEqual(rt.caller, who) {
		return rt.backend
	}
	rt.backend.close()
	rt.backend = nil
	return nil
}

// use makes b the connection, unless it or the client is gone already.
func (rt *route) use(b *backend, who Caller) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.caller = who
	if rt.closed {
		b.close()
		return net.ErrClosed
	}
	if !b.isDone() {
		rt.backend = b
	}
	return nil
}

// ended hears that a connection is gone. Who only listens makes no call that
// would bring it back.
func (rt *route) ended(b *backend) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.backend == b {
		rt.backend = nil
	}
	for _, cb := range rt.callbacks {
		if cb.backend == b {
			cb.backend = nil
		}
	}
	if len(rt.callbacks) > 0 && !rt.closed && !rt.returning {
		rt.returning = true
		go rt.comeBack()
	}
}

const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// comeBack connects again for the client's event callbacks, ever more
// seldom while there is nobody to connect to.
func (rt *route) comeBack() {
	ctx := rt.session.conn.Context()
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		rt.mu.Lock()
		if rt.backend != nil || len(rt.callbacks) == 0 {
			rt.returning = false
			rt.mu.Unlock()
			return
		}
		who := rt.caller
		rt.mu.Unlock()
		if _, err := rt.open(ctx, who); err != nil {
			rt.session.relay.config.Log.Debug("a client's events are not heard", "client", rt.session.conn.ID(), "driver", rt.driver, "error", err)
		}
	}
}

// drop gives up a connection that turned out to be broken.
func (rt *route) drop(b *backend) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if rt.backend == b {
		rt.backend = nil
	}
}

func (rt *route) close() {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.closed = true
	if rt.backend != nil {
		rt.backend.close()
	}
}
