package relay

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// featureKeepalive is VIR_DRV_FEATURE_PROGRAM_KEEPALIVE: the other daemon pings,
// and knows when this one is gone.
const featureKeepalive = protocol.DrvFeatureProgramKeepalive

// DialRemote connects to the daemon that a libvirt URI of the scheme vz leads to,
// as libvirt's own client would: by ssh, TLS, TCP or a local socket. It speaks
// for the daemon itself. certificates is a directory as of Certificates.
func DialRemote(ctx context.Context, uri, certificates string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	r, err := parseRemote(uri)
	if err != nil {
		return nil, err
	}
	sock, said, err := r.dial(ctx, certificates)
	if err != nil {
		return nil, errRemote(uri, err)
	}
	up, err := rpc.NewUpstream(sock)
	if err != nil {
		return nil, errRemote(uri, err)
	}
	b := newBackend(uri, up, hooks{}, func() {})
	if err := b.openRemote(ctx, r.name); err != nil {
		b.close()
		if text := said(); text != "" && IsLost(err) {
			err = errors.New(text)
		}
		return nil, errRemote(uri, err)
	}
	go b.watch(remotePulse, remotePatience)
	return &Client{b}, nil
}

// How often a daemon on another host is asked whether it is there, and for how
// long it may say nothing at all: what it is told to do can take longer.
var remotePulse, remotePatience = 5 * time.Second, 30 * time.Second

// watch ends the connection with a daemon that says nothing any more. It is told
// how often to ask, and how long to wait: a test may set that for who comes next.
func (b *backend) watch(every, patience time.Duration) {
	ping := protocol.MessageHeader{Prog: protocol.KeepaliveProgram, Vers: protocol.KeepaliveVersion, Proc: int32(protocol.KeepaliveProcPing), Type: protocol.Message}
	pulse := time.NewTicker(every)
	defer pulse.Stop()
	b.hear()
	sent := make(chan struct{}, 1)
	for {
		select {
		case <-b.gone:
			return
		case <-pulse.C:
		}
		if time.Since(time.Unix(0, b.heard.Load())) > patience {
			b.close()
			return
		}
		select {
		case sent <- struct{}{}:
			go func() { // it may not read
				b.up.Send(rpc.Frame{MessageHeader: ping})
				<-sent
			}()
		default:
		}
	}
}

func (b *backend) openRemote(ctx context.Context, name string) error {
	auth, err := call(ctx, b, protocol.AuthList, &xdr.Void{})
	if err != nil {
		return err
	}
	if !slices.Contains(auth.Types, protocol.AuthTypeNone) {
		return errors.New("it asks for a password, which a daemon does not have: use vz+ssh:// as root, or TLS")
	}
	if _, err := call(ctx, b, protocol.ConnectSupportsFeature, &protocol.ConnectSupportsFeatureArgs{Feature: featureKeepalive}); err != nil {
		return err
	}
	_, err = call(ctx, b, protocol.ConnectOpen, &protocol.ConnectOpenArgs{Name: &name})
	return err
}

func errRemote(uri string, err error) *Error {
	return &Error{Code: protocol.ErrNoConnect, Detail: "cannot connect to " + uri + ": " + err.Error()}
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.b.gone }

// CallStream makes a call that has a stream, which begins with its answer.
func CallStream[A, R any](ctx context.Context, c *Client, p protocol.Procedure[A, R], args *A) (R, io.ReadWriteCloser, error) {
	s := newOwnStream()
	ret, err := callWith(ctx, c.b, p, args, s)
	if err != nil {
		s.Abort(err)
		return ret, nil, err
	}
	return ret, s, nil
}
