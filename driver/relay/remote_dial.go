package relay

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// remote is a libvirt URI that was taken apart.
type remote struct {
	transport  string // unix, ssh, tcp or tls
	user, host string
	port       string
	query      url.Values
	name       string // what the other daemon opens
}

// Ports of libvirt's daemons.
const (
	tcpPort = "16509"
	tlsPort = "16514"
)

func parseRemote(uri string) (*remote, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("the URI %q is not understood: %w", uri, err)
	}
	scheme, transport, _ := strings.Cut(u.Scheme, "+")
	r := &remote{transport: transport, host: u.Hostname(), port: u.Port(), query: u.Query()}
	if u.User != nil {
		r.user = u.User.Username()
	}
	if scheme != "vz" && scheme != "openvz" {
		return nil, fmt.Errorf("the URI %q leads to no daemon for environments: it must begin with vz", uri)
	}
	if r.transport == "" {
		r.transport = "unix"
		if r.host != "" {
			r.transport = "tls"
		}
	}
	if (r.transport == "unix") != (r.host == "") || strings.HasPrefix(r.host, "-") || strings.HasPrefix(r.user, "-") {
		return nil, fmt.Errorf("the URI %q has no host that can be reached by %s", uri, r.transport)
	}
	r.name = cmp.Or(r.query.Get("name"), scheme+"://"+cmp.Or(u.Path, "/system"))
	return r, nil
}

// NamesProgram tells whether a URI says which program makes the connection.
func NamesProgram(uri string) bool {
	r, err := parseRemote(uri)
	return err == nil && r.query.Has("command")
}

// dial connects, and gives what the way there has said on standard error.
func (r *remote) dial(ctx context.Context, certificates string) (sock *net.UnixConn, said func() string, err error) {
	said = func() string { return "" }
	switch r.transport {
	case "unix":
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", cmp.Or(r.query.Get("socket"), "/run/libvirt/virtvzd-sock"))
		if err != nil {
			return nil, said, err
		}
		return conn.(*net.UnixConn), said, nil
	case "ssh":
		return r.ssh()
	case "tcp", "tls":
		conn, err := DialHost(ctx, net.JoinHostPort(r.host, cmp.Or(r.port, map[string]string{"tcp": tcpPort, "tls": tlsPort}[r.transport])))
		if err == nil && r.transport == "tls" {
			conn, err = clientTLS(ctx, conn, cmp.Or(r.query.Get("pkipath"), certificates), r.host)
			if err == nil {
				err = awaitAccepted(ctx, conn)
			}
		}
		if err != nil {
			return nil, said, err
		}
		sock, err := overSocket(conn)
		return sock, said, err
	}
	return nil, said, fmt.Errorf("the transport '%s' cannot be used by a daemon: use ssh, tls, tcp or unix", r.transport)
}

// DialHost connects to another host, and notices soon when that is gone.
func DialHost(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{
		Timeout:         20 * time.Second,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 5},
	}
	return d.DialContext(ctx, "tcp", address)
}

// sshCommand is what is run on the other host: what libvirt's clients run there,
// or, where that is not installed, what does the same for one socket.
const sshCommand = `if command -v virt-ssh-helper >/dev/null 2>&1; then exec virt-ssh-helper '%s'; else exec nc -U /run/libvirt/virtvzd-sock; fi`

// ssh runs it, connected to one end of a pair of sockets.
func (r *remote) ssh() (*net.UnixConn, func() string, error) {
	args := []string{"-T", "-e", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=5"}
	for flag, value := range map[string]string{"-p": r.port, "-l": r.user, "-i": r.query.Get("keyfile")} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	if r.query.Get("no_verify") == "1" {
		args = append(args, "-o", "StrictHostKeyChecking=no")
	}
	if strings.ContainsAny(r.name, "'\\\n") {
		return nil, nil, fmt.Errorf("the name %q cannot be opened", r.name)
	}
	args = append(args, "--", r.host, "sh", "-c", shellQuoted(fmt.Sprintf(sshCommand, r.name)))
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	said := &saying{ended: make(chan struct{})}
	cmd := exec.Command(cmp.Or(r.query.Get("command"), "ssh"), args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, said
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, nil, err
	}
	go func() { // it ends when our end of the pair is closed
		cmd.Wait()
		close(said.ended)
	}()
	return ours, said.text, nil
}

// shellQuoted is one word of the other host's shell.
func shellQuoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// saying keeps what a program says, up to a bound.
type saying struct {
	ended chan struct{} // closed when it has ended, and all was read
	mu    sync.Mutex
	all   bytes.Buffer
}

// sayingPatience is how long to wait for a program's end that has closed its
// connection: one that it has left behind may hold on to its standard error.
const sayingPatience = 5 * time.Second

func (s *saying) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all.Len() < 4096 {
		s.all.Write(p[:min(len(p), 4096)])
	}
	return len(p), nil
}

