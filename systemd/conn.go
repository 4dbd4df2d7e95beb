package systemd

import (
	"context"
	"errors"
	"os"
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

	systemBusAddress = "unix:path=/run/dbus/system_bus_socket"
)

// Conn talks to systemd and machined over one private D-Bus connection. When the connection is lost the next
// call makes a new one, so a restart of D-Bus needs no restart of the daemon. Any number of goroutines may use it.
type Conn struct {
	address string
	jobs    jobTable
	cgroups string // where cgroup2 is mounted; "" for the usual place

	// dialing holds one token. It is a channel and not a mutex because a dial can take long and every waiter must
	// still follow its own context.
	dialing chan struct{}

	mu      sync.Mutex // protects the fields below, never held over I/O
	bus     *dbus.Conn
	closed  bool
	version int
}

// Connect opens the system bus (DBUS_SYSTEM_BUS_ADDRESS, else /run/dbus/system_bus_socket). If D-Bus is not there
// the error is an *UnavailableError and no connection is returned.
func Connect(ctx context.Context) (*Conn, error) {
	address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS")
	if address == "" {
		// Not libdbus' /var/run: a symlink that a host may lack early in its boot.
		address = systemBusAddress
	}
	return Dial(ctx, address)
}

// Dial is Connect for the bus at a D-Bus server address such as "unix:path=/run/dbus/system_bus_socket".
func Dial(ctx context.Context, address string) (*Conn, error) {
	c := &Conn{address: address, dialing: make(chan struct{}, 1)}
	if _, err := c.live(ctx); err != nil {
		return nil, translate(systemdName, err)
	}
	return c, nil
}

// Close ends the connection. Calls in flight fail with an *UnavailableError, and so does every later call.
func (c *Conn) Close() error {
	c.mu.Lock()
	bus := c.bus
	c.bus, c.closed = nil, true
	c.mu.Unlock()
	if bus == nil {
		return nil
	}
	return bus.Close()
}

// live returns the current connection, or dials.
func (c *Conn) live(ctx context.Context) (*dbus.Conn, error) {
	if bus, err := c.current(); bus != nil || err != nil {
		return bus, err
	}
	select {
	case c.dialing <- struct{}{}:
		defer func() { <-c.dialing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if bus, err := c.current(); bus != nil || err != nil {
		return bus, err // somebody else dialed while we waited for the token
	}
	bus, err := dial(ctx, c.address, &c.jobs)
	if err != nil {
		return nil, &disconnected{err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		bus.Close()
		return nil, &disconnected{dbus.ErrClosed}
	}
	c.bus, c.version = bus, 0
	return bus, nil
}

func (c *Conn) current() (*dbus.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, &disconnected{dbus.ErrClosed}
	case c.bus != nil && c.bus.Connected():
		return c.bus, nil
	}
	return nil, nil
}

// dial connects, authenticates and subscribes. ctx bounds only that; the connection lives on.
func dial(ctx context.Context, address string, signals dbus.SignalHandler) (_ *dbus.Conn, err error) {
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
	bus, err := dbus.Connect(address, dbus.WithContext(life), dbus.WithSignalHandler(signals), dbus.WithHandler(noObjects{}))
	if err != nil {
		return nil, err
	}
	// The one subscription. Manager.Subscribe is not called: systemd sends JobRemoved to whoever queued the job
	// anyway (bus_job_track_sender in src/core/dbus-job.c), and subscribing would make it send every unit's every
	// change over the bus. The unit's name cannot be part of the rule, argument 2 matches only as a whole.
	err = bus.AddMatchSignalContext(ctx,
		dbus.WithMatchSender(systemdName),
		dbus.WithMatchObjectPath(systemdPath),
		dbus.WithMatchInterface(managerInterface),
		dbus.WithMatchMember("JobRemoved"))
	return bus, err
}

// noObjects answers every call from others with "unknown object": this connection offers nothing.
type noObjects struct{}

func (noObjects) LookupObject(dbus.ObjectPath) (dbus.ServerObject, bool) { return nil, false }

// method is one D-Bus method: the service, its object and interface.member.
type method struct {
	service string
	path    dbus.ObjectPath
	name    string
	// once: a call whose fate is unknown must not be repeated, its caller finds out what happened.
	once bool
	// patient: go on even while there is no bus to connect to.
	patient bool
}

// call calls m with args and stores the answer in results. A lost connection is redialed and the call repeated; all
// our calls but StartTransientUnit are harmless to repeat.
func (c *Conn) call(ctx context.Context, m method, args []any, results ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.try(ctx, m, args, results)
	var gone *disconnected
	switch {
	case !lost(err) || m.once:
		return translate(m.service, err)
	case errors.As(err, &gone) && !m.patient, m.service != systemdName && absent(err):
		// No bus to connect to, or a service that is not installed: the caller shall know at once. A connection that
		// breaks under a call is a restart more often than an end and is worth some patience.
		return translate(m.service, err)
	}
	deadline := time.Now().Add(returnTimeout)
	for pause := 10 * time.Millisecond; lost(err) && time.Now().Before(deadline); pause = min(2*pause, returnTimeout/8) {
		if sleep(ctx, pause) != nil {
			break
		}
		err = c.try(ctx, m, args, results)
	}
	return translate(m.service, err)
}

func (c *Conn) try(ctx context.Context, m method, args, results []any) error {
	bus, err := c.live(ctx)
	if err != nil {
		return err
	}
	return bus.Object(m.service, m.path).CallWithContext(ctx, m.name, 0, args...).Store(results...)
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
