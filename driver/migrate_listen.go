package driver

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
)

// MigrationConfig says where migrations come to; the names in virtvzd.conf are
// qemu.conf's.
type MigrationConfig struct {
	Address      string // to wait at; "": all of this host's
	Host         string // that sources are told; "": the host's name
	Ports        [2]int // first and last
	Certificates string // directory, for TLS
}

// migrations are the sockets at which sources are waited for.
type migrations struct {
	drv *Driver

	mu    sync.Mutex
	open  map[string]net.Listener // by the address that was asked for
	calls chan struct{}           // an element for each connection that is served
}

// maxMigrationCalls bounds connections: anybody may make one.
const maxMigrationCalls = 64

func newMigrations(drv *Driver) *migrations {
	return &migrations{drv: drv, open: map[string]net.Listener{}, calls: make(chan struct{}, maxMigrationCalls)}
}

// wait opens a socket at an address, on the first port that is free, unless there
// is one, and returns its address.
func (m *migrations) wait(address string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.open[address]; l != nil {
		return l.Addr().String(), nil
	}
	ports := m.drv.config.Migration.Ports
	var failure error
	for port := ports[0]; port <= ports[1]; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if err == nil {
			m.open[address] = l
			go m.serve(l)
			return l.Addr().String(), nil
		}
		failure = err
	}
	return "", errorf(protocol.ErrOperationFailed, "no port between %d and %d is free for migrations: %v", ports[0], ports[1], failure)
}

// waitAgain opens sockets that an earlier daemon had, for sources that do not
// know yet what became of what they sent.
func (m *migrations) waitAgain(addresses []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, full := range addresses {
		host, _, _ := net.SplitHostPort(full)
		if host == "::" || host == "0.0.0.0" {
			host = ""
		}
		if m.open[host] != nil {
			continue
		}
		l, err := net.Listen("tcp", full)
		if err != nil {
			m.drv.log.Error("cannot wait for hosts that have to ask what became of a migration", "address", full, "error", err)
			continue
		}
		m.open[host] = l
		go m.serve(l)
	}
}

func (m *migrations) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.open {
		l.Close()
	}
}

func (m *migrations) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Second) // there may be too many descriptors
			continue
		}
		select {
		case m.calls <- struct{}{}:
		default:
			conn.Close()
			continue
		}
		go func() {
			defer func() { <-m.calls }()
			link, err := m.accept(conn)
			if err == nil {
				err = m.drv.rt.ServeMigration(context.Background(), link)
			}
			if err != nil {
				m.drv.log.Warn("a connection of a migration ended", "from", conn.RemoteAddr(), "error", err)
			}
		}()
	}
}

// accept finds out whether it is to be TLS: that begins with the byte 22.
func (m *migrations) accept(conn net.Conn) (io.ReadWriteCloser, error) {
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetReadDeadline(time.Time{})
	whole := &begun{Conn: conn, first: first[:]}
	if first[0] != 22 {
		return whole, nil
	}
	config, err := relay.ServerTLS(m.drv.config.Migration.Certificates)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return tls.Server(whole, config), nil
}

// begun is a connection of which something was read.
type begun struct {
	net.Conn
	first []byte
}

func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}

// waitForMigration tells where a source is to send a domain, and at which
// address of this host it can be asked later.
func (drv *Driver) waitForMigration(how migration) (uri, address string, err error) {
	if how.has(protocol.MigrateTls) {
		if _, err := relay.ServerTLS(drv.config.Migration.Certificates); err != nil {
			return "", "", errorf(protocol.ErrOperationFailed, "%v", err)
		}
	}
	if address, err = drv.migrations.wait(cmp.Or(how.listen, drv.config.Migration.Address)); err != nil {
		return "", "", err
	}
	if how.uri == "" {
		return "tcp://" + drv.reachable(address), address, nil
	}
	u, err := migrationURI(how.uri)
	if err != nil {
		return "", "", err
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil && u.Port() != "" && u.Port() != port {
		err = errorf(protocol.ErrInvalidArg, "migrations come to port %s here, not to %s", port, u.Port())
	}
	return "tcp://" + net.JoinHostPort(u.Hostname(), port), address, err
}

// migrationURI reads tcp://HOST[:PORT], and tcp:HOST[:PORT], as virt-manager
// writes it and libvirt's qemu driver reads it.
func migrationURI(text string) (*url.URL, error) {
	full := text
	if rest, ok := strings.CutPrefix(text, "tcp:"); ok && !strings.HasPrefix(rest, "//") {
		full = "tcp://" + rest
	}
	u, err := url.Parse(full)
	if err != nil || u.Scheme != "tcp" || u.Hostname() == "" {
		return nil, errorf(protocol.ErrInvalidArg, "unable to parse migration URI '%s': it is tcp://HOST or tcp://HOST:PORT", text)
	}
	return u, nil
}

// reachable is an address of this host as others know it.
func (drv *Driver) reachable(address string) string {
	host, port, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); drv.config.Migration.Host == "" && ip != nil && !ip.IsUnspecified() {
		return address
	}
	name := drv.config.Migration.Host
	if name == "" {
		name, _ = os.Hostname()
	}
	return net.JoinHostPort(name, port)
}

// migrationAddress is where a domain is sent to, as it is recorded: "tcp://…",
// or "tls://…#NAME" with the name in the certificate.
func migrationAddress(how migration) (string, error) {
	u, err := migrationURI(how.uri)
	if err != nil {
		return "", err
	}
	if u.Port() == "" {
		return "", errorf(protocol.ErrInvalidArg, "unable to parse migration URI '%s': it is tcp://HOST:PORT", how.uri)
	}
	if !how.has(protocol.MigrateTls) {
		return "tcp://" + u.Host, nil
	}
	return "tls://" + u.Host + "#" + orElse(how.tlsHost, u.Hostname()), nil
}

// dialMigration connects to a destination, for a migration or to ask about one.
func (drv *Driver) dialMigration(ctx context.Context, address string) (io.ReadWriteCloser, error) {
	scheme, rest, _ := strings.Cut(address, "://")
	host, name, _ := strings.Cut(rest, "#")
	switch scheme {
	case "tcp":
		return relay.DialHost(ctx, host)
	case "tls":
		conn, err := relay.DialHost(ctx, host)
		if err != nil {
			return nil, err
		}
		return relay.ClientTLS(ctx, conn, drv.config.Migration.Certificates, name)
	}
	return nil, fmt.Errorf("%s is asked over libvirt: %w", address, errors.ErrUnsupported)
}
