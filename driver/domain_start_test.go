package driver

import (
	"errors"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// statuses are those that a later daemon would find.
func statuses(t *testing.T, drv *Driver) (all []savedStatus) {
	t.Helper()
	err := drv.store.statuses(func(_ protocol.UUID, s savedStatus) {
		s.Live = ""
		all = append(all, s)
	}, func(path string, err error) { t.Error(path, err) })
	if err != nil {
		t.Error(err)
	}
	return all
}

// TestAutodestroyCutOff: a daemon that comes after one which died in the middle of
// a start, as this one does for want of a runtime, knows that the domain was to end
// with its client.
func TestAutodestroyCutOff(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	for args, want := range map[string]bool{"--autodestroy": true, "--paused": false} {
		h.virsh(false, "start", "web1", args)
		if got := statuses(t, h.drv); len(got) != 1 || got[0].Autodestroy != want {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

// TestStatusOfStart: a later daemon finds what it has to do with what was started,
// and nothing of a start that failed.
func TestStatusOfStart(t *testing.T) {
	drv := statsDriver(t, "web1")
	c, err := drv.domains.lookupName("web1").change(t.Context(), nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.done()
	fails := errors.New("it fails")
	_, _, err = c.launchWith(c.view().config, view{state: Paused, reason: protocol.DomainPausedStartingUp}, func(*xml.Environment) (*runtime.Instance, error) {
		want := savedStatus{Name: "web1", State: Paused, Reason: protocol.DomainPausedStartingUp, Persistent: true}
		if got := statuses(t, drv); len(got) != 1 || got[0] != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		return nil, fails
	})
	if err != fails {
		t.Error(err)
	}
	if left := statuses(t, drv); len(left) > 0 {
		t.Errorf("left: %+v", left)
	}
}
