package systemd

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// Same as libdbus: a peer that has not answered for so long will not.
	callTimeout = 25 * time.Second
	// After D-Bus was lost in the middle of a call, systemd needs a moment to come back on the new bus. Longer
	// waits are the caller's: a client is waiting for the answer.
	returnTimeout = 2 * time.Second
)

// Bus is one private D-Bus connection. When it is lost the next call makes a new one, so a restart of D-Bus needs no
// restart of the daemon. Any number of goroutines may use it.
type Bus struct {
	address string
	signals dbus.SignalHandler
	match   []dbus.MatchOption // the signals to subscribe to on every new connection

	returns time.Duration // returnTimeout, but in tests

	// dialing holds one token. It is a channel and not a mutex because a dial can take long and every waiter must
	// still follow its own context.
	dialing chan struct{}

	mu     sync.Mutex // protects the fields below, never held over I/O
	conn   *dbus.Conn
	closed bool
}

// SystemBus is the system bus: DBUS_SYSTEM_BUS_ADDRESS, else /run/dbus/system_bus_socket. The first call connects.
func SystemBus() *Bus { return NewBus(systemBus()) }

// NewBus is SystemBus for any D-Bus server address.
func NewBus(address string) *Bus {
	return &Bus{address: address, signals: noSignals{}, returns: returnTimeout, dialing: make(chan struct{}, 1)}
}

// Close ends the connection for good.
func (b *Bus) Close() error {
	b.mu.Lock()
	conn := b.conn
	b.conn, b.closed = nil, true
	b.mu.Unlock()
	if conn == nil {
		return nil
	}
	return conn.Close()
}

// live returns the current connection, or dials.
func (b *Bus) live(ctx context.Context) (*dbus.Conn, error) {
	if conn, err := b.current(); conn != nil || err != nil {
		return conn, err
	}
	select {
	case b.dialing <- struct{}{}:
		defer func() { <-b.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if conn, err := b.current(); conn != nil || err != nil {
		return conn, err // somebody else dialed while we waited for the token
	}
	conn, err := b.dial(ctx)
	if err != nil {
		return nil, &disconnected{err}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		conn.Close()
		return nil, &disconnected{dbus.ErrClosed}
	}
	b.conn = conn
	return conn, nil
}

func (b *Bus) current() (*dbus.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, &disconnected{dbus.ErrClosed}
	case b.conn != nil && b.conn.Connected():
		return b.conn, nil
	}
	return nil, nil
}

// dial connects, authenticates and subscribes. ctx bounds only that; the connection lives on.
func (b *Bus) dial(ctx context.Context) (_ *dbus.Conn, err error) {
	life, end := context.WithCancel(context.Background())
	// Authentication reads without a deadline (the socket may be systemd's while the bus itself is being started),
	// so only closing the connection can end it.
	stop := context.AfterFunc(ctx, end)
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			end()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
		}
	}()
	conn, err := dbus.Connect(b.address, dbus.WithContext(life), dbus.WithSignalHandler(b.signals), dbus.WithHandler(noObjects{}))
	if err != nil || b.match == nil {
		return conn, err
	}
	return conn, conn.AddMatchSignalContext(ctx, b.match...)
}

type noSignals struct{}

func (noSignals) DeliverSignal(string, string, *dbus.Signal) {}

// noObjects answers every call from others with "unknown object": this connection offers nothing.
type noObjects struct{}

func (noObjects) LookupObject(dbus.ObjectPath) (dbus.ServerObject, bool) { return nil, false }

// Method is one D-Bus method.
type Method struct {
	Service string
	Path    dbus.ObjectPath
	Name    string        // interface.member
	Timeout time.Duration // how long to wait for the answer, 0 for 25 s

	// once: a call whose fate is unknown must not be repeated, its caller finds out what happened.
	once bool
	// patient: go on even while there is no bus to connect to.
	patient bool
}

// Call calls m with args and stores the answer in results. A connection that is lost meanwhile is redialed and the call
// repeated, which must do no harm. When nobody is reached the error is an *UnavailableError, when the service
// refuses an *Error.
func (b *Bus) Call(ctx context.Context, m Method, args []any, results ...any) error {
	timeout := m.Timeout
	if timeout == 0 {
		timeout = callTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := b.try(ctx, m, args, results)
	var gone *disconnected
	switch {
	case !lost(err) || m.once:
		return translate(m.Service, err)
	case errors.As(err, &gone) && !m.patient, m.Service != systemdName && absent(err):
		// No bus to connect to, or a service that is not installed: the caller shall know at once. A connection that
		// breaks under a call is a restart more often than an end and is worth some patience.
		return translate(m.Service, err)
	}
	deadline := time.Now().Add(b.returns)
	for pause := 10 * time.Millisecond; lost(err) && time.Now().Before(deadline); pause = min(2*pause, returnTimeout/8) {
		if sleep(ctx, pause) != nil {
			break
		}
		err = b.try(ctx, m, args, results)
	}
	return translate(m.Service, err)
}

func (b *Bus) try(ctx context.Context, m Method, args, results []any) error {
	conn, err := b.live(ctx)
	if err != nil {
		return err
	}
	return conn.Object(m.Service, m.Path).CallWithContext(ctx, m.Name, 0, args...).Store(results...)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
