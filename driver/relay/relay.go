package relay

import (
	"cmp"
	"log/slog"
	"sync"

	"virtvzd/driver/protocol"
)

// Config tells where the host's daemons are.
type Config struct {
	Dir            string              // of their sockets; /run/libvirt when empty
	URI            func(Driver) string // what they are opened with; nil: network:///system and so on
	MaxConnections int                 // to all of them together; 0: 1000
	Log            *slog.Logger        // nil: nothing is logged
}

// Relay is the way to the host's daemons for all clients.
type Relay struct {
	config Config

	mu    sync.Mutex
	total int            // connections
	users map[uint32]int // of each user
}

// reserved is the share of the connections that only root can use, one in
// ten, so that users cannot lock out the administrator.
const reserved = 10

// userShare is the part of the connections that one user other than root may
// have: one in two.
const userShare = 2

// New makes a Relay. It connects to nothing yet.
func New(c Config) *Relay {
	c.Dir = cmp.Or(c.Dir, "/run/libvirt")
	c.MaxConnections = cmp.Or(c.MaxConnections, 1000)
	if c.URI == nil {
		c.URI = Driver.URI
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Relay{config: c, users: map[uint32]int{}}
}

// Caller is whom a client's calls are made for. The daemons decide with it
// where they have access rules of their own.
type Caller struct {
	PID       uint32
	StartTime uint64 // of PID, in clock ticks since boot
	UID       uint32
	ReadOnly  bool

	// Stated is what a proxy said of the client, to be passed on word for word;
	// nil: the client is the process above.
	Stated []protocol.TypedParam
}

// Nobody is the UID of a caller that is no user of this host.
const Nobody = ^uint32(0)

// admit counts a connection in; release gives its place back.
func (r *Relay) admit(who *Caller) (release func(), err error) {
	limit, uid := r.config.MaxConnections, uint32(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	if who != nil && who.UID != 0 {
		uid = who.UID
		if share := max(1, limit/userShare); r.users[uid] >= share {
			return nil, errFull(share)
		}
		limit -= limit / reserved
	}
	if r.total >= limit {
		return nil, errFull(limit)
	}
	r.total++
	r.users[uid]++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.total--
		if r.users[uid]--; r.users[uid] == 0 {
			delete(r.users, uid)
		}
	}, nil
}
