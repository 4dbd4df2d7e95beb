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
