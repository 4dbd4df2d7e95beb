package driver

import (
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

const (
	testDisk  = `<disk type='block' device='disk'><source dev='/dev/loop0'/><target dev='vda'/><alias name='ua-x'/></disk>`
	otherDisk = `<disk type='block' device='disk'><source dev='/dev/loop1'/><target dev='vdb'/><alias name='ua-y'/></disk>`
)

// run makes a domain look as if it ran, with more devices.
func (h *testHost) run(name, devices string) {
	h.t.Helper()
	d := h.drv.domains.lookupName(name)
	def := strings.Replace(domainXML(name, "<uuid>"+d.uuid.String()+"</uuid>"), "<devices>", "<devices>"+devices, 1)
	live, err := xml.Parse(def, h.drv.facts(), xml.ParseOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.set(func(drv *Driver) { drv.rt = &runtime.Runtime{} })
	setView(d, func(v *view) { v.state, v.live = Running, xml.Live(live, xml.LiveFacts{ID: 1}) })
}

// TestConfigDevices: a device that only the saved definition has is found there.
func TestConfigDevices(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	h.run("web1", otherDisk)
	h.virsh(true, "attach-device", "web1", h.file(testDisk), "--config")
	h.virsh(true, "blkdeviotune", "web1", "vda", "--read-bytes-sec", "1000", "--config")
	h.want(strings.Join(strings.Fields(h.virsh(true, "blkdeviotune", "web1", "vda", "--config")), ""), "read_bytes_sec:1000")
	h.want(h.virsh(true, "dumpxml", "web1", "--inactive"), "<read_bytes_sec>1000<")

	// What only the running one has is not there, and the other way about.
	for _, args := range [][]string{
		{"vdb", "--config"}, {"vda", "--live"}, {"vdb", "--read-bytes-sec", "1", "--config"}, {"vda", "--read-bytes-sec", "1", "--live", "--config"},
	} {
		h.want(h.virsh(false, append([]string{"blkdeviotune", "web1"}, args...)...), "invalid path: "+args[0])
	}
	h.want(h.virsh(false, "detach-device-alias", "web1", "ua-y", "--config"), "no device found with alias ua-y")
	h.want(h.virsh(false, "detach-device-alias", "web1", "ua-x", "--live"), "no device found with alias ua-x")
	h.virsh(true, "detach-device-alias", "web1", "ua-x", "--config")
	if doc := h.virsh(true, "dumpxml", "web1", "--inactive"); strings.Contains(doc, "<disk") {
		t.Errorf("it is there still:\n%s", doc)
	}
}

// TestNotTriedToDetach: that a device could not be removed is told of one that the
// environment would not let go.
func TestNotTriedToDetach(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	h.run("web1", testDisk)
	c := dial(t, h.socket, 0)
	for _, id := range []int32{protocol.DomainEventIDDeviceRemovalFailed, protocol.DomainEventIDMetadataChange} {
		if p := ask(t, c, protocol.ConnectDomainEventCallbackRegisterAny.Info, protocol.ConnectDomainEventCallbackRegisterAnyArgs{EventID: id}); p.Status != protocol.StatusOK {
			t.Fatal(p.Error(t))
		}
	}
	h.want(h.virsh(false, "detach-device", "web1", h.file(testDisk), "--live", "--config"), "device not found")
	h.virsh(true, "desc", "web1", "--config", "the next event")
	if p := c.Next(); p.Proc != int32(protocol.DomainEventCallbackMetadataChange.Info.Number) {
		t.Errorf("event %d, and nothing was tried", p.Proc)
	}
}
