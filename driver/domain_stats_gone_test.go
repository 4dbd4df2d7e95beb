package driver

import (
	"context"
	"testing"

	"virtvzd/driver/protocol"
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
