package relay

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

// TestForward passes a call and its answer through, byte for byte.
func TestForward(t *testing.T) {
	f := newFront(t, Config{})
	got := make(chan []byte, 1)
	d := startDaemon(t, f.dir, "virtnetworkd-sock", map[string]rpc.Handler{
		"NETWORK_LOOKUP_BY_NAME": func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			got <- c.Payload
			return rpc.Raw("not what this procedure answers!"), nil
		},
	})
	c := f.dial(t)
	body := []byte("not XDR of any kind!")
	info := protocol.NetworkLookupByName.Info
	p := c.Call(info.Program, info.Version, info.Number, body)
	if sent := <-got; !bytes.Equal(sent, body) || string(p.Body) != "not what this procedure answers!" {
		t.Errorf("the daemon got %q, the client %q", sent, p.Body)
	}
	// How it was opened, once for all calls.
	asks(t, c, 5)
	opened, whos := d.opens()
	if len(opened) != 1 || *opened[0].Name != "network:///system" || opened[0].Flags != 0 {
		t.Errorf("opened %d times, first with %+v", len(opened), opened[0])
	}
	who := map[string]protocol.TypedParamValue{}
	for _, p := range whos[0].Params {
		who[p.Field] = p.Value
	}
	if who["process-id"] != protocol.LlongValue(1) || who["process-time"] != protocol.UllongValue(2) || who["unix-user-id"] != protocol.UllongValue(3) {
		t.Errorf("the caller is told as %v", who)
	}
	// Each client has a connection of its own, which goes with it.
	other := f.dial(t)
	asks(t, other, 1)
	if n := len(d.server.Clients()); n != 2 {
		t.Errorf("%d connections for two clients", n)
	}
	other.Close()
	eventually(t, "the connection of one who left is closed", func() bool { return len(d.server.Clients()) == 1 })
}

// asks makes calls whose answer is not looked at.
func asks(t *testing.T, c *rpctest.Client, n int) {
	t.Helper()
	for range n {
		if p := do(t, c, protocol.ConnectNumOfNetworks.Info, xdr.Void{}); p.Status != protocol.StatusOK {
			t.Fatal(*p.Error(t).Message)
		}
	}
}

// TestErrorsPass: an error is the daemon's own, in all its fields.
func TestErrorsPass(t *testing.T) {
	f := newFront(t, Config{})
	startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"NETWORK_LOOKUP_BY_NAME": func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
			return nil, rpc.RawError("whatever the daemon says")
		},
	})
	p := do(t, f.dial(t), protocol.NetworkLookupByName.Info, protocol.NetworkLookupByNameArgs{})
	if p.Status != protocol.StatusError || string(p.Body) != "whatever the daemon says" {
		t.Errorf("got %+v %q", p.MessageHeader, p.Body)
	}
}

// TestNoDaemon calls every procedure on a host without any daemon.
func TestNoDaemon(t *testing.T) {
	f := newFront(t, Config{})
	c := f.dial(t)
	lists := 0
	for _, info := range protocol.Remote() {
		d, ok := Owner(info)
		if !ok || info.IsEvent() || isDeregister(info) {
			continue
		}
		p := do(t, c, info, info.NewArgs())
		switch empty, _ := xdr.Marshal(info.NewRet()); {
		case !isList(info):
			fails(t, p, protocol.ErrNoSupport, "libvirt-daemon-driver-"+string(d))
		case p.Status != protocol.StatusOK || !bytes.Equal(p.Body, empty) || len(bytes.Trim(empty, "\x00")) > 0:
			t.Errorf("%s answers status %d %x, want nothing in the list", info.Name, p.Status, p.Body)
		default:
			lists++
		}
	}
	if lists != 25 {
		t.Errorf("%d procedures list or count", lists)
	}
}

