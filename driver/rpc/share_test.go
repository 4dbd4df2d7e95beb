package rpc

import (
	"encoding/binary"
	"os"
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
	s := newGuardedServer(t, func(l *Limits) { l.AuthTimeout = time.Second })
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

	eventually(t, "it is none any more", func() bool { return len(s.Clients()) == 1 }) // else it is taken for the next
	known := rpctest.Dial(t, s.path)
	s.client(t, 1).SetAuthenticated()
	time.Sleep(1500 * time.Millisecond)
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

// TestAuthTimeoutUnread: replies that a client does not read are not its time to
// authenticate.
func TestAuthTimeoutUnread(t *testing.T) {
	s := newGuardedServer(t, func(l *Limits) { l.AuthTimeout = 50 * time.Millisecond })
	c := rpctest.Dial(t, s.path)
	frame := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procEcho}, make([]byte, 64<<10))
	c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	for range 100 {
		if _, err := c.Write(frame); err != nil {
			if os.IsTimeout(err) {
				t.Error("it is connected still, and reads nothing")
			}
			return
		}
	}
	t.Error("the server takes calls without end")
}

// TestUserShare has one user take the places of all.
func TestUserShare(t *testing.T) {
	for name, places := range map[string]func(*Limits) *int{
		"clients":   func(l *Limits) *int { return &l.MaxClients },
		"anonymous": func(l *Limits) *int { return &l.MaxAnonymousClients },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, func(l *Limits) { *places(l) = 6 })
			s.guarded.Store(name == "anonymous")
			for range 3 {
				rpctest.DialAs(t, s.path, rpctest.Nobody)
			}
			eventually(t, "three are connected", func() bool { return s.ClientLimits().Current == 3 })
			last := rpctest.DialAs(t, s.path, rpctest.Nobody)
			if name == "anonymous" { // it waits
				serial := last.Start(testProgram, testVersion, procEcho, nil)
				defer func() {
					s.Clients()[0].SetAuthenticated()
					if p := last.Next(); p.Serial != serial {
						t.Errorf("got %+v", p.MessageHeader)
					}
				}()
			} else {
				last.Closed()
			}
			if os.Geteuid() != 0 {
				return
			}
			for _, uid := range []int{rpctest.Nobody - 1, 0, 0} {
				call(rpctest.DialAs(t, s.path, uid), procEcho, nil)
			}
		})
	}
}

// TestWaitingEnds: a client that has not been served is ended as others are, by
// itself, the administrator and the server's end.
func TestWaitingEnds(t *testing.T) {
	s := newGuardedServer(t, func(l *Limits) { l.MaxAnonymousClients = 1 })
	ended := make(chan uint64, 3)
	first := rpctest.Dial(t, s.path)
	call(first, procEcho, nil)
	var waiting []*rpctest.Client
	for n := range 3 {
		waiting = append(waiting, rpctest.Dial(t, s.path))
		c := s.client(t, n+1)
		c.OnClose(func() { ended <- c.ID() })
	}
	s.Clients()[1].Close("the administrator's wish")
	waiting[0].Closed()
	<-ended
	waiting[1].Close()
	first.Close() // whose place is that of the one who went, and of the next
	call(waiting[2], procEcho, nil)
	<-ended
	rpctest.Dial(t, s.path)
	s.client(t, 1).OnClose(func() { ended <- 0 })
	if err := s.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-ended
	<-ended
	if len(s.users) > 0 || s.asked > 0 || len(s.waiting) > 0 {
		t.Errorf("counted are %v, %d, %d", s.users, s.asked, len(s.waiting))
	}
}

// TestUserBytes has one user announce large messages on many connections, and
// more of them be served than may be.
func TestUserBytes(t *testing.T) {
	const large, many = 16 << 20, userBytes / (16 << 20)
	s := newTestServer(t, nil)
	call := func(proc int32) []byte {
		return rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: proc, Type: protocol.Call, Serial: 1}, make([]byte, large-frameStart))
	}
	announce := func() *rpctest.Client {
		c := rpctest.DialAs(t, s.path, rpctest.Nobody)
		c.Send(call(procEcho)[:100])
		return c
	}
	used := func() int {
		s.large.mu.Lock()
		defer s.large.mu.Unlock()
		return s.large.used[rpctest.Nobody] + s.large.used[uint32(os.Getuid())]
	}
	var clients []*rpctest.Client
	for range many {
		clients = append(clients, announce())
	}
	eventually(t, "they are counted", func() bool { return used() == userBytes })
	announce().Closed()
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "nothing is left of them", func() bool { return used() == 0 })

	c := rpctest.DialAs(t, s.path, rpctest.Nobody)
	for range many + 1 {
		if _, err := c.Write(call(procSleep)); err != nil {
			break
		}
	}
	c.Closed()
	close(s.release)
	eventually(t, "nothing is left of those that were served", func() bool { return used() == 0 })
	c = rpctest.DialAs(t, s.path, rpctest.Nobody)
	c.Send(call(procEcho))
	if p := c.Next(); len(p.Body) != large-frameStart {
		t.Errorf("%d bytes came back", len(p.Body))
	}
}

// TestUserFiles sends descriptors where nobody is to.
func TestUserFiles(t *testing.T) {
	s := newTestServer(t, nil)
	listener, err := Listen(s.path+"-ro", 0o600, os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(listener, ListenerOptions{ReadOnly: true})
	guarded := newGuardedServer(t, nil)
	for name, path := range map[string]string{"read-only": s.path + "-ro", "anonymous": guarded.path} {
		c := rpctest.Dial(t, path)
		if _, _, err := c.WriteMsgUnix([]byte{0}, unix.UnixRights(0, 0), nil); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		c.Closed()
	}
}