func (s *saying) text() string {
	select {
	case <-s.ended:
	case <-time.After(sayingPatience):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s.all.String())), " ")
}

// socketPair gives both ends of one.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "pair"), os.NewFile(uintptr(fds[1]), "pair")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// overSocket gives a socket whose other end is a connection of another kind.
func overSocket(conn net.Conn) (*net.UnixConn, error) {
	ours, file, err := socketPair()
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer file.Close()
	theirs, err := net.FileConn(file)
	if err != nil {
		conn.Close()
		ours.Close()
		return nil, err
	}
	var once sync.Once
	end := func() { once.Do(func() { conn.Close(); theirs.Close() }) }
	go func() { io.Copy(conn, theirs); end() }()
	go func() { io.Copy(theirs, conn); end() }()
	return ours, nil
}

// Certificates is where libvirt's daemons and clients have theirs.
const Certificates = "/etc/pki"

// certificate finds the files of one side, "client" or "server": below a
// directory as libvirt's, or in one that has them all.
func certificate(dir, side string) (own tls.Certificate, ca *x509.CertPool, err error) {
	files := [3]string{"CA/cacert.pem", "libvirt/" + side + "cert.pem", "libvirt/private/" + side + "key.pem"}
	if _, err := os.Stat(filepath.Join(dir, files[0])); err != nil {
		files = [3]string{"cacert.pem", side + "cert.pem", side + "key.pem"}
	}
	text, err := os.ReadFile(filepath.Join(dir, files[0]))
	if err != nil {
		return own, nil, fmt.Errorf("TLS needs certificates: %w", err)
	}
	ca = x509.NewCertPool()
	if !ca.AppendCertsFromPEM(text) {
		return own, nil, fmt.Errorf("%s has no certificate", filepath.Join(dir, files[0]))
	}
	if own, err = tls.LoadX509KeyPair(filepath.Join(dir, files[1]), filepath.Join(dir, files[2])); err != nil {
		return own, nil, fmt.Errorf("TLS needs certificates: %w", err)
	}
	return own, ca, nil
}

// ServerTLS is the configuration of the side that waits for connections: who
// connects must have a certificate of the same authority.
func ServerTLS(dir string) (*tls.Config, error) {
	own, ca, err := certificate(dir, "server")
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: ca, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}

// ClientTLS makes a connection one of TLS, with a host of that name.
func ClientTLS(ctx context.Context, conn net.Conn, dir, host string) (net.Conn, error) {
	return clientTLS(ctx, conn, dir, host)
}

func clientTLS(ctx context.Context, conn net.Conn, dir, host string) (net.Conn, error) {
	own, ca, err := certificate(dir, "client")
	if err != nil {
		conn.Close()
		return nil, err
	}
	secure := tls.Client(conn, &tls.Config{Certificates: []tls.Certificate{own}, RootCAs: ca, ServerName: host, MinVersion: tls.VersionTLS12})
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// awaitAccepted reads the byte by which libvirt's daemons say that they accept
// the client's certificate (virNetTLSSession, remoteClientInitHook).
func awaitAccepted(ctx context.Context, conn net.Conn) error {
	var answer [1]byte
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	_, err := io.ReadFull(conn, answer[:])
	if !stop() {
		err = ctx.Err()
	}
	if err == nil && answer[0] != 1 {
		err = errors.New("it does not accept this host's certificate")
	}
	if err != nil {
		conn.Close()
	}
	return err
}
