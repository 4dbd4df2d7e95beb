package driver

import (
	"strings"
	"testing"
)

// TestVirshRootOfAnother: a root that only one may write to is that of one
// domain, whatever its definition is called. A template's is everybody's.
func TestVirshRootOfAnother(t *testing.T) {
	h := newTestHost(t)
	with := func(name, root string) string {
		template := "<filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem>"
		return h.file(strings.Replace(domainXML(name, ""), template, root, 1))
	}
	for kind, source := range map[string]string{
		"mount": "dir='/srv/%s'", "file": "file='/srv/%s.img'", "block": "dev='/dev/vg/%s'", "volume": "pool='p' volume='%s'",
	} {
		root := func(of, more string) string {
			return "<filesystem type='" + kind + "'><source " + strings.Replace(source, "%s", of, 1) + "/><target dir='/'/>" + more + "</filesystem>"
		}
		h.virsh(true, "define", with("web1", root("web1", "")))
		h.want(h.virsh(false, "define", with("web2", root("web1", ""))), "is that of the domain 'web1'", "cp -a --reflink=auto")
		h.want(h.virsh(false, "dominfo", "web2"), "failed to get domain")
		h.virsh(true, "define", with("web2", root("web1", "<readonly/>")))
		h.want(h.virsh(false, "define", strings.TrimSpace(h.file(strings.Replace(h.virsh(true, "dumpxml", "web2"), "<readonly/>", "", 1)))), "is that of the domain 'web1'")
		h.virsh(true, "define", h.file(h.virsh(true, "dumpxml", "web1")))
		h.virsh(true, "undefine", "web1")
		h.virsh(true, "undefine", "web2")
		h.virsh(true, "define", with("web2", root("web1", "")))
		h.virsh(true, "undefine", "web2")
	}
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	h.virsh(true, "define", h.file(domainXML("web2", "")))
}
