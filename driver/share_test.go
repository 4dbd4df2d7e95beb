package driver

import (
	"strings"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/systemd"
	"virtvzd/systemd/bustest"
)

// TestPolkitHangs has users who are being asked for their passwords on more
// connections than there are workers: that keeps root waiting for nothing.
func TestPolkitHangs(t *testing.T) {
	h := newTestHost(t)
	b, a := bustest.New(t), &authority{wait: make(chan struct{})}
	a.attach(t, b)
	defer close(a.wait)
	h.set(func(drv *Driver) {
		drv.polkit, drv.config.AuthUnixRW = &polkit{bus: systemd.NewBus(b.Address)}, "polkit"
	})
	authPolkit := protocol.AuthPolkit.Info
	for n := range 10 {
		c := rpctest.DialAs(t, h.socket, rpctest.Nobody)
		c.Start(protocol.RemoteProgram, protocol.RemoteVersion, authPolkit.Number, nil)
		if n == 0 {
			c.Start(protocol.RemoteProgram, protocol.RemoteVersion, authPolkit.Number, nil)
			if e := c.Next().Error(t); !strings.Contains(*e.Message, "already") {
				t.Errorf("polkit is asked twice about one connection: %s", *e.Message)
			}
		}
	}
	time.Sleep(100 * time.Millisecond) // all of them wait
	if e := ask(t, rpctest.Dial(t, h.socket), protocol.ConnectOpen.Info, protocol.ConnectOpenArgs{}); e.Status != protocol.StatusOK {
		t.Errorf("root cannot open a connection: %s", *e.Error(t).Message)
	}
}

// TestSubscriptionsOfUser: who has many clients has no more callbacks in all,
// and those of a client that goes are free again.
func TestSubscriptionsOfUser(t *testing.T) {
	e := newEvents()
	defer close(e.queue)
	of := func(uid uint32) *client { return &client{identity: identity{UID: uid}} }
	take := func(c *client) error {
		_, err := e.subscribe(c, subscription{id: protocol.DomainEventIDLifecycle})
		return err
	}
	a, b := of(1), of(1)
	for n := range maxSubscriptions {
		c := a
		if n%2 > 0 {
			c = b
		}
		if err := take(c); err != nil {
			t.Fatal(n, err)
		}
	}
	if err := take(of(1)); err == nil || !strings.Contains(err.Error(), "clients of user 1 have 4096 ") {
		t.Error("got", err)
	}
	for _, uid := range []uint32{0, 2} {
		if err := take(of(uid)); err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	if err := e.unsubscribe(a, 0); err != nil {
		t.Fatal(err)
	}
	if err := take(a); err != nil {
		t.Error(err)
	}
	e.forget(a)
	e.forget(b)
	if len(e.users) != 2 {
		t.Errorf("counted are %v", e.users)
	}
}