// TestWhichDaemon: the modular daemon comes first; one that is not there,
// died, has not this driver or is virtproxyd, which has none, is passed over.
func TestWhichDaemon(t *testing.T) {
	none := map[string]rpc.Handler{"CONNECT_OPEN": func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		return nil, &Error{Code: protocol.ErrNoConnect, Detail: "no connection driver available for network:///system"}
	}}
	proxy := map[string]rpc.Handler{"CONNECT_OPEN": func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		text := "Failed to connect socket to '/run/libvirt/virtnetworkd-sock': No such file or directory"
		body, err := xdr.Marshal(protocol.Error{Code: protocol.ErrSystemError, Message: &text, Level: protocol.ErrError, Int1: int32(syscall.ENOENT)})
		if err != nil {
			t.Error(err)
		}
		return nil, rpc.RawError(body)
	}}
	type socket struct {
		name  string
		state string // "runs", "lacks" the driver, "proxies": it is virtproxyd; "dead": the socket is left
	}
	modular, monolithic := "virtnetworkd-sock", "libvirt-sock"
	for name, c := range map[string]struct {
		sockets []socket
		want    string // the socket that answers, or the error's code
	}{
		"modular":                   {[]socket{{modular, "runs"}}, modular},
		"monolithic":                {[]socket{{monolithic, "runs"}}, monolithic},
		"both":                      {[]socket{{modular, "runs"}, {monolithic, "runs"}}, modular},
		"modular died":              {[]socket{{modular, "dead"}, {monolithic, "runs"}}, monolithic},
		"monolithic lacks driver":   {[]socket{{monolithic, "lacks"}}, "absent"},
		"only virtproxyd":           {[]socket{{monolithic, "proxies"}}, "absent"},
		"died":                      {[]socket{{monolithic, "dead"}}, "unreachable"},
		"modular died, other lacks": {[]socket{{modular, "dead"}, {monolithic, "lacks"}}, "unreachable"},
		"modular died, virtproxyd":  {[]socket{{modular, "dead"}, {monolithic, "proxies"}}, "unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, Config{})
			daemons := map[string]*daemon{}
			for _, s := range c.sockets {
				handlers := map[string]map[string]rpc.Handler{"lacks": none, "proxies": proxy}
				daemons[s.name] = startDaemon(t, f.dir, s.name, handlers[s.state])
				if s.state == "dead" {
					daemons[s.name].crash()
				}
			}
			client := f.dial(t)
			list := do(t, client, protocol.ConnectNumOfNetworks.Info, xdr.Void{})
			lookup := do(t, client, protocol.NetworkLookupByName.Info, protocol.NetworkLookupByNameArgs{Name: "lan"})
			switch c.want {
			case "absent":
				if list.Status != protocol.StatusOK {
					t.Errorf("no list: %s", *list.Error(t).Message)
				}
				fails(t, lookup, protocol.ErrNoSupport, "install the package libvirt-daemon-driver-network")
			case "unreachable":
				fails(t, list, protocol.ErrNoConnect, "does not answer", "connection refused")
				fails(t, lookup, protocol.ErrNoConnect, "does not answer")
			default:
				if list.Status != protocol.StatusOK || lookup.Status != protocol.StatusOK || daemons[c.want].calls("NETWORK_LOOKUP_BY_NAME") != 1 {
					t.Errorf("%s did not answer", c.want)
				}
			}
		})
	}
}

// TestNoDetour: a modular daemon that took the connection is the one, whatever
// comes of it. At libvirt-sock is virtproxyd then, which leads to it as well, but
// in the name of this daemon, root, and not in the caller's.
func TestNoDetour(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "virtnetworkd-sock", map[string]rpc.Handler{
		"CONNECT_SET_IDENTITY": func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			c.Conn.Close("too many clients")
			return nil, rpc.ErrLater
		},
	})
	proxy := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	fails(t, do(t, c, protocol.NetworkLookupByName.Info, protocol.NetworkLookupByNameArgs{}), protocol.ErrNoConnect, "virtnetworkd-sock (it closed the connection)")
	if opened, _ := proxy.opens(); len(opened) > 0 {
		t.Error("the call went by libvirt-sock")
	}
	d.handle("CONNECT_SET_IDENTITY", nil)
	works(t, c)
}

