package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// fakeSSH has this program be ssh: it notes its arguments, and connects to a
// socket in place of another host, or says that it cannot.
const fakeSSH = "VIRTVZD_TEST_SSH"

func TestMain(m *testing.M) {
	socket := os.Getenv(fakeSSH)
	if socket == "" {
		os.Exit(m.Run())
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		fmt.Fprint(os.Stderr, "root@there: \x1b[1mPermission denied\r\n(publickey).\r\n")
		os.Exit(255)
	}
	os.WriteFile(socket+".args", []byte(strings.Join(os.Args[1:], "\n")), 0o600)
	go func() {
		io.Copy(conn, os.Stdin)
		conn.(*net.UnixConn).CloseWrite()
	}()
	io.Copy(os.Stdout, conn)
}

// startRemote is a daemon on another host, and in the end nothing is left of
// connections to it.
func startRemote(t *testing.T) *daemon {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
	dir, err := os.MkdirTemp("", "remote")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return startDaemon(t, dir, "virtvzd-sock", map[string]rpc.Handler{
		"STORAGE_VOL_UPLOAD": tunnelled(func(s *rpc.Tunnel) { // sends back what comes
			for {
				p, err := s.Receive()
				if err != nil || s.Send(p) != nil || p.Status != protocol.StatusContinue {
					return
				}
			}
		}),
	})
}

// reachable lets a daemon be reached at a port; wrap is what the connection
// begins with.
func reachable(t *testing.T, d *daemon, wrap func(net.Conn) (net.Conn, error)) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				conn, err := wrap(conn)
				if err != nil {
					return
				}
				to, err := net.Dial("unix", d.path)
				if err != nil {
					return
				}
				defer to.Close()
				go func() {
					io.Copy(to, conn)
					to.Close()
				}()
				io.Copy(conn, to)
				conn.Close()
			}()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func plainly(conn net.Conn) (net.Conn, error) { return conn, nil }

func dialRemote(t *testing.T, uri, certificates string) *Client {
	t.Helper()
	c, err := DialRemote(t.Context(), uri, certificates)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestRemote makes calls and exchanges data by every transport.
func TestRemote(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	certificates := newAuthority(t).directory(t, "127.0.0.1")
	for name, reach := range map[string]func(*testing.T, *daemon) string{
		"unix": func(t *testing.T, d *daemon) string { return "vz:///system?socket=" + url.QueryEscape(d.path) },
		"tcp": func(t *testing.T, d *daemon) string {
			return "vz+tcp://127.0.0.1:" + reachable(t, d, plainly) + "/system"
		},
		"tls": func(t *testing.T, d *daemon) string {
			return "vz://127.0.0.1:" + reachable(t, d, secured(t, certificates, 1)) + "/system"
		},
		"ssh": func(t *testing.T, d *daemon) string {
			t.Setenv(fakeSSH, d.path)
			return "vz+ssh://root@there.example:2222/system?keyfile=/root/key&no_verify=1&command=" + url.QueryEscape(own)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := startRemote(t)
			c := dialRemote(t, reach(t, d), certificates)
			if opened, _ := d.opens(); len(opened) != 1 || *opened[0].Name != "vz:///system" || opened[0].Flags != 0 {
				t.Errorf("opened is %+v", opened)
			}
			for range 3 {
				if _, err := Call(t.Context(), c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "lan"}); err != nil {
					t.Error(err)
				}
			}
			_, s, err := CallStream(t.Context(), c, protocol.StorageVolUpload, &protocol.StorageVolUploadArgs{})
			if err != nil {
				t.Fatal(err)
			}
			body := make([]byte, 3<<20)
			rand.Read(body)
			go s.Write(body)
			got := make([]byte, len(body))
			if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, body) {
				t.Errorf("what comes back is another: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := s.Write(body[:1]); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("after the end: %v", err)
			}
			c.Close()
			<-c.Done()
			eventually(t, "the daemon has no client", func() bool { return len(d.server.Clients()) == 0 })
			if name != "ssh" {
				return
			}
			args, _ := os.ReadFile(d.path + ".args")
			for _, words := range []string{"BatchMode=yes", "-p\n2222", "-l\nroot", "-i\n/root/key", "StrictHostKeyChecking=no",
				"\n--\nthere.example\nsh\n-c\n'if command -v virt-ssh-helper", `exec virt-ssh-helper '\''vz:///system'\'';`} {
				if !strings.Contains(string(args), words) {
					t.Errorf("%q is missing in\n%s", words, args)
				}
			}
		})
	}
}

