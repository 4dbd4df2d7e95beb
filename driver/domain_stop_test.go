package driver

import (
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
)

// messages are lines of a log.
type messages chan string

func (m messages) Write(line []byte) (int, error) {
	m <- string(line)
	return len(line), nil
}

// attached is a client of the driver, and what becomes of it when it goes.
func attached(t *testing.T, drv *Driver) (c *client, gone <-chan struct{}) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for k, fd := range pair {
		f := os.NewFile(uintptr(fd), "client")
		end, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[k] = end.(*net.UnixConn)
	}
	t.Cleanup(func() { ends[1].Close() })
	server := rpc.NewServer("virtvzd", rpc.Limits{MaxClients: 5, MaxAnonymousClients: 5, MaxClientRequests: 5, MaxWorkers: 1}, EncodeError)
	drv.Register(server)
	conn, err := server.ServeConn(ends[0], rpc.ListenerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	conn.OnClose(func() { close(over) }) // after the driver's
	return clientOf(conn), over
}

// TestAutodestroyLate: a domain is destroyed with its client also if that went
// while it was being started, when there was nothing yet to be destroyed.
func TestAutodestroyLate(t *testing.T) {
	log := make(messages, 100)
	drv := statsDriver(t, "web1")
	drv.log = slog.New(slog.NewTextHandler(log, nil))
	d := drv.domains.lookupName("web1")
	for _, late := range []bool{false, true} {
		who, gone := attached(t, drv)
		c, err := d.change(t.Context(), who, "create")
		if err != nil {
			t.Fatal(err)
		}
		if late {
			who.conn.Close("gone")
			<-gone
		}
		err = c.enter(Running, protocol.DomainRunningBooted, func(v *view) { v.live, v.autodestroy = v.config, who })
		if err != nil {
			t.Fatal(err)
		}
		// Without an environment there is nothing to kill, but the attempt is seen.
		c.publish(func(v *view) { v.state = Shutoff })
		c.done()
		if !late {
			who.conn.Close("gone")
		}
		for line := ""; !strings.Contains(line, "cannot destroy a domain with its client"); {
			select {
			case line = <-log:
			case <-time.After(time.Minute):
				t.Fatalf("nobody destroys it, gone during the start: %v", late)
			}
		}
		<-gone
		setView(d, func(v *view) { v.live, v.autodestroy = nil, nil })
	}
}