// TestEnding: a daemon that ends as it has had no clients for a while takes
// connections to the last, and closes them. systemd has the next one started.
func TestEnding(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "virtsecretd-sock", nil)
	for _, name := range []string{"AUTH_LIST", "CONNECT_OPEN", "CONNECT_SET_IDENTITY"} {
		d.handle(name, func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			d.handle(name, nil)
			c.Conn.Close("nobody was there")
			return nil, rpc.ErrLater
		})
		if p := do(t, f.dial(t), protocol.ConnectNumOfSecrets.Info, xdr.Void{}); p.Status != protocol.StatusOK {
			t.Errorf("it ended at %s: %s", name, *p.Error(t).Message)
		}
	}
}

// TestDeath kills the daemon in the middle of calls: they fail, the client
// stays, and its next call finds the new daemon.
func TestDeath(t *testing.T) {
	f := newFront(t, Config{})
	hang := func(ctx context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		<-ctx.Done()
		return nil, rpc.ErrLater // never
	}
	d := startDaemon(t, f.dir, "virtnetworkd-sock", map[string]rpc.Handler{"NETWORK_CREATE": hang})
	c := f.dial(t)
	works(t, c)
	for range 3 {
		start(t, c, protocol.NetworkCreate.Info, protocol.NetworkCreateArgs{})
	}
	eventually(t, "three calls wait", func() bool { return d.calls("NETWORK_CREATE") == 3 })
	d.crash()
	for range 3 {
		fails(t, c.Next(), protocol.ErrOperationFailed, "the connection to virtnetworkd-sock broke before virNetworkCreate was answered", "try again")
	}
	fails(t, do(t, c, protocol.NetworkLookupByName.Info, protocol.NetworkLookupByNameArgs{}), protocol.ErrNoConnect, "does not answer")
	d.start()
	works(t, c)
	// Restarted between two calls it is not even noticed.
	d.stop()
	d.start()
	works(t, c)
}

// TestGarbage: a daemon that breaks the protocol costs the calls it has.
func TestGarbage(t *testing.T) {
	stray := string(rpctest.Frame(protocol.MessageHeader{Prog: protocol.RemoteProgram, Vers: 1, Type: protocol.Reply, Serial: 999}, nil))
	for name, text := range map[string]string{
		"long": "\x7f\x00\x00\x00", "short": "\x00\x00\x00\x01", "reply to nobody": stray + "\x00\x00\x00\x02",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t, Config{})
			garbage := protocol.NetworkCreate.Number
			rawDaemon(t, filepath.Join(f.dir, "libvirt-sock"), func(h protocol.MessageHeader) []byte {
				if h.Proc == int32(garbage) {
					return []byte(text)
				}
				return plainReply(h)
			})
			c := f.dial(t)
			fails(t, do(t, c, protocol.NetworkCreate.Info, protocol.NetworkCreateArgs{}), protocol.ErrOperationFailed, "broke before virNetworkCreate was answered")
			asks(t, c, 1)
			garbage = protocol.AuthList.Number
			fails(t, do(t, f.dial(t), protocol.NetworkCreate.Info, protocol.NetworkCreateArgs{}), protocol.ErrNoConnect, "does not answer")
		})
	}
}

// TestHang: one client's daemon that does not answer keeps nobody else
// waiting, and its client may leave.
func TestHang(t *testing.T) {
	f := newFront(t, Config{})
	accepted := silent(t, f.dir, "virtstoraged-sock")
	startDaemon(t, f.dir, "virtnetworkd-sock", nil)
	c := f.dial(t)
	for range 4 {
		start(t, c, protocol.ConnectNumOfStoragePools.Info, xdr.Void{})
	}
	eventually(t, "the daemon is asked, once", func() bool { return accepted() == 1 })
	works(t, c)
	other := f.dial(t)
	start(t, other, protocol.ConnectNumOfStoragePools.Info, xdr.Void{})
	works(t, other)
	c.Close()
	eventually(t, "what waited is given up", func() bool { return len(f.Clients()) == 1 && f.connections() == 2 })
}

