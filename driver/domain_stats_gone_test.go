package driver

import (
	"context"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/rpctest"
	"virtvzd/driver/rpc/xdr"
)

// undefines is an access driver that undefines b while it is asked about a.
type undefines struct {
	t   *testing.T
	drv *Driver
}

func (u undefines) allowed(ctx context.Context, _ identity, o object, _ string) error {
	d := u.drv.domains.lookupName("b")
	if o.name != "a" || d == nil {
		return nil
	}
	c, err := d.change(ctx, nil, "test")
	if err == nil {
		defer c.done()
		err = undefine(c, 0)
	}
	if err != nil {
		u.t.Error(err)
	}
	return nil
}

// TestAskedOfGone: those who have found a domain when it goes away get an answer
// of what it was.
func TestAskedOfGone(t *testing.T) {
	drv := statsDriver(t, "a")
	d := drv.domains.lookupName("a")
	setView(d, func(v *view) { v.live, v.config = v.definition(false), nil })
	setView(d, func(v *view) { v.live = nil })
	if !d.view().undefined() {
		t.Fatal("it is not gone")
	}
	if ret, err := domainInfo(d, nil); err != nil || ret.MaxMem == 0 {
		t.Errorf("got %+v, %v", ret, err)
	}
	if list := drv.blocks(d, d.view()); len(list) == 0 {
		t.Error("it had no root")
	}
}

// whileAsked is an access driver that does something and allows all.
type whileAsked func()

func (do whileAsked) allowed(context.Context, identity, object, string) error {
	do()
	return nil
}

// TestGoneMeanwhile: a domain that goes away while somebody decides whether a client
// may ask about it, or while the answer is looked for, is not there.
func TestGoneMeanwhile(t *testing.T) {
	h := newTestHost(t)
	forget := func() { undefines{t, h.drv}.allowed(t.Context(), identity{}, object{name: "a"}, "") }
	h.access.set(whileAsked(forget))
	c := dial(t, h.socket, 0)
	gone := func(what string, p rpctest.Packet) {
		t.Helper()
		if e := p.Error(t); e.Code != protocol.ErrNoDomain {
			t.Errorf("%s: %d %s", what, e.Code, text(e.Message))
		}
	}
	for what, call := range map[string]struct {
		info *protocol.Info
		args func(protocol.NonnullDomain) xdr.Marshaler
	}{
		"get":    {protocol.DomainGetInfo.Info, func(d protocol.NonnullDomain) xdr.Marshaler { return protocol.DomainGetInfoArgs{Dom: d} }},
		"query":  {protocol.DomainGetHostname.Info, func(d protocol.NonnullDomain) xdr.Marshaler { return protocol.DomainGetHostnameArgs{Dom: d} }},
		"modify": {protocol.DomainDestroy.Info, func(d protocol.NonnullDomain) xdr.Marshaler { return protocol.DomainDestroyArgs{Dom: d} }},
	} {
		d := addDomain(t, h.drv, "b", "")
		gone(what, ask(t, c, call.info, call.args(d.ref(d.view()))))
	}

	// While it is looked for.
	h.access.set(nil)
	d := addDomain(t, h.drv, "b", "")
	entry := query(protocol.DomainGetHostname, func(r *request, d *domain, a *protocol.DomainGetHostnameArgs) (ret protocol.DomainGetHostnameRet, err error) {
		forget()
		return domainHostname(r, d, a)
	})
	body, err := xdr.Marshal(protocol.DomainGetHostnameArgs{Dom: d.ref(d.view())})
	if err != nil {
		t.Fatal(err)
	}
	who := &client{drv: h.drv}
	who.authenticated.Store(true)
	who.opened.Store(true)
	_, err = entry.serve(&request{ctx: t.Context(), drv: h.drv, client: who, call: &rpc.Call{Payload: body}, info: protocol.DomainGetHostname.Info})
	if EncodeError(err).Code != protocol.ErrNoDomain {
		t.Error(err)
	}
}

// TestStatsOfGone: a domain that goes away while its numbers are asked for has
// none, and costs nobody the daemon.
func TestStatsOfGone(t *testing.T) {
	drv := statsDriver(t, "a", "b")
	drv.access = undefines{t, drv}
	ret, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{})
	if names := recordNames(ret.RetStats); names != "a" || err != nil {
		t.Errorf("got %s, %v", names, err)
	}
}
