package driver

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

// The tests of this file say on the wire what no real client would.

// ask makes a call.
func ask(t *testing.T, c *rpctest.Client, info *protocol.Info, args xdr.Marshaler) rpctest.Packet {
	t.Helper()
	body, err := xdr.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	return c.Call(info.Program, info.Version, info.Number, body)
}

// dial opens a connection as clients do.
func dial(t *testing.T, socket string, flags uint32) *rpctest.Client {
	t.Helper()
	c := rpctest.Dial(t, socket)
	if p := ask(t, c, protocol.ConnectOpen.Info, protocol.ConnectOpenArgs{Flags: flags}); p.Status != protocol.StatusOK {
		t.Fatal(p.Error(t))
	}
	return c
}

// everyCall is all that management clients can call, but what ends the
// connection.
func everyCall() (list []*protocol.Info) {
	for _, info := range slices.Concat(protocol.Remote(), protocol.Qemu(), protocol.Lxc()) {
		if !info.IsEvent() && info != protocol.ConnectClose.Info {
			list = append(list, info)
		}
	}
	return list
}

// TestReadOnly: the server itself refuses what libvirt's library would have
// refused in the client, whether it serves the procedure or not, on the socket
// for reading and to those who asked for reading on the other.
func TestReadOnly(t *testing.T) {
	h := newTestHost(t)
	for name, c := range map[string]*rpctest.Client{
		"socket": dial(t, h.socket+"-ro", 0), "flag": dial(t, h.socket, protocol.ConnectRo),
	} {
		refused := map[protocol.Access]int{}
		for _, info := range everyCall() {
			args := info.NewArgs()
			if info.Access == protocol.Conditional {
				reflect.ValueOf(args).Elem().FieldByName("Flags").SetUint(uint64(^uint32(0)))
			}
			if a, ok := args.(*protocol.DomainInterfaceAddressesArgs); ok {
				a.Source = protocol.DomainInterfaceAddressesSrcAgent
			}
			if !info.RefusedReadOnly(args) {
				continue
			}
			refused[info.Access]++
			if e := ask(t, c, info, args).Error(t); e.Code != protocol.ErrOperationDenied || e.Message == nil || !strings.Contains(*e.Message, "read only access prevents "+functionName(info)) {
				t.Errorf("%s: %s is answered %d %s", name, info.Name, e.Code, text(e.Message))
			}
		}
		if refused[protocol.Refused] != 209 || refused[protocol.Conditional] != 6 {
			t.Errorf("%s: %v procedures were tried", name, refused)
		}
	}
}

// TestWrongArguments sends every procedure arguments that are cut off, and
// random bytes: each is answered, and the connection goes on.
func TestWrongArguments(t *testing.T) {
	h := newTestHost(t)
	c := dial(t, h.socket, 0)
	random := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	for _, info := range everyCall() {
		whole, err := xdr.Marshal(info.NewArgs())
		if err != nil {
			t.Fatal(info.Name, err)
		}
		bodies := [][]byte{nil, noise(12), noise(200), bytes.Repeat([]byte{0xff}, 64)}
		if _, relayed := relay.Owner(info); len(whole) > 0 && !relayed { // whose it is looks at them
			e := c.Call(info.Program, info.Version, info.Number, whole[:len(whole)-1]).Error(t)
			if e.Code != protocol.ErrRpc || !strings.Contains(text(e.Message), "unable to decode the arguments") {
				t.Errorf("%s, cut off: %d %s", info.Name, e.Code, text(e.Message))
			}
		}
		for _, body := range bodies {
			c.Call(info.Program, info.Version, info.Number, body) // fails the test if there is no reply
		}
	}
	if p := ask(t, c, protocol.ConnectGetType.Info, xdr.Void{}); p.Status != protocol.StatusOK {
		t.Error(p.Error(t))
	}
	if strings.Contains(h.log.String(), "defect") {
		t.Error("a procedure panicked")
	}
}

// lastCaller is an access driver that notes who asked.
type lastCaller struct{ atomic.Pointer[identity] }

func (l *lastCaller) allowed(_ context.Context, who identity, _ object, _ string) error {
	l.Store(&who)
	return nil
}