// TestOneClient: its calls overlap and may even have the same serial.
func TestOneClient(t *testing.T) {
	f := newFront(t, Config{})
	release := make(chan struct{})
	d := startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"NETWORK_CREATE": func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			<-release
			return rpc.Raw(c.Payload), nil
		},
	})
	c := f.dial(t)
	info := protocol.NetworkCreate.Info
	want := map[string]bool{}
	for _, body := range []string{"call", "same", "last"} {
		c.Send(rpctest.Frame(protocol.MessageHeader{Prog: info.Program, Vers: info.Version, Proc: int32(info.Number), Serial: 7}, []byte(body)))
		want[body] = true
	}
	eventually(t, "all three are under way", func() bool { return d.calls("NETWORK_CREATE") == 3 })
	works(t, c)
	close(release)
	for range 3 {
		p := c.Next()
		if p.Serial != 7 || !want[string(p.Body)] {
			t.Errorf("got %+v %q", p.MessageHeader, p.Body)
		}
		delete(want, string(p.Body))
	}
}

// TestCallers opens the driver read-only for such a client, and afresh for
// another identity, which is passed on as a proxy stated it.
func TestCallers(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	stated := []protocol.TypedParam{{Field: "x509-distinguished-name", Value: protocol.StringValue("CN=bob")}}
	for _, w := range []Caller{{UID: 5, ReadOnly: true}, {UID: 5, ReadOnly: true}, {UID: Nobody, Stated: stated}, {UID: Nobody, Stated: slices.Clone(stated)}} {
		f.who.Store(&w)
		works(t, c)
	}
	opened, whos := d.opens()
	if len(opened) != 2 || opened[0].Flags != protocol.ConnectRo {
		t.Errorf("opened %d times, first with %+v", len(opened), opened[0])
	}
	if !reflect.DeepEqual(whos[1].Params, stated) {
		t.Errorf("a proxy's words %v became %v", stated, whos[1].Params)
	}
	eventually(t, "the one for the first caller is closed", func() bool { return len(d.server.Clients()) == 1 })
}

// TestRefusedIdentity: a daemon that does not let us name the caller must not
// get calls that it would take for root's.
func TestRefusedIdentity(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"CONNECT_SET_IDENTITY": func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
			return nil, &Error{Code: protocol.ErrAccessDenied, Detail: "access denied"}
		},
	})
	c := f.dial(t)
	fails(t, do(t, c, protocol.NetworkLookupByName.Info, protocol.NetworkLookupByNameArgs{}), protocol.ErrNoConnect, "speak for others: access denied")
	if d.calls("NETWORK_LOOKUP_BY_NAME") > 0 {
		t.Error("the call was made all the same")
	}
}

// TestConnectionLimit bounds what all clients together open, and those of one
// user; some is kept for root.
func TestConnectionLimit(t *testing.T) {
	f := newFront(t, Config{MaxConnections: 10})
	startDaemon(t, f.dir, "libvirt-sock", nil)
	var clients []*rpctest.Client
	fill := func(uid uint32, n int) {
		f.who.Store(&Caller{PID: 1, StartTime: 2, UID: uid})
		for range n {
			c := f.dial(t)
			works(t, c)
			clients = append(clients, c)
		}
	}
	fill(3, 5)
	fails(t, do(t, f.dial(t), protocol.ConnectNumOfNetworks.Info, xdr.Void{}), protocol.ErrResourceBusy, "clients have 5 ", "close some")
	fill(4, 4)
	fails(t, do(t, f.dial(t), protocol.ConnectNumOfNetworks.Info, xdr.Void{}), protocol.ErrResourceBusy, "close some")
	own, err := f.relay.Dial(t.Context(), Network)
	if err != nil {
		t.Errorf("the daemon's own connection is refused: %v", err)
	} else {
		own.Close()
	}
	clients[0].Close()
	eventually(t, "there is room again", func() bool { return f.connections() == 8 })
	works(t, f.dial(t))
}

