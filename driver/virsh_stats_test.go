package driver

import (
	"strings"
	"testing"

	"virtvzd/runtime"
)

// TestVirshStats asks for the numbers of domains that are shut off, with the
// host's own virsh. Those of running ones are in integration/.
func TestVirshStats(t *testing.T) {
	h := newTestHost(t)
	h.set(func(drv *Driver) { drv.rt = &runtime.Runtime{} })
	h.virsh(true, "define", h.file(domainXML("web1", "<vcpu current='2'>3</vcpu>")))
	h.virsh(true, "define", h.file(domainXML("web2", "")))
	out := h.virsh(true, "domstats")
	h.want(out, "Domain: 'web1'", "Domain: 'web2'", "state.state=5", "balloon.maximum=65536", "vcpu.current=2", "vcpu.maximum=3",
		"vcpu.1.state=0", "block.count=1", "block.0.name=/", "iothread.count=0", "memory.bandwidth.monitor.count=0")
	if strings.Contains(out, "cpu.time") || strings.Contains(out, "vz.") {
		t.Errorf("numbers of what does not run:\n%s", out)
	}
	if out := h.virsh(true, "domstats", "web2", "--state", "--nowait"); strings.Contains(out, "web1") || strings.Contains(out, "balloon") {
		t.Errorf("more than was asked for:\n%s", out)
	}
	if out := h.virsh(true, "domstats", "--list-active", "--list-transient"); strings.Contains(out, "web") {
		t.Errorf("domains that are shut off:\n%s", out)
	}
	h.want(h.virsh(false, "domstats", "--perf", "--enforce"), "Stats types bits 0x40 are not supported by this daemon")
	h.virsh(true, "domstats", "--perf")
	ro := "vz+unix:///system?socket=" + h.socket + "-ro"
	h.want(h.virshOn(ro, true, "-r", "domstats", "--state"), "state.state=5")
	for _, command := range []string{"dommemstat web1", "domblkstat web1", "domblkstat web1 /", "domifstat web1 eth0", "domfsinfo web1", "cpu-stats web1", "domblkerror web1"} {
		h.want(h.virsh(false, strings.Fields(command)...), "domain is not running")
	}
	h.want(h.virsh(false, "domblkinfo", "web1", "sda"), "invalid path: sda")
}

// TestVirshPages: virsh takes the page sizes from the capabilities.
func TestVirshPages(t *testing.T) {
	h := newTestHost(t)
	h.want(h.virsh(true, "freepages", "--all"), "Node 0:", "4KiB: ")
	h.want(h.virsh(true, "freepages", "--cellno", "0", "--pagesize", "4"), "4KiB: ")
	h.want(h.virsh(false, "freepages", "--cellno", "0", "--pagesize", "7"), "page size 7 KiB is not available")
	h.want(h.virsh(false, "freepages", "--cellno", "77", "--pagesize", "4"), "start cell 77 out of range")
	h.want(h.virsh(true, "capabilities"), `<pages size="4" unit="KiB">`, `<distances>`, `<sibling id="0" value="10"/>`)
}
