package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// openTimeout bounds how long a daemon may take until it can be used. Its
// socket may have to start it first.
const openTimeout = 30 * time.Second

// dial connects to whichever daemon has the driver: the first that takes the
// connection, unless it has not. The socket of libvirtd may be that of
// virtproxyd, which would make the calls in this daemon's name. who is nil for
// calls of the daemon's own.
func (r *Relay) dial(ctx context.Context, d Driver, who *Caller, h hooks) (*backend, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	failure := errAbsent(d)
	for _, socket := range d.sockets() {
		b, err := r.try(ctx, d, socket, who, h)
		var answered *Error
		switch {
		case err == nil:
			return b, nil
		case errors.Is(err, fs.ErrNotExist):
		case errors.As(err, &answered) && answered.Code == protocol.ErrResourceBusy:
			return nil, err
		case errors.As(err, &answered) && answered.Code == protocol.ErrNoConnect: // a libvirtd without this driver
		case errors.As(err, &answered) && answered.missing: // virtproxyd, which looked where we have
		case errors.Is(err, syscall.ECONNREFUSED): // it died
			if failure.absent {
				failure = errUnreachable(d, socket, err)
			}
		default:
			return nil, errUnreachable(d, socket, err)
		}
	}
	return nil, failure
}

// try asks the daemon at a socket once more when it closed the connection: one
// that ends for lack of clients does that, and systemd has the next one started.
func (r *Relay) try(ctx context.Context, d Driver, socket string, who *Caller, h hooks) (*backend, error) {
	b, err := r.connect(ctx, d, socket, who, h)
	if IsLost(err) {
		b, err = r.connect(ctx, d, socket, who, h)
	}
	if IsLost(err) {
		err = errors.New("it closed the connection")
	}
	return b, err
}

func (r *Relay) connect(ctx context.Context, d Driver, socket string, who *Caller, h hooks) (*backend, error) {
	release, err := r.admit(who)
	if err != nil {
		return nil, err
	}
	up, err := rpc.Connect(ctx, filepath.Join(r.config.Dir, socket))
	if err != nil {
		release()
		return nil, err
	}
	b := newBackend(socket, up, h, release)
	if err := b.open(ctx, r.config.URI(d), who); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// open does what every client does first, and says whom it speaks for.
func (b *backend) open(ctx context.Context, uri string, who *Caller) error {
	auth, err := call(ctx, b, protocol.AuthList, &xdr.Void{})
	if err != nil {
		return err
	}
	if !slices.Contains(auth.Types, protocol.AuthTypeNone) {
		return errors.New("it asks for a password, which this daemon does not have: set auth_unix_rw in its configuration")
	}
	args := protocol.ConnectOpenArgs{Name: &uri}
	if who != nil && who.ReadOnly {
		args.Flags = protocol.ConnectRo
	}
	if _, err = call(ctx, b, protocol.ConnectOpen, &args); err != nil {
		return err
	}
	if who == nil {
		return nil
	}
	if _, err = call(ctx, b, protocol.ConnectSetIdentity, &protocol.ConnectSetIdentityArgs{Params: who.identity()}); err != nil {
		return fmt.Errorf("it does not let this daemon speak for others: %w", err)
	}
	return nil
}

// identity names the caller as virIdentitySetParameters wants it.
func (c *Caller) identity() []protocol.TypedParam {
	if c.Stated != nil {
		return c.Stated
	}
	return []protocol.TypedParam{
		{Field: protocol.ConnectIdentityUnixUserID, Value: protocol.UllongValue(c.UID)},
		{Field: protocol.ConnectIdentityProcessID, Value: protocol.LlongValue(c.PID)},
		{Field: protocol.ConnectIdentityProcessTime, Value: protocol.UllongValue(c.StartTime)},
	}
}