// TestFiles sends descriptors both ways.
func TestFiles(t *testing.T) {
	f := newFront(t, Config{})
	startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"NETWORK_CREATE": func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			c.ReplyFiles(c.TakeFiles()...)
			return rpc.Raw(c.Payload), nil
		},
	})
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c := f.dial(t)
	info := protocol.NetworkCreate.Info
	c.Send(rpctest.Frame(protocol.MessageHeader{Prog: info.Program, Vers: info.Version, Proc: int32(info.Number),
		Type: protocol.CallWithFds, Serial: 1}, []byte("\x00\x00\x00\x02abcd")))
	c.SendFiles(file, file)
	p := c.Next()
	if p.Type != protocol.ReplyWithFds || string(p.Body) != "\x00\x00\x00\x02abcd" {
		t.Fatalf("got %+v %q", p.MessageHeader, p.Body)
	}
	for _, back := range c.ReceiveFiles(2) {
		var text [7]byte
		back.ReadAt(text[:], 0)
		back.Close()
		if string(text[:]) != "content" {
			t.Errorf("a descriptor reads %q", text)
		}
	}
}

// TestClient is the daemon's own way to the same daemons.
func TestClient(t *testing.T) {
	f := newFront(t, Config{})
	if _, err := f.relay.Dial(t.Context(), NWFilter); err == nil || !strings.Contains(err.Error(), "libvirt-daemon-driver-nwfilter") {
		t.Errorf("without a daemon: %v", err)
	}
	text := "Network not found: no network with matching name 'lan'"
	d := startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"NETWORK_LOOKUP_BY_NAME": func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			var args protocol.NetworkLookupByNameArgs
			if err := xdr.Unmarshal(c.Payload, &args); err != nil || args.Name != "default" {
				return nil, &Error{Code: protocol.ErrNoNetwork, Detail: text}
			}
			return protocol.NetworkLookupByNameRet{Net: protocol.NonnullNetwork{Name: args.Name, UUID: protocol.UUID{1}}}, nil
		},
		"NETWORK_CREATE": func(ctx context.Context, _ *rpc.Call) (xdr.Marshaler, error) {
			<-ctx.Done()
			return xdr.Void{}, nil
		},
	})
	c, err := f.relay.Dial(t.Context(), Network)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ret, err := Call(t.Context(), c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "default"})
	if err != nil || ret.Net.Name != "default" || ret.Net.UUID != (protocol.UUID{1}) {
		t.Errorf("got %+v, %v", ret, err)
	}
	_, err = Call(t.Context(), c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "lan"})
	if e, ok := err.(*Error); !ok || e.Code != protocol.ErrNoNetwork || e.Detail != text {
		t.Errorf("got %v", err)
	}
	if _, whos := d.opens(); len(whos) > 0 {
		t.Error("the daemon speaks for somebody else")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Call(ctx, c, protocol.NetworkCreate, &protocol.NetworkCreateArgs{}); err != context.DeadlineExceeded {
		t.Errorf("got %v", err)
	}
	d.stop()
	if _, err := Call(t.Context(), c, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "default"}); err == nil {
		t.Error("a call on a broken connection succeeds")
	}
}

// TestOwners: each procedure that belongs to a driver is one that the
// generated table has with an event or a call, and none needs its arguments
// to be looked at for a read-only client.
func TestOwners(t *testing.T) {
	for _, info := range protocol.Remote() {
		d, ok := Owner(info)
		if ok && info.Access == protocol.Conditional {
			t.Errorf("%s of %s is refused to read-only clients by its arguments, which are not looked at", info.Name, d)
		}
		if strings.HasPrefix(info.Name, "DOMAIN") && ok {
			t.Errorf("%s is relayed to %s", info.Name, d)
		}
	}
	if len(events) != 8 {
		t.Errorf("%d events are passed on", len(events))
	}
}
