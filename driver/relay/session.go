package relay

import (
	"errors"
	"sync"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// Session is one client and its connections to the daemons.
type Session struct {
	relay *Relay
	conn  *rpc.Conn

	mu     sync.Mutex
	routes map[Driver]*route
	closed bool // the client is gone
}

// Session makes a client's session. It ends with the client's connection.
func (r *Relay) Session(conn *rpc.Conn) *Session {
	s := &Session{relay: r, conn: conn, routes: map[Driver]*route{}}
	conn.OnClose(s.close)
	return s
}

// Forward passes a call on. Nearly always it returns rpc.ErrLater: the
// daemon's answer becomes the call's. It can wait for the daemon to take the
// call, so it must run apart from calls that do not.
func (s *Session) Forward(who Caller, d Driver, c *rpc.Call, info *protocol.Info) (xdr.Marshaler, error) {
	rt := s.route(d)
	if isDeregister(info) {
		return rt.deregister(c, info)
	}
	send := sender(forward)
	if isRegister(info) {
		send = rt.register
	}
	// A daemon that went away unnoticed since the last call has not seen this one.
	for range 2 {
		b, err := rt.open(c.Conn.Context(), who)
		var failure *Error
		if errors.As(err, &failure) && failure.absent && isList(info) {
			return info.NewRet(), nil // there are none
		}
		if err != nil {
			return nil, err
		}
		sent, err := send(b, c, info)
		if err != nil {
			return nil, err
		}
		if sent {
			return nil, rpc.ErrLater
		}
		rt.drop(b)
	}
	return nil, errUnreachable(d, string(d), errors.New("it closes its connections"))
}

// sender passes a call to a daemon. It is false when the daemon is gone and
// the call may be sent to another.
type sender func(b *backend, c *rpc.Call, info *protocol.Info) (bool, error)

// forward passes a call and its stream.
func forward(b *backend, c *rpc.Call, info *protocol.Info) (bool, error) {
	end := c.Tunnel()
	if info.Stream != protocol.NoStream && end == nil {
		var err error
		if end, err = c.OpenTunnel(); err != nil {
			return false, err
		}
	}
	files := c.TakeFiles()
	var stream tunnel // a nil *rpc.Tunnel would not be a nil tunnel
	if end != nil {
		stream = end
	}
	sent := b.start(info, rpc.Frame{Body: c.Payload, Files: files}, stream, func(a answer) { pass(c, a) })
	if !sent && len(files) > 0 {
		return false, errLost(b.name, info) // they are closed
	}
	return sent, nil
}

// pass makes a daemon's answer that of a call.
func pass(c *rpc.Call, a answer) {
	c.ReplyFiles(a.Files...)
	c.Answer(rpc.Raw(a.Body), a.err)
}

func (s *Session) route(d Driver) *route {
	s.mu.Lock()
	defer s.mu.Unlock()
	rt := s.routes[d]
	if rt == nil {
		rt = newRoute(s, d)
		rt.closed = s.closed
		s.routes[d] = rt
	}
	return rt
}

// close ends what the client has at the daemons.
func (s *Session) close() {
	s.mu.Lock()
	s.closed = true
	routes := make([]*route, 0, len(s.routes))
	for _, rt := range s.routes {
		routes = append(routes, rt)
	}
	s.mu.Unlock()
	for _, rt := range routes {
		rt.close()
	}
}