// TestSetIdentity: root's proxy says for whom it speaks, in words that are
// passed on as they are, and nobody else may.
func TestSetIdentity(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("VIRTVZD_REQUIRE") != "" {
		t.Fatal("only root may set the identity of a connection")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root may set the identity of a connection")
	}
	h := newTestHost(t)
	last := &lastCaller{}
	h.access.set(last)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	c := dial(t, h.socket, 0)
	set := func(c *rpctest.Client, params ...protocol.TypedParam) rpctest.Packet {
		t.Helper()
		return ask(t, c, protocol.ConnectSetIdentity.Info, protocol.ConnectSetIdentityArgs{Params: params})
	}
	seen := func() identity {
		t.Helper()
		if p := ask(t, c, protocol.DomainLookupByName.Info, protocol.DomainLookupByNameArgs{Name: "web1"}); p.Status != protocol.StatusOK {
			t.Fatal(p.Error(t))
		}
		return *last.Load()
	}
	user := []protocol.TypedParam{
		{Field: protocol.ConnectIdentityUnixUserID, Value: protocol.UllongValue(1000)},
		{Field: protocol.ConnectIdentityUserName, Value: protocol.StringValue("alice")},
		{Field: protocol.ConnectIdentityProcessID, Value: protocol.LlongValue(42)},
		{Field: protocol.ConnectIdentityProcessTime, Value: protocol.UllongValue(4711)},
	}
	if p := set(c, user...); p.Status != protocol.StatusOK {
		t.Fatal(p.Error(t))
	}
	if who := seen(); !reflect.DeepEqual(who, identity{PID: 42, StartTime: 4711, UID: 1000, stated: user}) {
		t.Errorf("it speaks for %+v", who)
	}

	// What makes no sense changes nothing.
	for _, bad := range [][]protocol.TypedParam{
		{{Field: "unix-user", Value: protocol.UllongValue(0)}},
		{{Field: protocol.ConnectIdentityUnixUserID, Value: protocol.IntValue(0)}},
		{{Field: protocol.ConnectIdentityUnixUserID, Value: protocol.UllongValue(1 << 32)}},
		{{Field: protocol.ConnectIdentityProcessID, Value: protocol.LlongValue(-1)}},
		{user[0], user[0]},
	} {
		if e := set(c, bad...).Error(t); e.Code != protocol.ErrInvalidArg {
			t.Errorf("%v: %d %s", bad, e.Code, text(e.Message))
		}
	}
	if who := seen(); who.UID != 1000 {
		t.Errorf("after nonsense it speaks for %+v", who)
	}

	// A client of TLS is no user of this host, least of all root.
	named := protocol.TypedParam{Field: protocol.ConnectIdentityX509DistinguishedName, Value: protocol.StringValue("CN=bob")}
	if p := set(c, named); p.Status != protocol.StatusOK {
		t.Fatal(p.Error(t))
	}
	who := seen()
	if who.UID != nobody || !reflect.DeepEqual(who.stated, []protocol.TypedParam{named}) {
		t.Errorf("a client of TLS is %+v", who)
	}
	err := polkitAccess{}.allowed(t.Context(), who, object{kind: "domain"}, "read")
	if EncodeError(err).Code != protocol.ErrAccessDenied {
		t.Errorf("polkit is asked about a client of TLS: %v", err)
	}

	dir := filepath.Dir(h.socket)
	for path, mode := range map[string]os.FileMode{h.socket: 0o666, dir: 0o755, filepath.Dir(dir): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	other := as(t, 65534, h.socket)
	if e := set(other, user...).Error(t); e.Code != protocol.ErrAccessDenied || !strings.Contains(text(e.Message), "user 65534 may not set the identity") {
		t.Errorf("a plain user: %d %s", e.Code, text(e.Message))
	}
}

// as dials as another user: the kernel tells the server who connected.
func as(t *testing.T, uid uintptr, socket string) *rpctest.Client {
	t.Helper()
	runtime.LockOSThread() // of this thread only
	defer runtime.UnlockOSThread()
	const unchanged = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, unchanged, uid, unchanged); errno != 0 {
		t.Fatal(errno)
	}
	defer unix.RawSyscall(unix.SYS_SETRESUID, unchanged, 0, unchanged)
	return dial(t, socket, 0)
}
