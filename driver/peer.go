package driver

import (
	"context"
	"errors"
	"sync"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
)

// peer is a daemon of libvirt's that this one has work for, such as a port for
// an environment that starts. It is connected to when there is some.
type peer struct {
	relay  *relay.Relay
	driver relay.Driver

	mu     sync.Mutex
	client *relay.Client
	idle   *time.Timer
}

// peerIdle is how long a connection is kept for the next piece of work, from
// when the last began: longer than any takes. A libvirtd that has clients does
// not end when it has nothing to do.
const peerIdle = filterTimeout + 20*time.Second

// connect gives the connection that is open, or a new one.
func (p *peer) connect(ctx context.Context) (*relay.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil && p.idle.Reset(peerIdle) {
		return p.client, nil
	}
	client, err := p.relay.Dial(ctx, p.driver)
	if err != nil {
		return nil, err
	}
	p.client = client
	p.idle = time.AfterFunc(peerIdle, func() { p.drop(client) })
	return client, nil
}

// drop closes a connection that broke or is idle.
func (p *peer) drop(client *relay.Client) {
	p.mu.Lock()
	if p.client == client {
		p.client = nil
	}
	p.mu.Unlock()
	client.Close()
}

// askFirst is the first call of a piece of work. The connection may have
// broken since it was used last, so a call that is not answered is made again
// on another: it must be one that changes nothing.
func askFirst[A, R any](ctx context.Context, p *peer, proc protocol.Procedure[A, R], args *A) (client *relay.Client, ret R, err error) {
	for range 2 {
		if client, err = p.connect(ctx); err != nil {
			return nil, ret, err
		}
		ret, err = relay.Call(ctx, client, proc, args)
		if err == nil || !relay.IsLost(err) {
			return client, ret, err
		}
		p.drop(client)
	}
	return nil, ret, err
}

func answers(err error, code int32) bool {
	var answer *relay.Error
	return errors.As(err, &answer) && answer.Code == code
}
