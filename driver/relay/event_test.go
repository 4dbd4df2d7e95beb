package relay

import (
	"context"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

func register(t *testing.T, c *rpctest.Client) int32 {
	t.Helper()
	p := do(t, c, protocol.ConnectNetworkEventRegisterAny.Info, protocol.ConnectNetworkEventRegisterAnyArgs{})
	if p.Status != protocol.StatusOK {
		t.Fatal(*p.Error(t).Message)
	}
	return decode[protocol.ConnectNetworkEventRegisterAnyRet](t, p).CallbackID
}

func deregister(t *testing.T, c *rpctest.Client, id int32) rpctest.Packet {
	t.Helper()
	return do(t, c, protocol.ConnectNetworkEventDeregisterAny.Info, protocol.ConnectNetworkEventDeregisterAnyArgs{CallbackID: id})
}

func decode[T any](t *testing.T, p rpctest.Packet) (v T) {
	t.Helper()
	if err := xdr.Unmarshal(p.Body, any(&v).(xdr.Unmarshaler)); err != nil {
		t.Fatal(err)
	}
	return v
}

// hears wants an event with this id and name to be the next packet.
func hears(t *testing.T, c *rpctest.Client, id int32, name string) {
	t.Helper()
	p := c.Next()
	if p.Type != protocol.Message || p.Proc != int32(protocol.NetworkEventLifecycle.Number) {
		t.Fatalf("got %+v, want an event", p.MessageHeader)
	}
	if e := decode[protocol.NetworkEventLifecycleMsg](t, p); e.CallbackID != id || e.Net.Name != name {
		t.Errorf("callback %d hears of %q, want %d and %q", e.CallbackID, e.Net.Name, id, name)
	}
}

// TestEvents translates the ids: the daemon's are 71, 72, …
func TestEvents(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	first, second := register(t, c), register(t, c)
	if first == second || first > 10 {
		t.Errorf("the ids are %d and %d", first, second)
	}
	d.announce(72, "two")
	hears(t, c, second, "two")
	d.announce(71, "one")
	hears(t, c, first, "one")
	d.announce(9, "nobody's")
	if p := deregister(t, c, first); p.Status != protocol.StatusOK {
		t.Error(*p.Error(t).Message)
	}
	if n := d.calls("CONNECT_NETWORK_EVENT_DEREGISTER_ANY"); n != 1 {
		t.Errorf("the daemon was told %d times", n)
	}
	d.announce(71, "one")
	d.announce(72, "two")
	hears(t, c, second, "two")
	fails(t, deregister(t, c, first), protocol.ErrInternalError, "callback 0 not registered")
	// Another client's are its own.
	other := f.dial(t)
	if id := register(t, other); id != first {
		t.Errorf("another client's first callback is %d", id)
	}
	fails(t, deregister(t, other, second), protocol.ErrInternalError, "not registered")
	c.Close()
	eventually(t, "the callbacks of one who left are gone", func() bool { return len(d.server.Clients()) == 1 })
}

// TestEventOrder: what a daemon announces right behind the answer to a
// registration arrives behind it.
func TestEventOrder(t *testing.T) {
	f := newFront(t, Config{})
	startDaemon(t, f.dir, "libvirt-sock", map[string]rpc.Handler{
		"CONNECT_NETWORK_EVENT_REGISTER_ANY": func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
			c.Answer(protocol.ConnectNetworkEventRegisterAnyRet{CallbackID: 55}, nil)
			sendEvent(c.Conn, 55, "at once")
			return nil, rpc.ErrLater
		},
	})
	for range 100 {
		c := f.dial(t)
		start(t, c, protocol.ConnectNetworkEventRegisterAny.Info, protocol.ConnectNetworkEventRegisterAnyArgs{})
		if p := c.Next(); p.Type != protocol.Reply || p.Status != protocol.StatusOK {
			t.Fatalf("got %+v, want the reply", p.MessageHeader)
		}
		hears(t, c, 0, "at once")
		c.Close()
	}
}

