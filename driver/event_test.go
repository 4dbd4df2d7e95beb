package driver

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"virtvzd/driver/protocol"
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
	h.drv.access = access
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