// TestRemoteRefused: what is wrong with a URI or with the host it leads to.
func TestRemoteRefused(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(fakeSSH, "/nonexistent")
	d := startRemote(t)
	here := "vz:///system?socket=" + url.QueryEscape(d.path)
	asks := func(types ...protocol.AuthType) rpc.Handler {
		return func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
			return protocol.AuthListRet{Types: types}, nil
		}
	}
	refuses := func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		return nil, &Error{Code: protocol.ErrAccessDenied, Detail: "not for you"}
	}
	for _, c := range []struct {
		uri, want string
		handlers  map[string]rpc.Handler
	}{
		{"vz://%zz", "is not understood", nil},
		{"vz+tcp://host:port/", "is not understood", nil},
		{"qemu:///system", "it must begin with vz", nil},
		{"", "it must begin with vz", nil},
		{"vz+unix://host/system", "has no host that can be reached by unix", nil},
		{"vz+tcp:///system", "has no host that can be reached by tcp", nil},
		{"vz+ssh://-oProxyCommand=id/system", "has no host that can be reached by ssh", nil},
		{"vz+ssh://-oProxyCommand=id@host/system", "has no host that can be reached by ssh", nil},
		{"vz+libssh2://host/system", "the transport 'libssh2' cannot be used by a daemon", nil},
		{"vz+ssh://host/system?name=vz:///'$(id)'", "cannot be opened", nil},
		{"vz+ssh://host/system?command=/nonexistent", "/nonexistent", nil},
		{"vz+ssh://host/system?command=" + url.QueryEscape(own), "root@there: [1mPermission denied (publickey).", nil},
		{"vz:///system?socket=/nonexistent", "no such file or directory", nil},
		{"vz://127.0.0.1:1/system", "connection refused", nil},
		{here, "it asks for a password", map[string]rpc.Handler{"AUTH_LIST": asks(protocol.AuthTypeSasl)}},
		{here, "it asks for a password", map[string]rpc.Handler{"AUTH_LIST": asks()}},
		{here, "not for you", map[string]rpc.Handler{"CONNECT_OPEN": refuses}},
		{here, "not for you", map[string]rpc.Handler{"CONNECT_SUPPORTS_FEATURE": refuses}},
	} {
		for _, name := range []string{"AUTH_LIST", "CONNECT_OPEN", "CONNECT_SUPPORTS_FEATURE"} {
			d.handle(name, c.handlers[name])
		}
		client, err := DialRemote(t.Context(), c.uri, t.TempDir())
		if err == nil {
			client.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\x1b\r\n") {
			t.Errorf("%s: got %v, want %s", c.uri, err, c.want)
		}
	}
}

// TestRemoteBreaks ends streams, calls and connections in every other way.
func TestRemoteBreaks(t *testing.T) {
	d := startRemote(t)
	uri := "vz+tcp://127.0.0.1:" + reachable(t, d, plainly) + "/system"
	c := dialRemote(t, uri, "")
	open := func() io.ReadWriteCloser {
		t.Helper()
		_, s, err := CallStream(t.Context(), c, protocol.StorageVolDownload, &protocol.StorageVolDownloadArgs{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	is := func(what string, err error, words string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: got %v, want %s", what, err, words)
		}
	}
	write := func(s io.Writer) (err error) {
		for n := 0; err == nil && n < 1000; n++ {
			_, err = s.Write(make([]byte, 1<<16))
		}
		return err
	}

	d.handle("STORAGE_VOL_DOWNLOAD", func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		return nil, &Error{Code: protocol.ErrNoStorageVol, Detail: "no such volume"}
	})
	_, _, err := CallStream(t.Context(), c, protocol.StorageVolDownload, &protocol.StorageVolDownloadArgs{})
	var answered *Error
	if !errors.As(err, &answered) || answered.Code != protocol.ErrNoStorageVol || IsLost(err) {
		t.Errorf("refused: %v", err)
	}

	d.handle("STORAGE_VOL_DOWNLOAD", tunnelled(func(s *rpc.Tunnel) {
		s.Send(content("before"))
		s.Abort(&Error{Code: protocol.ErrOperationFailed, Detail: "disk on fire"})
	}))
	s := open()
	got, err := io.ReadAll(s)
	if is("aborted", err, "disk on fire"); string(got) != "before" {
		t.Errorf("before that: %q", got)
	}
	is("writing to what was aborted", write(s), "disk on fire")
	s.Close()

	d.handle("STORAGE_VOL_DOWNLOAD", tunnelled(func(s *rpc.Tunnel) {
		s.Send(content("all"))
		s.Send(finish)
	}))
	s = open()
	if got, err := io.ReadAll(s); err != nil || string(got) != "all" {
		t.Errorf("finished: %q, %v", got, err)
	}
	s.Close()

	// One whose reader has gone keeps the connection for others.
	ended := make(chan struct{})
	d.handle("STORAGE_VOL_DOWNLOAD", tunnelled(func(s *rpc.Tunnel) {
		defer close(ended)
		go s.Receive()
		for range 64 {
			if s.Send(content(string(make([]byte, 1<<18)))) != nil {
				return
			}
		}
		s.Send(finish)
	}))
	s = open()
	s.Close()
	if _, err := Call(t.Context(), c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "lan"}); err != nil {
		t.Error(err)
	}
	<-ended

	// A call that is not answered ends when its caller has waited enough, and
	// another with the connection.
	begun, blocked := make(chan struct{}, 2), make(chan struct{})
	d.handle("NETWORK_LOOKUP_BY_NAME", func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		begun <- struct{}{}
		<-blocked
		return nil, errors.New("late")
	})
	call := func(ctx context.Context) error {
		_, err := Call(ctx, c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "lan"})
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waited enough: %v", err)
	}
	d.handle("STORAGE_VOL_DOWNLOAD", tunnelled(func(s *rpc.Tunnel) { <-blocked }))
	s = open()
	failed := make(chan error, 2)
	go func() { failed <- call(t.Context()) }()
	go func() {
		_, err := s.Read(make([]byte, 1))
		failed <- err
	}()
	<-begun
	<-begun
	time.AfterFunc(100*time.Millisecond, func() { close(blocked) })
	d.crash()
	for range 2 {
		if err := <-failed; !IsLost(err) {
			is("a stream of a daemon that died", err, "broke in the middle of the transfer")
		}
	}
	<-c.Done()
	is("writing to a daemon that died", write(s), "broke in the middle of the transfer")
	s.Close()
	if err := call(t.Context()); !IsLost(err) {
		t.Errorf("a call of a daemon that died: %v", err)
	}
}

