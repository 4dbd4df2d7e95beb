package driver

import (
	"os"
	"os/exec"
	"testing"
)

// TestSavedKeptApart: as long as there is a managed save image nothing else starts
// the domain, whose disk it has to find as it is.
func TestSavedKeptApart(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	definition := h.file(h.virsh(true, "dumpxml", "web1"))
	setView(h.drv.domains.lookupName("web1"), func(v *view) { v.saved = true })
	h.want(h.virsh(false, "create", definition), "cannot create domain 'web1' while it has a managed save image: start it, or remove that")

	cmd := exec.Command("virsh", "-c", "vz+unix:///system?socket="+h.socket, "start", "web1", "--pass-fds", "3")
	cmd.ExtraFiles = []*os.File{os.Stdin}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("it started")
	}
	h.want(string(out), "cannot pass descriptors to domain 'web1' while it has a managed save image")
	h.want(h.virsh(true, "dominfo", "web1"), "Managed save:   yes", "shut off")
}
