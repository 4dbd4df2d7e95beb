package systemd

import (
	"context"
	"os"
	"sync/atomic"

	"github.com/godbus/dbus/v5"
)

// Conn talks to systemd and machined. Any number of goroutines may use it.
type Conn struct {
	bus     *Bus
	jobs    jobTable
	cgroups string // where cgroup2 is mounted; "" for the usual place
	version atomic.Int32
}

// Open gives the system bus, see SystemBus. The first call connects, and so does the next one whenever the connection
// broke: D-Bus may come later, or go and come back.
func Open() *Conn { return open(systemBus()) }

// Connect is Open for those who cannot go on without D-Bus: if it is not there the error is an *UnavailableError and no
// connection is returned.
func Connect(ctx context.Context) (*Conn, error) {
	return Dial(ctx, systemBus())
}

// Dial is Connect for the bus at a D-Bus server address such as "unix:path=/run/dbus/system_bus_socket".
func Dial(ctx context.Context, address string) (*Conn, error) {
	c := open(address)
	if err := c.Ping(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func open(address string) *Conn {
	c := &Conn{bus: NewBus(address)}
	c.bus.signals = &c.jobs
	// The one subscription. Manager.Subscribe is not called: systemd sends JobRemoved to whoever queued the job
	// anyway (bus_job_track_sender in src/core/dbus-job.c), and subscribing would make it send every unit's every
	// change over the bus. The unit's name cannot be part of the rule, argument 2 matches only as a whole.
	c.bus.match = []dbus.MatchOption{
		dbus.WithMatchSender(systemdName),
		dbus.WithMatchObjectPath(systemdPath),
		dbus.WithMatchInterface(managerInterface),
		dbus.WithMatchMember("JobRemoved"),
	}
	return c
}

// Ping connects unless there is a connection. If D-Bus is not there the error is an *UnavailableError.
func (c *Conn) Ping(ctx context.Context) error {
	_, err := c.bus.live(ctx)
	return translate(systemdName, err)
}

// Close ends the connection. Calls in flight fail with an *UnavailableError, and so does every later call.
func (c *Conn) Close() error { return c.bus.Close() }

func (c *Conn) call(ctx context.Context, m Method, args []any, results ...any) error {
	return c.bus.Call(ctx, m, args, results...)
}

func systemBus() string {
	if address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address != "" {
		return address
	}
	// Not libdbus' /var/run: a symlink that a host may lack early in its boot.
	return "unix:path=/run/dbus/system_bus_socket"
}
