//go:build cgo

package driver

import (
	"strings"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
)

var eventLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for libvirt.EventRunDefaultImpl() == nil {
		}
	}()
	return nil
})

// TestLibvirtClient is a client of libvirt's own library with an event loop:
// calls, errors with their codes, events with their filters, and the close
// callback when the daemon goes away.
func TestLibvirtClient(t *testing.T) {
	h := newTestHost(t)
	if err := eventLoop(); err != nil {
		t.Fatal(err)
	}
	conn, err := libvirt.NewConnect("vz+unix:///system?socket=" + h.socket)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan libvirt.ConnectCloseReason, 1)
	if err := conn.RegisterCloseCallback(func(_ *libvirt.Connect, why libvirt.ConnectCloseReason) { closed <- why }); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetKeepAlive(5, 3); err != nil {
		t.Fatal(err)
	}
	happened := make(chan libvirt.DomainEventType, 16)
	id, err := conn.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, _ *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		happened <- e.Event
	})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want libvirt.DomainEventType) {
		t.Helper()
		select {
		case got := <-happened:
			if got != want {
				t.Errorf("event %d, want %d", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("event %d does not come", want)
		}
	}

	dom, err := conn.DomainDefineXML(domainXML("web1", ""))
	if err != nil {
		t.Fatal(err)
	}
	expect(libvirt.DOMAIN_EVENT_DEFINED)
	for _, c := range []struct {
		call func() error
		want libvirt.ErrorNumber
	}{
		{func() error { _, err := conn.LookupDomainByName("nosuch"); return err }, libvirt.ERR_NO_DOMAIN},
		{func() error { return dom.Destroy() }, libvirt.ERR_OPERATION_INVALID},
		{func() error { _, err := conn.DomainDefineXML("<domain/>"); return err }, libvirt.ERR_XML_ERROR},
		{func() error { return dom.InjectNMI(0) }, libvirt.ERR_NO_SUPPORT},
	} {
		err, ok := c.call().(libvirt.Error)
		if !ok || err.Code != c.want {
			t.Errorf("got %v, want code %d", err, c.want)
		}
	}
	if list, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_PERSISTENT); err != nil || len(list) != 1 {
		t.Errorf("%d persistent domains, %v", len(list), err)
	}
	if model, err := conn.GetSecurityModel(); err != nil || model.Model != "" {
		t.Errorf("the security model is %+v, %v", model, err)
	}
	if label, err := dom.GetSecurityLabel(); err != nil || label.Label != "" {
		t.Errorf("the security label is %+v, %v", label, err)
	}
	if updated, err := dom.IsUpdated(); err != nil || updated {
		t.Errorf("what does not run is updated: %v, %v", updated, err)
	}
	if err := dom.Undefine(); err != nil {
		t.Fatal(err)
	}
	expect(libvirt.DOMAIN_EVENT_UNDEFINED)
	if err := conn.DomainEventDeregister(id); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.DomainDefineXML(domainXML("web2", "")); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-happened:
		t.Errorf("event %d after the callback was removed", e)
	case <-time.After(100 * time.Millisecond):
	}

	h.stop()
	select {
	case why := <-closed:
		if why != libvirt.CONNECT_CLOSE_REASON_EOF {
			t.Errorf("closed for the reason %d, want the end of the connection", why)
		}
	case <-time.After(time.Minute):
		t.Error("the close callback is not called")
	}
	conn.Close()
}

// TestManyChanges is 1,000 changes of one domain by 20 clients at once: each
// is whole, and the last one is what memory and disk agree on.
func TestManyChanges(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	uri := "vz+unix:///system?socket=" + h.socket
	var clients sync.WaitGroup
	for n := range 20 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			conn, err := libvirt.NewConnect(uri)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			dom, err := conn.LookupDomainByName("web1")
			if err != nil {
				t.Error(err)
				return
			}
			defer dom.Free()
			for i := range 50 {
				// Both limits are of one change: one without the other must not be seen.
				kib := uint64(2048 + 64*(50*n+i))
				if err := dom.SetMemoryParameters(&libvirt.DomainMemoryParameters{
					HardLimitSet: true, HardLimit: kib, SoftLimitSet: true, SoftLimit: kib - 1024,
				}, libvirt.DOMAIN_AFFECT_CONFIG); err != nil {
					t.Error(err)
					return
				}
				p, err := dom.GetMemoryParameters(libvirt.DOMAIN_AFFECT_CONFIG)
				if err != nil || p.HardLimit != p.SoftLimit+1024 {
					t.Errorf("half a change is seen: %+v, %v", p, err)
				}
			}
		}()
	}
	clients.Wait()
	served := h.virsh(true, "dumpxml", "web1", "--inactive")
	h.stop()
	h.open(h.drv.store.configDir)
	if stored := h.virsh(true, "dumpxml", "web1", "--inactive"); stored != served {
		t.Errorf("served before the restart:\n%s\nand after it:\n%s", served, stored)
	}
}

// TestExtremeValues are those that virsh does not let through, or that only
// a client of its own sends.
func TestExtremeValues(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "<vcpu>2</vcpu>")))
	conn, err := libvirt.NewConnect("vz+unix:///system?socket=" + h.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dom, err := conn.LookupDomainByName("web1")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	const config = libvirt.DOMAIN_AFFECT_CONFIG
	absent := make([]bool, 1024)
	absent[1023] = true
	before := h.virsh(true, "dumpxml", "web1")
	for name, c := range map[string]struct {
		call func() error
		want string
	}{
		"no memory":               {func() error { return setHardLimit(dom, 0) }, "<hard_limit> is 0 KiB, at least 1024 KiB are needed"},
		"no CPU":                  {func() error { return dom.PinVcpuFlags(0, make([]bool, 8), config) }, "Empty cpu list"},
		"a CPU that is not there": {func() error { return dom.PinVcpuFlags(0, absent, config) }, "CPU 1023 does not exist"},
		"one for the emulator":    {func() error { return dom.PinEmulator(absent, config) }, "CPU 1023 does not exist"},
		"2^31 CPUs":               {func() error { return dom.SetVcpusFlags(1<<31, libvirt.DOMAIN_VCPU_CONFIG|libvirt.DOMAIN_VCPU_MAXIMUM) }, "1 to 16384 are accepted"},
		"flags of the future":     {func() error { return dom.SetMemoryFlags(65536, 1<<30) }, "unsupported flags"},
		"an I/O thread":           {func() error { return dom.AddIOThread(1, config) }, "an environment has no I/O threads"},
		"its I/O threads":         {func() error { _, err := dom.GetIOThreadInfo(config); return err }, "an environment has no I/O threads"},
		"performance events":      {func() error { return dom.SetPerfEvents(&libvirt.DomainPerfEvents{CmtSet: true, Cmt: true}, config) }, "performance events are not collected"},
		"which are on":            {func() error { _, err := dom.GetPerfEvents(config); return err }, "performance events are not collected"},
	} {
		if err := c.call(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if after := h.virsh(true, "dumpxml", "web1"); after != before {
		t.Errorf("what was refused changed\n%s\nto\n%s", before, after)
	}

	// 2^53-1 KiB or more is no limit.
	if err := setHardLimit(dom, ^uint64(0)); err != nil {
		t.Error(err)
	}
	h.want(h.virsh(true, "memtune", "web1", "--config"), "hard_limit     : unlimited")
}

func setHardLimit(dom *libvirt.Domain, kib uint64) error {
	return dom.SetMemoryParameters(&libvirt.DomainMemoryParameters{HardLimitSet: true, HardLimit: kib}, libvirt.DOMAIN_AFFECT_CONFIG)
}
