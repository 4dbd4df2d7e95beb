package driver

import (
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

func TestConsequence(t *testing.T) {
	def := &libvirtxml.Domain{OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "coredump-restart"}
	other := &libvirtxml.Domain{OnPoweroff: "restart", OnReboot: "destroy", OnCrash: "preserve"}
	for _, c := range []struct {
		cause     runtime.ExitCause
		rebooting bool
		def       *libvirtxml.Domain
		restart   bool
		reason    int32
	}{
		{runtime.ExitPoweroff, false, def, false, protocol.DomainShutoffShutdown},
		{runtime.ExitPoweroff, true, def, false, protocol.DomainShutoffShutdown}, // asked to reboot, it powered off
		{runtime.ExitPoweroff, false, other, true, protocol.DomainShutoffShutdown},
		{runtime.ExitReboot, false, def, true, protocol.DomainShutoffShutdown},
		{runtime.ExitReboot, false, other, false, protocol.DomainShutoffShutdown},
		{runtime.ExitCrash, false, def, true, protocol.DomainShutoffCrashed},
		{runtime.ExitCrash, true, other, false, protocol.DomainShutoffCrashed},
		{runtime.ExitKilled, false, def, false, protocol.DomainShutoffDestroyed}, // destroyed, whatever on_crash says
		{runtime.ExitUnknown, false, def, false, protocol.DomainShutoffUnknown},
		{runtime.ExitUnknown, true, def, true, protocol.DomainShutoffShutdown},
		{runtime.ExitUnknown, true, other, false, protocol.DomainShutoffShutdown},
	} {
		if got := consequence(c.cause, c.rebooting, c.def); got.restart != c.restart || got.reason != c.reason {
			t.Errorf("%v, rebooting %v, %s/%s/%s: %+v", c.cause, c.rebooting, c.def.OnPoweroff, c.def.OnReboot, c.def.OnCrash, got)
		}
	}
}

// An environment that ends soon after each start is given up in the end; one that
// ran for a while may begin to count anew, however long its start took.
func TestCountRestart(t *testing.T) {
	d := &domain{}
	d.current.Store(&view{})
	c := &change{domain: d}
	for _, ran := range []time.Duration{0, time.Second, soon - 1, soon, time.Hour, 0, 1, 2, 3, 4} {
		if !c.countRestart(ran) {
			t.Errorf("not restarted after it ran %v", ran)
		}
	}
	if c.countRestart(5) {
		t.Error("restarted a sixth time")
	}
}
