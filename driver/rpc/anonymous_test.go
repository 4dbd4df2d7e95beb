package rpc

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

// newGuardedServer has clients that nobody has authenticated.
func newGuardedServer(t *testing.T, change func(*Limits)) *testServer {
	s := newTestServer(t, change)
	s.guarded.Store(true)
	return s
}

// TestAnonymousMessage has a client send more than one needs to authenticate.
func TestAnonymousMessage(t *testing.T) {
	s := newGuardedServer(t, nil)
	h := protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho}
	c := rpctest.Dial(t, s.path)
	if p := call(c, procEcho, make([]byte, 64<<10)); len(p.Body) != 64<<10 {
		t.Fatalf("a step of SASL got %d bytes", len(p.Body))
	}
	conn := s.client(t, 0)
	c.Send(binary.BigEndian.AppendUint32(nil, anonymousMessage+lengthSize+1))
	c.Closed()
	<-conn.Done()
	if !strings.Contains(conn.Reason(), "larger than the limit") {
		t.Errorf("the reason given is %q", conn.Reason())
	}

	known := rpctest.Dial(t, s.path)
	call(known, procEcho, nil)
	s.client(t, 0).SetAuthenticated()
	known.Send(rpctest.Frame(h, make([]byte, anonymousMessage+4)))
	if p := known.Next(); len(p.Body) != anonymousMessage+4 {
		t.Errorf("a known client got %d bytes", len(p.Body))
	}
}

// TestAuthTimeout has clients that never say who they are, that are being
// asked, and that are known.
func TestAuthTimeout(t *testing.T) {
	s := newGuardedServer(t, func(l *Limits) { l.AuthTimeout = 50 * time.Millisecond })
	asked := rpctest.Dial(t, s.path)
	asked.Start(testProgram, testVersion, procSleep, nil)
	being := s.client(t, 0)
	eventually(t, "the call is served", func() bool { return len(being.slots) == 1 })
	silent := rpctest.Dial(t, s.path)
	conn := s.client(t, 1)
	silent.Closed()
	<-conn.Done()
	if !strings.Contains(conn.Reason(), "did not authenticate") {
		t.Errorf("the reason given is %q", conn.Reason())
	}

	known := rpctest.Dial(t, s.path)
	s.client(t, 1).SetAuthenticated()
	time.Sleep(200 * time.Millisecond)
	if p := call(known, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("a known client gets no answer")
	}
	if being.ctx.Err() != nil {
		t.Errorf("a client that waits for the answer was closed: %s", being.Reason())
	}
	close(s.release)
	asked.Next()
	asked.Closed()
}

// TestAnonymousShare has one user take the places that all have to
// authenticate.
func TestAnonymousShare(t *testing.T) {
	const nobody = 65534
	s := newGuardedServer(t, func(l *Limits) { l.MaxAnonymousClients = 6 })
	dir := filepath.Dir(s.path)
	for _, path := range []string{s.path, dir, filepath.Dir(dir)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	dial := func(uid int) *net.UnixConn {
		made := make(chan *net.UnixConn)
		go func() {
			if os.Geteuid() == 0 {
				runtime.LockOSThread() // which ends with the goroutine: it alone is another user
				if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); err != 0 {
					t.Error(err)
				}
			}
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
			if err != nil {
				t.Error(err)
			}
			made <- c
		}()
		c := <-made
		if c == nil {
			t.FailNow()
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range 3 {
		dial(nobody)
	}
	eventually(t, "three are connected", func() bool { return s.ClientLimits().Anonymous == 3 })
	c := dial(nobody)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("one user has more than half of the places (%v)", err)
	}
	if os.Geteuid() != 0 {
		return
	}
	for _, uid := range []int{nobody - 1, 0, 0} {
		dial(uid)
	}
	eventually(t, "others have places", func() bool { return s.ClientLimits().Anonymous == 6 })
}
