package main

import (
	"context"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
)

// host is a connection of vzctl fleet, which is made again when its daemon was
// restarted: what was started by guest-exec goes on meanwhile.
type host struct {
	uri string

	mu   sync.Mutex
	conn *libvirt.Connect
}

// connectPatience is how long a daemon may take to be there again.
const connectPatience = time.Minute

// connection gives the one there is, or another where that was lost.
func (h *host) connection(ctx context.Context) (*libvirt.Connect, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if alive, err := h.conn.IsAlive(); alive || err != nil {
		return h.conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	for {
		conn, err := connect(ctx, h.uri)
		if err == nil {
			h.conn.Close()
			h.conn = conn
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// connect leaves one behind that takes longer than there is time: a host may be gone.
func connect(ctx context.Context, uri string) (*libvirt.Connect, error) {
	type opened struct {
		conn *libvirt.Connect
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		conn, err := libvirt.NewConnect(uri)
		done <- opened{conn, err}
	}()
	select {
	case o := <-done:
		return o.conn, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *host) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn.Close()
}

// on has the guest asked by a connection.
func (g *guest) on(conn *libvirt.Connect, dom *libvirt.Domain) {
	g.conn, g.dom = conn, dom
	g.ask = func(command string, arguments, answer any) error { return agent(dom, command, arguments, answer) }
}

// reconnect tells whether the connection was lost, and there is another now. A
// call that was left behind has the old domain still.
func (g *guest) reconnect(ctx context.Context) bool {
	if g.host == nil {
		return false
	}
	conn, err := g.host.connection(ctx)
	if err != nil || conn == g.conn {
		return false
	}
	dom, err := conn.LookupDomainByUUIDString(g.row.UUID)
	if err != nil {
		return false
	}
	g.on(conn, dom)
	return true
}
