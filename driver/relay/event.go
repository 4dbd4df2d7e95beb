package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// callback is one event callback of a client. Registrations, their answers
// and events all begin with its id; the client's never changes, the
// daemon's does with every connection.
type callback struct {
	id       int32
	register *protocol.Info
	args     []byte // of its registration, for the next connection

	backend *backend // nil: not registered anywhere
	theirs  int32    // its id there
}

const (
	maxCallbacks = 256     // of one client with one driver
	maxArguments = 4 << 10 // of one registration, which names one object at most
)

// register passes a registration on and keeps it.
func (rt *route) register(b *backend, c *rpc.Call, info *protocol.Info) (bool, error) {
	rt.mu.Lock()
	n := len(rt.callbacks)
	rt.mu.Unlock()
	if n >= maxCallbacks {
		return false, &Error{Code: protocol.ErrOperationFailed, Detail: "this client has too many event callbacks: remove some before adding more"}
	}
	if len(c.Payload) > maxArguments {
		return false, &Error{Code: protocol.ErrInvalidArg, Detail: "the name of the object to watch is too long"}
	}
	cb := &callback{register: info, args: bytes.Clone(c.Payload)}
	return b.start(info, rpc.Frame{Body: c.Payload}, nil, func(a answer) {
		if a.err == nil && len(a.Body) >= 4 {
			rt.add(cb, b, idOf(a.Body))
			setID(a.Body, cb.id)
		}
		pass(c, a)
	}), nil
}

// add keeps a callback that a daemon accepted.
func (rt *route) add(cb *callback, b *backend, theirs int32) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for rt.callbacks[rt.nextID] != nil {
		rt.nextID = (rt.nextID + 1) & math.MaxInt32
	}
	cb.id, cb.backend, cb.theirs = rt.nextID, b, theirs
	rt.nextID = (rt.nextID + 1) & math.MaxInt32
	rt.callbacks[cb.id] = cb
}

// deregister forgets a callback, also when its daemon is away.
func (rt *route) deregister(c *rpc.Call, info *protocol.Info) (xdr.Marshaler, error) {
	if len(c.Payload) < 4 {
		return nil, rpc.Errorf("the arguments of %s end too early", info.Name)
	}
	rt.mu.Lock()
	cb := rt.callbacks[idOf(c.Payload)]
	if cb == nil {
		rt.mu.Unlock()
		return nil, &Error{Code: protocol.ErrInternalError, Detail: fmt.Sprintf(
			"%s event callback %d not registered", rt.driver, idOf(c.Payload))}
	}
	delete(rt.callbacks, cb.id)
	b, theirs := cb.backend, cb.theirs
	rt.mu.Unlock()
	if b == nil {
		return xdr.Void{}, nil
	}
	setID(c.Payload, theirs)
	sent := b.start(info, rpc.Frame{Body: c.Payload}, nil, func(a answer) {
		if _, lost := a.err.(*Error); lost {
			a.err = nil // it went with the connection
		}
		pass(c, a)
	})
	if !sent {
		return xdr.Void{}, nil
	}
	return nil, rpc.ErrLater
}

// restore registers the client's callbacks with a new connection. One that
// is refused, as its object is gone, stays silent and is tried again with
// the next.
func (rt *route) restore(ctx context.Context, b *backend) error {
	for _, cb := range rt.snapshot() {
		done := make(chan struct{})
		sent := b.start(cb.register, rpc.Frame{Body: cb.args}, nil, func(a answer) {
			if a.err == nil && len(a.Body) >= 4 {
				rt.mu.Lock()
				cb.backend, cb.theirs = b, idOf(a.Body)
				rt.mu.Unlock()
			}
			close(done)
		})
		if !sent {
			return errLost(b.name, cb.register)
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (rt *route) snapshot() []*callback {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	list := make([]*callback, 0, len(rt.callbacks))
	for _, cb := range rt.callbacks {
		list = append(list, cb)
	}
	slices.SortFunc(list, func(x, y *callback) int { return int(x.id - y.id) })
	return list
}

// event passes on what a daemon announces, under the client's own id. A
// callback that was removed meanwhile hears no more.
func (rt *route) event(b *backend, info *protocol.Info, body []byte) {
	if len(body) < 4 {
		return
	}
	id, known := rt.find(b, idOf(body))
	if !known {
		return
	}
	setID(body, id)
	rt.session.conn.Send(info.Program, info.Version, info.Number, rpc.Raw(body))
}

// find gives the client's id of a daemon's callback.
func (rt *route) find(b *backend, theirs int32) (id int32, ok bool) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, cb := range rt.callbacks {
		if cb.backend == b && cb.theirs == theirs {
			return cb.id, true
		}
	}
	return 0, false
}

func idOf(body []byte) int32      { return int32(binary.BigEndian.Uint32(body)) }
func setID(body []byte, id int32) { binary.BigEndian.PutUint32(body, uint32(id)) }
