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
	relay   *relay.Relay
	driver  relay.Driver
	opening chan struct{} // holds an element while the connection is made
	slow    time.Duration // who waits longer in vain has waited for one that hangs

	mu     sync.Mutex
	client *relay.Client
	idle   *time.Timer
	silent time.Time // when a call was last given up
}

func newPeer(c relay.Config, d relay.Driver) *peer {
	return &peer{relay: relay.New(c), driver: d, opening: make(chan struct{}, 1), slow: networkTimeout - 5*time.Second}
}

// peerIdle is how long a connection is kept for the next piece of work, from
// when the last began: longer than any takes. A libvirtd that has clients does
// not end when it has nothing to do.
const peerIdle = filterTimeout + 20*time.Second

// silentTime is for how long one that hangs is not asked again: what ends, or
// starts, has several things to ask, and one of them waits for it.
const silentTime = 10 * time.Second

// connect gives the connection that is open, or a new one.
func (p *peer) connect(ctx context.Context) (*relay.Client, error) {
	if client, err := p.current(); client != nil || err != nil {
		return client, err
	}
	select {
	case p.opening <- struct{}{}:
		defer func() { <-p.opening }()
	case <-ctx.Done():
		return nil, p.timeout(ctx.Err())
	}
	if client, err := p.current(); client != nil || err != nil {
		return client, err
	}
	began := time.Now()
	client, err := p.relay.Dial(ctx, p.driver)
	if err != nil {
		if time.Since(began) > p.slow {
			p.keepSilent()
		}
		return nil, p.timeout(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.client = client
	p.idle = time.AfterFunc(peerIdle, func() { p.drop(client) })
	return client, nil
}

// current is the connection that is open, or nil.
func (p *peer) current() (*relay.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil && !p.client.Ended() && p.idle.Reset(peerIdle) {
		return p.client, nil
	}
	if time.Since(p.silent) < silentTime {
		return nil, p.hangs()
	}
	return nil, nil
}

// timeout has a sentence for a call that was given up.
func (p *peer) timeout(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return p.hangs()
	}
	return err
}

func (p *peer) hangs() error {
	return errorf(protocol.ErrOperationTimeout, "the host's libvirt daemon for its %s driver does not answer: see whether libvirtd or virt%sd hangs", p.driver, p.driver)
}

func (p *peer) keepSilent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = time.Now()
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
// on another: it must be one that changes nothing. A connection on which
// nothing is answered in time is given up with all that waits there.
func askFirst[A, R any](ctx context.Context, p *peer, proc protocol.Procedure[A, R], args *A) (client *relay.Client, ret R, err error) {
	for range 2 {
		if client, err = p.connect(ctx); err != nil {
			return nil, ret, err
		}
		began := time.Now()
		ret, err = relay.Call(ctx, client, proc, args)
		if errors.Is(err, context.DeadlineExceeded) {
			if time.Since(began) > p.slow {
				p.keepSilent()
				p.drop(client)
			}
			return nil, ret, p.timeout(err)
		}
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
