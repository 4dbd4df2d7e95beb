package rpc

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Every user of the host can connect, to the read-only socket with the rights
// of a reader and to the other to be asked who he is. What one user other than
// root can hold is bounded, so that he keeps nobody else out.
const (
	// userShare is the part of the places for clients, and of those for
	// anonymous ones, that one user may have: one in two.
	userShare = 2
	// userBytes is what large messages of one user may take, from when they
	// are announced to when they are answered.
	userBytes = 64 << 20
	// largeMessage is one that counts there.
	largeMessage = 64 << 10
	// anonymousMessage is the most a message of a client that has not
	// authenticated may hold after its length word. The longest is a step of
	// SASL (REMOTE_AUTH_SASL_DATA_MAX and its frame).
	anonymousMessage = 128 << 10
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
		if c.running.Load() > 0 {
			c.awaitAuthentication(timeout)
		} else if !c.authenticated.Load() {
			c.Close(fmt.Sprintf("the client did not authenticate in %s", timeout))
		}
	})
}

// usage is what one user has.
type usage struct {
	clients int
	asked   int // of these, those that are being asked who they are
}

// known takes the mark off a client that it is being asked; s.mu is held.
func (s *Server) known(c *Conn) {
	if c.asked {
		c.asked = false
		s.asked--
		s.users[c.peer.UID].asked--
	}
}

func share(places int) int { return max(1, places/userShare) }

// admit counts a new client in, unless there are too many. One that is not
// authenticated, where all such places are taken, is served later: as libvirt
// does it, which does not accept it until then.
func (s *Server) admit(c *Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	uid, limit := c.peer.UID, s.limits.MaxClients
	if uid != 0 {
		limit -= limit / reserved
	}
	u := s.users[uid]
	if u == nil {
		u = &usage{}
	}
	switch {
	case s.closed:
		return errors.New("the server shuts down")
	case len(s.clients) >= limit:
		return fmt.Errorf("too many clients: %d are connected", len(s.clients))
	case uid != 0 && u.clients >= share(s.limits.MaxClients):
		return fmt.Errorf("too many clients of user %d: %d are connected", uid, u.clients)
	}
	u.clients++
	s.users[uid], s.clients[c.id] = u, c
	s.waiting = append(s.waiting, c)
	return nil
}

// serveWaiting serves those for whom there is a place. Nobody waits behind a
// user who has his part of them already.
func (s *Server) serveWaiting() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 0; n < len(s.waiting); {
		c := s.waiting[n]
		if !c.authenticated.Load() {
			u, limit := s.users[c.peer.UID], s.limits.MaxAnonymousClients
			if s.asked >= limit || c.peer.UID != 0 && u.asked >= share(limit) {
				n++
				continue
			}
			c.asked = true
			s.asked++
			u.asked++
		}
		s.waiting = slices.Delete(s.waiting, n, n+1)
		s.serving.Add(1)
		c.awaitAuthentication(s.limits.AuthTimeout)
		go c.serve()
	}
}

// stopWaiting ends a client that was closed before it was served.
func (s *Server) stopWaiting(c *Conn) {
	s.mu.Lock()
	n := slices.Index(s.waiting, c)
	if n >= 0 {
		s.waiting = slices.Delete(s.waiting, n, n+1)
		s.serving.Add(1)
	}
	s.mu.Unlock()
	if n >= 0 {
		go func() {
			defer s.serving.Done()
			c.ended()
		}()
	}
}

// budget counts the large messages of users.
type budget struct {
	mu   sync.Mutex
	used map[uint32]int // bytes, by user
}

// take counts a message of n bytes; what it gives is to be given back. A small
// one, or one of root's, costs nothing.
func (b *budget) take(uid uint32, n int) (int, error) {
	if uid == 0 || n <= largeMessage {
		return 0, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used[uid]+n > userBytes {
		return 0, fmt.Errorf("a message of %d bytes is too much for user %d, whose others take %d: %d at once is the limit", n, uid, b.used[uid], userBytes)
	}
	b.used[uid] += n
	return n, nil
}

func (b *budget) give(uid uint32, n int) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used[uid] -= n; b.used[uid] == 0 {
		delete(b.used, uid)
	}
}
