//go:build cgo

package driver

import (
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
		case <-time.After(10 * time.Second):
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
	case <-time.After(10 * time.Second):
		t.Error("the close callback is not called")
	}
	conn.Close()
}
