package driver

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// hangingDaemon is one of libvirt's that takes connections, and answers what is
// needed to open one, or not even that.
type hangingDaemon struct {
	opens bool
	stop  chan struct{}
}

func (d *hangingDaemon) Lookup(number uint32) (rpc.Handler, rpc.Mode, bool) {
	return func(context.Context, *rpc.Call) (xdr.Marshaler, error) {
		switch {
		case d.opens && number == protocol.AuthList.Info.Number:
			return protocol.AuthListRet{Types: []protocol.AuthType{protocol.AuthTypeNone}}, nil
		case d.opens && number == protocol.ConnectOpen.Info.Number:
			return xdr.Void{}, nil
		}
		<-d.stop
		return xdr.Void{}, nil
	}, rpc.Pool, true
}

func startHanging(t *testing.T, opens bool) (*rpc.Server, *peer) {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &hangingDaemon{opens, make(chan struct{})}
	server := rpc.NewServer("hanging", rpc.Limits{MaxClients: 100, MaxAnonymousClients: 100, MaxClientRequests: 5, MaxWorkers: 20},
		func(err error) *protocol.Error { return EncodeError(err) })
	server.OnConnect(func(c *rpc.Conn) { c.SetAuthenticated() })
	server.Register(protocol.RemoteProgram, protocol.RemoteVersion, d)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "virtnetworkd-sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l, rpc.ListenerOptions{})
	t.Cleanup(func() {
		close(d.stop)
		l.Close()
		for _, c := range server.Clients() {
			c.Close("over")
		}
	})
	return server, newPeer(relay.Config{Dir: dir}, relay.Network)
}

func (p *peer) ask(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, _, err := askFirst(ctx, p, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: "default"})
	return err
}

// TestPeerHangs: a daemon of libvirt's that hangs costs all who ask it the time of
// one, and a connection on which nothing is answered is not kept.
func TestPeerHangs(t *testing.T) {
	const patience = time.Second
	for _, opens := range []bool{false, true} {
		server, p := startHanging(t, opens)
		p.slow = patience / 50
		began := time.Now()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := p.ask(patience); err == nil || !strings.Contains(err.Error(), "does not answer") {
					t.Errorf("opens %v: %v", opens, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took > 8*patience {
			t.Errorf("opens %v: ten took %s", opens, took)
		}
		if !opens {
			continue
		}
		began = time.Now()
		if err := p.ask(time.Minute); err == nil || time.Since(began) > 8*patience {
			t.Errorf("once more: %v after %s", err, time.Since(began))
		}
		for end := time.Now().Add(time.Minute); len(server.Clients()) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections are kept", len(server.Clients()))
			}
		}
	}
}

// TestKeep: what makes the filters has a client as long as it is kept, also when
// it has been started anew.
func TestKeep(t *testing.T) {
	server, p := startHanging(t, true)
	f := &packetFilters{p}
	connected := func(what string, want int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); len(server.Clients()) != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d connections", what, len(server.Clients()))
			}
		}
	}
	f.Keep(t.Context())
	connected("at first", 1)
	client := p.client
	p.idle.Reset(3 * time.Second)
	f.Keep(t.Context())
	time.Sleep(3500 * time.Millisecond)
	if p.client != client || client.Ended() {
		t.Error("it was not kept")
	}
	server.Clients()[0].Close("restart")
	for end := time.Now().Add(time.Minute); !client.Ended(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the end of the connection is not noticed")
		}
	}
	connected("ended", 0)
	f.Keep(t.Context())
	connected("started anew", 1)
	p.drop(p.client)
}