// TestRemoteSilent: a host that says nothing is waited for as long as its caller
// wants.
func TestRemoteSilent(t *testing.T) {
	certificates := newAuthority(t).directory(t, "127.0.0.1")
	config, err := ServerTLS(certificates)
	if err != nil {
		t.Fatal(err)
	}
	d := startRemote(t)
	for _, silent := range []struct {
		transport string
		until     func(net.Conn) net.Conn
	}{
		{"tcp", func(conn net.Conn) net.Conn { return conn }},
		{"tls", func(conn net.Conn) net.Conn { return conn }},
		{"tls", func(conn net.Conn) net.Conn { return tls.Server(conn, config) }},
	} {
		gone := make(chan struct{})
		port := reachable(t, d, func(conn net.Conn) (net.Conn, error) {
			defer close(gone)
			_, err := io.Copy(io.Discard, silent.until(conn))
			return nil, errors.Join(err, io.EOF)
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // it has to be connected by then
		_, err := DialRemote(ctx, "vz+"+silent.transport+"://127.0.0.1:"+port+"/system", certificates)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "deadline exceeded") && !strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: %v", silent.transport, err)
		}
		<-gone
	}
}

// authority is one of certificates, for the time of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key = a.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(t *testing.T, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err == nil {
		c, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// directory has the files of a host with that address: as libvirt's, but all in
