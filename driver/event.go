package driver

import (
	"context"
	"sync"
	"sync/atomic"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// event is something that happened to a domain, ready to be put into the
// form each subscriber asked for.
type event struct {
	id int32
	// message builds what goes over the wire for a callback id. For a
	// subscriber that registered without one (legacy, before libvirt 1.2.1)
	// callback is -1, and a nil body means it cannot be told.
	message func(dom protocol.NonnullDomain, callback int32) (*protocol.Info, xdr.Marshaler)
}

const legacyCallback = -1

// lifecycleEvent tells that a domain was defined, started, stopped, …
func lifecycleEvent(what, detail int32) event {
	return event{protocol.DomainEventIDLifecycle, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		msg := protocol.DomainEventLifecycleMsg{Dom: dom, Event: int32(what), Detail: detail}
		if cb == legacyCallback {
			return protocol.DomainEventLifecycle.Info, &msg
		}
		return protocol.DomainEventCallbackLifecycle.Info,
			&protocol.DomainEventCallbackLifecycleMsg{CallbackID: cb, Msg: msg}
	}}
}

// rebootEvent tells that the environment's init was started again.
func rebootEvent() event {
	return event{protocol.DomainEventIDReboot, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		msg := protocol.DomainEventRebootMsg{Dom: dom}
		if cb == legacyCallback {
			return protocol.DomainEventReboot.Info, &msg
		}
		return protocol.DomainEventCallbackReboot.Info,
			&protocol.DomainEventCallbackRebootMsg{CallbackID: cb, Msg: msg}
	}}
}

// controlErrorEvent tells that the environment or what is left of it does not
// obey any more: an administrator has to look. The error is the caller's, and
// in the daemon's log.
func controlErrorEvent() event {
	return event{protocol.DomainEventIDControlError, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		msg := protocol.DomainEventControlErrorMsg{Dom: dom}
		if cb == legacyCallback {
			return protocol.DomainEventControlError.Info, &msg
		}
		return protocol.DomainEventCallbackControlError.Info,
			&protocol.DomainEventCallbackControlErrorMsg{CallbackID: cb, Msg: msg}
	}}
}

// metadataEvent tells that title, description or an element of metadata
// changed; uri names the element.
func metadataEvent(kind int32, uri *string) event {
	return event{protocol.DomainEventIDMetadataChange, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		return protocol.DomainEventCallbackMetadataChange.Info,
			&protocol.DomainEventCallbackMetadataChangeMsg{CallbackID: cb, Dom: dom, Type: int32(kind), Nsuri: uri}
	}}
}

// subscription is one callback a client registered.
type subscription struct {
	id     int32
	legacy bool
	dom    *protocol.UUID // only this domain's events; nil for all
	uid    uint32         // of the client
}

// events hands what happens to the clients that asked for it, in order. One
// goroutine does so, because whether a client may see a domain can be a
// question to polkit, which must not keep a change or a lock waiting.
type events struct {
	queue  chan occurrence
	losing atomic.Bool // the queue was full, and has not been empty since

	mu    sync.Mutex // protects what follows, never held across a send or a check
	subs  map[*client]map[int32]subscription
	users map[uint32]int // callbacks of each user
}

// occurrence is an event of one domain under the name it had then.
type occurrence struct {
	d   *domain
	dom protocol.NonnullDomain
	event
}

const (
	maxSubscriptions = 4096 // callbacks of one client, and of all of a user other than root
	eventBacklog     = 4096 // occurrences not yet handed out
)

func newEvents() *events {
	e := &events{queue: make(chan occurrence, eventBacklog), subs: map[*client]map[int32]subscription{}, users: map[uint32]int{}}
	go e.run()
	return e
}

