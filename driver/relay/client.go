package relay

import (
	"context"
	"errors"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// Client is a connection for the daemon's own calls, such as a network port
// for an environment that starts. Any number of goroutines may use it.
type Client struct{ b *backend }

// Dial connects to whichever daemon of the host has a driver. It speaks for
// the daemon itself.
func (r *Relay) Dial(ctx context.Context, d Driver) (*Client, error) {
	b, err := r.dial(ctx, d, nil, hooks{})
	if err != nil {
		return nil, err
	}
	return &Client{b}, nil
}

// Close ends the connection and the calls that wait.
func (c *Client) Close() { c.b.close() }

// Ended tells that the connection has ended.
func (c *Client) Ended() bool { return c.b.isDone() }

// Call makes a call that has no stream and waits for its answer until ctx
// ends. An *Error has the daemon's code, VIR_ERR_…; once the connection broke
// every call fails, and it takes another Dial.
func Call[A, R any](ctx context.Context, c *Client, p protocol.Procedure[A, R], args *A) (R, error) {
	return call(ctx, c.b, p, args)
}

func call[A, R any](ctx context.Context, b *backend, p protocol.Procedure[A, R], args *A) (ret R, err error) {
	return callWith(ctx, b, p, args, nil)
}

func callWith[A, R any](ctx context.Context, b *backend, p protocol.Procedure[A, R], args *A, stream tunnel) (ret R, err error) {
	body, err := xdr.Marshal(any(args).(xdr.Marshaler))
	if err != nil {
		return ret, err
	}
	// A daemon that does not read keeps Send waiting, but nobody else.
	done := make(chan error, 1)
	var answered R
	go func() {
		sent := b.start(p.Info, rpc.Frame{Body: body}, stream, func(a answer) {
			if a.err == nil {
				a.err = xdr.Unmarshal(a.Body, any(&answered).(xdr.Unmarshaler))
			}
			done <- a.err
		})
		if !sent {
			done <- errLost(b.name, p.Info)
		}
	}()
	select {
	case err := <-done:
		var raw rpc.RawError
		if errors.As(err, &raw) {
			return ret, decoded(raw)
		}
		return answered, err
	case <-ctx.Done():
		return ret, ctx.Err()
	}
}