// one place.
func (a *authority) directory(t *testing.T, address string) string {
	t.Helper()
	dir := t.TempDir()
	save := func(name, kind string, der []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save("cacert.pem", "CERTIFICATE", a.cert.Raw)
	for side, usage := range map[string]x509.ExtKeyUsage{"client": x509.ExtKeyUsageClientAuth, "server": x509.ExtKeyUsageServerAuth} {
		cert, key := a.issue(t, &x509.Certificate{
			IPAddresses: []net.IP{net.ParseIP(address)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		})
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		save(side+"cert.pem", "CERTIFICATE", cert.Raw)
		save(side+"key.pem", "PRIVATE KEY", der)
	}
	return dir
}

// secured is the side of TLS that waits, and then answers whether it accepts who
// came, as libvirt's daemons do.
func secured(t *testing.T, dir string, answer byte) func(net.Conn) (net.Conn, error) {
	t.Helper()
	config, err := ServerTLS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func(conn net.Conn) (net.Conn, error) {
		secure := tls.Server(conn, config)
		if err := secure.Handshake(); err != nil {
			return nil, err
		}
		_, err := secure.Write([]byte{answer})
		return secure, err
	}
}

// TestRemoteTLS: each side refuses another that is not who it must be.
func TestRemoteTLS(t *testing.T) {
	d := startRemote(t)
	ours, others := newAuthority(t), newAuthority(t)
	good, elsewhere := ours.directory(t, "127.0.0.1"), ours.directory(t, "192.0.2.1")
	copied := func(from, to, name string) {
		t.Helper()
		body, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, body, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	impostor := others.directory(t, "127.0.0.1") // trusts our authority, which does not know it
	copied(good, filepath.Join(impostor, "cacert.pem"), "cacert.pem")
	wrong := others.directory(t, "127.0.0.1")
	broken := others.directory(t, "127.0.0.1")
	copied(good, filepath.Join(broken, "cacert.pem"), "clientkey.pem")
	unpaired := ours.directory(t, "127.0.0.1")
	copied(good, filepath.Join(unpaired, "clientkey.pem"), "clientkey.pem")
	pki := t.TempDir() // where libvirt has them
	copied(good, filepath.Join(pki, "CA/cacert.pem"), "cacert.pem")
	copied(good, filepath.Join(pki, "libvirt/clientcert.pem"), "clientcert.pem")
	copied(good, filepath.Join(pki, "libvirt/private/clientkey.pem"), "clientkey.pem")

	for name, c := range map[string]struct {
		server, client string
		answer         byte
		want           string
	}{
		"in one place":        {good, good, 1, ""},
		"where libvirt's are": {good, pki, 1, ""},
		"another authority":   {good, wrong, 1, "certificate signed by unknown authority"},
		"another name":        {elsewhere, good, 1, "certificate is valid for 192.0.2.1, not 127.0.0.1"},
		"an impostor":         {impostor, good, 1, "certificate signed by unknown authority"},
		"an unknown client":   {good, impostor, 1, "remote error: tls: "},
		"not accepted":        {good, good, 0, "it does not accept this host's certificate"},
		"no certificates":     {good, t.TempDir(), 1, "TLS needs certificates"},
		"no authority":        {good, broken, 1, "cacert.pem has no certificate"},
		"another's key":       {good, unpaired, 1, "TLS needs certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			serve := secured(t, c.server, c.answer)
			port := reachable(t, d, func(conn net.Conn) (net.Conn, error) {
				secure, err := serve(conn)
				if err == nil && c.answer != 1 {
					_, err = secure.Read(make([]byte, 1)) // until the other side has gone
				}
				if err != nil {
					ended <- err
				}
				return secure, err
			})
			// The certificates that the URI names are used in place of the host's.
			uri := "vz://127.0.0.1:" + port + "/system?pkipath=" + url.QueryEscape(c.client)
			client, err := DialRemote(t.Context(), uri, "/nonexistent")
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				client.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("the connection is still open")
			}
		})
	}
}

// TestRemoteSaysLate: why ssh has failed is told although it says so after the
// connection has ended, as it may on a busy host.
func TestRemoteSaysLate(t *testing.T) {
	ssh := filepath.Join(t.TempDir(), "ssh")
	if err := os.WriteFile(ssh, []byte("#!/bin/sh\nexec <&- >&-\nsleep 0.5\necho 'no route to there' >&2\nexit 255\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := DialRemote(t.Context(), "vz+ssh://there/system?command="+url.QueryEscape(ssh), t.TempDir())
	if err == nil || !strings.HasSuffix(err.Error(), ": no route to there") {
		t.Errorf("got %v", err)
	}
}

// TestRemoteFallsSilent: a daemon that says nothing any more is given up, whatever
// waits for it, and one that only takes its time is not.
func TestRemoteFallsSilent(t *testing.T) {
	pulse, patience := remotePulse, remotePatience
	t.Cleanup(func() { remotePulse, remotePatience = pulse, patience }) // when nobody is there any more who reads them
	remotePulse, remotePatience = 20*time.Millisecond, 2*time.Second
	d := startRemote(t)
	d.handle("NETWORK_LOOKUP_BY_NAME", func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		time.Sleep(2 * remotePatience)
		return nil, &Error{Code: protocol.ErrNoNetwork, Detail: "at last"}
	})
	silent := make(chan struct{})
	end := make(chan struct{})
	defer close(end)
	port := reachable(t, d, func(conn net.Conn) (net.Conn, error) { return &stopping{conn, silent, end}, nil })
	c := dialRemote(t, "vz+tcp://127.0.0.1:"+port+"/system", "")
	lookup := func() error {
		_, err := Call(t.Context(), c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "lan"})
		return err
	}
	if err := lookup(); err == nil || !strings.Contains(err.Error(), "at last") {
		t.Errorf("one that takes its time: %v", err)
	}
	close(silent)
	answered := make(chan error, 1)
	go func() { answered <- lookup() }()
	select {
	case err := <-answered:
		if !IsLost(err) {
			t.Errorf("one that is silent: %v", err)
		}
	case <-time.After(20 * remotePatience):
		t.Error("one that is silent is still waited for")
	}
}

// stopping is a connection of a daemon that stops to read it.
type stopping struct {
	net.Conn
	silent, end chan struct{}
}

func (s *stopping) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	select {
	case <-s.silent:
		<-s.end
		return 0, io.EOF
	default:
		return n, err
	}
}
