package rpc

import (
	"fmt"
	"time"
)

// Before a client has authenticated it may be anybody who can connect. What
// it can hold until then is little, so that it keeps nobody else out:
// messages are short, there is a time, and one user has a part of the places.
const (
	// anonymousMessage is the most a message may hold after its length word.
	// The longest is a step of SASL (REMOTE_AUTH_SASL_DATA_MAX and its frame).
	anonymousMessage = 128 << 10
	// anonymousShare is the part of the places for anonymous clients that one
	// user other than root may have: one in two.
	anonymousShare = 2
	// defaultAuthTimeout counts while no call is being served: a user who is
	// asked for a password has as long as polkit gives.
	defaultAuthTimeout = 60 * time.Second
)

// awaitAuthentication closes the connection of a client that says nothing
// which would make it known.
func (c *Conn) awaitAuthentication(timeout time.Duration) {
	if c.authenticated.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil { // or close stops the timer
		return
	}
	c.impatience = time.AfterFunc(timeout, func() {
		if len(c.slots) > 0 {
			c.awaitAuthentication(timeout)
		} else if !c.authenticated.Load() {
			c.Close(fmt.Sprintf("the client did not authenticate in %s", timeout))
		}
	})
}

// anonymous counts clients that are not authenticated, and those of one user
// among them; s.mu is held.
func (s *Server) anonymous(uid uint32) (all, user int) {
	for _, c := range s.clients {
		if !c.authenticated.Load() {
			all++
			if c.peer.UID == uid {
				user++
			}
		}
	}
	return all, user
}

// admitAnonymous tells whether there is a place for one more; s.mu is held.
func (s *Server) admitAnonymous(uid uint32) error {
	limit := s.limits.MaxAnonymousClients
	all, user := s.anonymous(uid)
	switch {
	case all >= limit:
		return fmt.Errorf("too many clients that are not authenticated: %d are connected", all)
	case uid != 0 && user >= max(1, limit/anonymousShare):
		return fmt.Errorf("too many clients of user %d that are not authenticated: %d are connected", uid, user)
	}
	return nil
}