// subscribe registers a callback and gives its id.
func (e *events) subscribe(c *client, s subscription) (int32, error) {
	if s.id < 0 || s.id > protocol.DomainEventIDNicMacChange {
		return 0, errorf(protocol.ErrInternalError, "unsupported event ID %d", s.id)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	mine := e.subs[c]
	if mine == nil {
		mine = map[int32]subscription{}
		e.subs[c] = mine
	}
	if len(mine) >= maxSubscriptions {
		return 0, errorf(protocol.ErrOperationFailed, "this client has %d event callbacks already", len(mine))
	}
	s.uid = c.who().UID
	if n := e.users[s.uid]; s.uid != 0 && n >= maxSubscriptions {
		return 0, errorf(protocol.ErrOperationFailed, "the clients of user %d have %d event callbacks already", s.uid, n)
	}
	if s.legacy {
		for _, old := range mine {
			if old.legacy && old.id == s.id {
				return 0, errorf(protocol.ErrInternalError, "domain event %d already registered", s.id)
			}
		}
	}
	id := c.nextCallback
	c.nextCallback++
	mine[id] = s
	e.users[s.uid]++
	return id, nil
}

// drop forgets one callback; e.mu is held.
func (e *events) drop(c *client, id int32) {
	s := e.subs[c][id]
	if e.users[s.uid]--; e.users[s.uid] == 0 {
		delete(e.users, s.uid)
	}
	delete(e.subs[c], id)
}

// unsubscribe forgets one callback.
func (e *events) unsubscribe(c *client, id int32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.subs[c][id]; !ok {
		return errorf(protocol.ErrInternalError, "domain event callback %d not registered", id)
	}
	e.drop(c, id)
	return nil
}

// unsubscribeLegacy forgets the callback registered without an id.
func (e *events) unsubscribeLegacy(c *client, id int32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, s := range e.subs[c] {
		if s.legacy && s.id == id {
			e.drop(c, key)
			return nil
		}
	}
	return errorf(protocol.ErrInternalError, "domain event %d not registered", id)
}

// forget drops all callbacks of a client that left.
func (e *events) forget(c *client) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.subs[c] {
		e.drop(c, id)
	}
	delete(e.subs, c)
}

// emit queues an event for everybody who asked. The domain is named as it
// is now: after the change that caused the event.
func (e *events) emit(d *domain, ev event) {
	e.emitAs(d, d.ref(d.view()), ev)
}

// emitAs names the domain differently, as for a rename.
//
// It never waits: whoever emits holds a domain's job. Where polkitd hangs for so
// long that the queue is full, what happens next is not told.
func (e *events) emitAs(d *domain, dom protocol.NonnullDomain, ev event) {
	select {
	case e.queue <- occurrence{d, dom, ev}:
	default:
		if !e.losing.Swap(true) {
			d.drv.log.Error("events are lost: polkitd does not answer whether clients may see them", "waiting", len(e.queue))
		}
	}
}

// recipient is one callback that wants an occurrence.
type recipient struct {
	client   *client
	callback int32
}

func (e *events) run() {
	for o := range e.queue {
		list := e.recipients(o)
		may := whoMaySee(o.d, list)
		for _, r := range list {
			if info, body := o.message(o.dom, r.callback); body != nil && may(r.client) {
				r.client.conn.Send(info.Program, info.Version, info.Number, body)
			}
		}
		if len(e.queue) == 0 {
			e.losing.Store(false)
		}
	}
}

// maxQuestions is how many polkitd is asked at once.
const maxQuestions = 32

// whoMaySee asks for all recipients at once, so that polkitd, if it hangs, keeps
// an event as long as one question takes and not as long as all.
func whoMaySee(d *domain, list []recipient) (may func(*client) bool) {
	if d.drv.access == nil {
		return func(*client) bool { return true }
	}
	ctx, cancel := context.WithTimeout(context.Background(), policyTimeout)
	defer cancel()
	var asking sync.WaitGroup
	free := make(chan struct{}, maxQuestions)
	answers := map[*client]*bool{}
	for _, r := range list {
		if answers[r.client] != nil {
			continue
		}
		answer := new(bool)
		answers[r.client] = answer
		free <- struct{}{}
		asking.Go(func() {
			*answer = r.client.maySee(ctx, d)
			<-free
		})
	}
	asking.Wait()
	return func(c *client) bool { return *answers[c] }
}

func (e *events) recipients(o occurrence) []recipient {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []recipient
	for c, subs := range e.subs {
		for id, s := range subs {
			if s.id != o.id || (s.dom != nil && *s.dom != o.d.uuid) {
				continue
			}
			if s.legacy {
				id = legacyCallback
			}
			list = append(list, recipient{c, id})
		}
	}
	return list
}
