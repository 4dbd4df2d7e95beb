package driver

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

// hanging is an access driver that lets everything through but getattr of a
// domain, which waits until two ask and it is told to answer.
type hanging struct{ both, answer sync.WaitGroup }

func (h *hanging) allowed(ctx context.Context, _ identity, o object, permission string) error {
	if o.kind == "domain" && permission == "getattr" {
		h.both.Done()
		h.answer.Wait()
	}
	return nil
}

// TestEventsWhilePolkitHangs: two clients are asked about at once, nobody who
// changes a domain waits for the answer, and what came before the queue was full
// is told in order.
func TestEventsWhilePolkitHangs(t *testing.T) {
	h := newTestHost(t)
	access := &hanging{}
	access.both.Add(2)
	access.answer.Add(1)
	h.access.set(access)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	d := h.drv.domains.lookupName("web1")
	var clients []*rpctest.Client
	for range 2 {
		c := dial(t, h.socket, 0)
		ask(t, c, protocol.ConnectDomainEventCallbackRegisterAny.Info, protocol.ConnectDomainEventCallbackRegisterAnyArgs{EventID: protocol.DomainEventIDLifecycle})
		clients = append(clients, c)
	}
	const more = 1000
	done := make(chan bool)
	go func() {
		for n := range eventBacklog + more {
			h.drv.events.emit(d, lifecycleEvent(protocol.DomainEventDefined, int32(n)))
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a change of a domain waits for polkitd")
	}
	access.both.Wait() // for ever, if they were asked about one after the other
	access.both.Add(1 << 20)
	access.answer.Done()
	for _, c := range clients {
		for n := range 100 {
			p, msg := c.Next(), protocol.DomainEventCallbackLifecycleMsg{}
			if err := xdr.Unmarshal(p.Body, &msg); err != nil || msg.Msg.Detail != int32(n) {
				t.Fatalf("event %d is %+v, %v", n, msg, err)
			}
		}
	}
	if n := strings.Count(h.log.String(), "events are lost"); n != 1 {
		t.Errorf("that events are lost is said %d times", n)
	}
}

// TestClientGivenUp: that the daemon closed the connection of a client that did
// not answer stands in the log, for virsh dies of it without a word. Of one that
// leaves by itself nothing is said.
func TestClientGivenUp(t *testing.T) {
	h := newTestHost(t)
	server := rpc.NewServer("virtvzd", rpc.Limits{MaxClients: 5, MaxAnonymousClients: 5, MaxClientRequests: 5, MaxWorkers: 1,
		KeepaliveInterval: 100 * time.Millisecond, KeepaliveCount: 2}, EncodeError)
	h.drv.Register(server)
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l, rpc.ListenerOptions{})
	dial(t, socket, 0).Close()
	silent := dial(t, socket, 0)
	ask(t, silent, protocol.ConnectSupportsFeature.Info, protocol.ConnectSupportsFeatureArgs{Feature: featureKeepalive})
	silent.Closed()
	if err := server.Shutdown(t.Context()); err != nil { // when the clients' ends have been told
		t.Fatal(err)
	}
	log := h.log.String()
	h.want(log, "level=WARN", "the client did not answer keepalive messages", fmt.Sprint("pid=", os.Getpid()))
	if strings.Count(log, "client left") != 1 {
		t.Errorf("in the log: %s", log)
	}
}