// TestEventsAfterRestart: the client's ids stay, nobody has to ask. It may
// remove one while the daemon is away.
func TestEventsAfterRestart(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	removed, kept := register(t, c), register(t, c)
	d.stop()
	eventually(t, "the end is seen", func() bool { return f.connections() == 0 })
	if p := deregister(t, c, removed); p.Status != protocol.StatusOK {
		t.Error(*p.Error(t).Message)
	}
	fails(t, do(t, c, protocol.ConnectNetworkEventRegisterAny.Info, protocol.ConnectNetworkEventRegisterAnyArgs{}), protocol.ErrNoSupport, "libvirt-daemon-driver-network")
	answered := make(chan bool, 10) // what is announced then comes behind the answer
	d.handle("CONNECT_NETWORK_EVENT_REGISTER_ANY", func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		c.Answer(d.usual(protocol.ConnectNetworkEventRegisterAny.Info, c))
		answered <- true
		return nil, rpc.ErrLater
	})
	for restart := range int32(2) {
		d.givesIDsFrom(100 * (restart + 1))
		before := d.calls("CONNECT_NETWORK_EVENT_REGISTER_ANY")
		d.start()
		eventually(t, "the callback is registered again", func() bool { return d.calls("CONNECT_NETWORK_EVENT_REGISTER_ANY") == before+1 })
		<-answered
		d.announce(100*(restart+1)+1, "back")
		hears(t, c, kept, "back")
		d.stop()
	}
	// A call that comes before the next try registers them too.
	d.givesIDsFrom(300)
	d.start()
	works(t, c)
	<-answered
	d.announce(301, "by a call")
	hears(t, c, kept, "by a call")
	if p := deregister(t, c, kept); p.Status != protocol.StatusOK {
		t.Error(*p.Error(t).Message)
	}
	d.stop()
}

// TestEventGone: the object of a callback is gone after the restart. The
// others are heard.
func TestEventGone(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	p := do(t, c, protocol.ConnectNetworkEventRegisterAny.Info, protocol.ConnectNetworkEventRegisterAnyArgs{Net: &protocol.NonnullNetwork{Name: "gone"}})
	gone := decode[protocol.ConnectNetworkEventRegisterAnyRet](t, p).CallbackID
	kept := register(t, c)
	d.stop()
	eventually(t, "the end is seen", func() bool { return f.connections() == 0 })
	answered := make(chan bool, 10) // what is announced then comes behind the answer
	d.handle("CONNECT_NETWORK_EVENT_REGISTER_ANY", func(_ context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		var args protocol.ConnectNetworkEventRegisterAnyArgs
		if err := xdr.Unmarshal(c.Payload, &args); err != nil || args.Net != nil {
			return nil, &Error{Code: protocol.ErrNoNetwork, Detail: "no such network"}
		}
		c.Answer(protocol.ConnectNetworkEventRegisterAnyRet{CallbackID: 8}, nil)
		answered <- true
		return nil, rpc.ErrLater
	})
	d.start()
	works(t, c)
	<-answered
	d.announce(8, "still there")
	hears(t, c, kept, "still there")
	for _, id := range []int32{gone, kept} {
		if p := deregister(t, c, id); p.Status != protocol.StatusOK {
			t.Errorf("callback %d cannot be removed: %s", id, *p.Error(t).Message)
		}
	}
}

func TestEventLimits(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	for range maxCallbacks {
		register(t, c)
	}
	info := protocol.ConnectNetworkEventRegisterAny.Info
	fails(t, do(t, c, info, protocol.ConnectNetworkEventRegisterAnyArgs{}), protocol.ErrOperationFailed, "too many event callbacks")
	long := protocol.NonnullNetwork{Name: string(make([]byte, 0))}
	for len(long.Name) < maxArguments {
		long.Name += "a name that no network has "
	}
	fails(t, do(t, f.dial(t), info, protocol.ConnectNetworkEventRegisterAnyArgs{Net: &long}), protocol.ErrInvalidArg, "too long")
	p := c.Call(info.Program, info.Version, protocol.ConnectNetworkEventDeregisterAny.Number, []byte{1})
	if p.Status != protocol.StatusError {
		t.Error("half an id is accepted")
	}
	// A client that reads nothing is dropped when too much waits for it.
	for range 3000 {
		d.announce(71, long.Name)
	}
	eventually(t, "it is gone", func() bool { return len(f.Clients()) == 1 })
}

// TestOddEvents: only what belongs to the drivers is passed on.
func TestOddEvents(t *testing.T) {
	f := newFront(t, Config{})
	d := startDaemon(t, f.dir, "libvirt-sock", nil)
	c := f.dial(t)
	id := register(t, c)
	for _, conn := range d.server.Clients() {
		conn.Send(protocol.RemoteProgram, 1, protocol.DomainEventCallbackLifecycle.Number, protocol.DomainEventCallbackLifecycleMsg{CallbackID: 71})
		conn.Send(protocol.RemoteProgram, 1, protocol.NetworkEventLifecycle.Number, rpc.Raw{0})
		conn.Send(protocol.LxcProgram, 1, protocol.NetworkEventLifecycle.Number, protocol.NetworkEventLifecycleMsg{CallbackID: 71})
	}
	d.announce(71, "the only one")
	hears(t, c, id, "the only one")
}
