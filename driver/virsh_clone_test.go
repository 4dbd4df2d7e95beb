package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// TestVirshCloneAccess: a definition gets the disk of another by each of the two
// elements that name one only from who may write to that other, or, where it is
// not defined, to the host.
func TestVirshCloneAccess(t *testing.T) {
	h, upper := newSnapshotHost(t)
	web1 := filepath.Base(filepath.Dir(upper))
	h.virsh(true, "snapshot-create-as", "web1", "one") // makes its disk
	h.put(upper, "of web1")
	const own, left = "22222222-2222-4222-8222-222222222222", "33333333-3333-4333-8333-333333333333"
	h.virsh(true, "define", h.file(domainXML("own", "<uuid>"+own+"</uuid>")))
	disk := func(of string) string { return "<disk:disk xmlns:disk='" + xml.DiskNamespace + "' of='" + of + "'/>" }
	clone := func(of string) string {
		return "<ve:ve xmlns:ve='" + xml.VENamespace + "'><ve:clone of='" + of + "'/></ve:ve>"
	}
	const web2 = "44444444-4444-4444-8444-444444444444"
	with := func(metadata ...string) string {
		return domainXML("web2", "<uuid>"+web2+"</uuid><metadata>"+strings.Join(metadata, "")+"</metadata>")
	}
	image := func(doc string) string {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "images"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(`{"Version":1}`), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "image.save")
		if err := runtime.WriteSaved(t.Context(), path, runtime.SavedHeader{Name: "web2", XML: doc}, dir, func(_, _ uint64) {}, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		return path
	}
	forbid := func(what string) { h.access.set(&rules{forbidden: what}) }
	refused := func(args ...string) {
		t.Helper()
		h.want(h.virsh(false, args...), "access denied: the disk of ", "is not for this client: take <disk:disk> and <ve:clone> out of the definition")
		if id, _ := protocol.ParseUUID(web2); h.drv.layers.Has(id) {
			t.Fatal("the disk was cloned")
		}
	}

	forbid("domain:writeweb1" + web1)
	for _, metadata := range [][]string{{disk(web1)}, {clone(web1)}, {disk(web1), clone(own)}, {disk(own), clone(web1)}} {
		refused("define", h.file(with(metadata...)))
		refused("create", h.file(with(metadata...)))
		h.virsh(false, "dominfo", "web2")
	}
	set := func(uri, element string) []string {
		return []string{"metadata", "own", uri, "--config", "--key", "k", "--set", element}
	}
	refused(set(xml.VENamespace, "<ve><clone of='"+web1+"'/></ve>")...)
	refused(set(xml.DiskNamespace, "<disk of='"+web1+"'/>")...)
	refused("restore", image(with(clone(web1))))
	refused("restore", image(with(disk(web1))))
	h.want(h.virsh(false, "save-image-define", image(with()), h.file(with(clone(web1)))), "which would not be that of the processes")
	h.virsh(true, "save-image-define", image(with(clone(web1))), h.file(with()))

	// Hidden by the other element, and then uncovered.
	h.virsh(true, set(xml.VENamespace, "<ve><clone of='"+own+"'/></ve>")...)
	h.virsh(true, set(xml.DiskNamespace, "<disk of='"+web1+"'/>")...)
	refused("metadata", "own", xml.VENamespace, "--config", "--remove")
	h.virsh(true, "metadata", "own", xml.DiskNamespace, "--config", "--remove")

	// A snapshot's definition comes into force again.
	snapshot := func() string {
		doc := h.virsh(true, "snapshot-dumpxml", "web1", "one")
		return h.file(strings.Replace(doc, "<domain type='vz'>", "<domain type='vz'><metadata>"+clone(own)+"</metadata>", 1))
	}
	forbid("domain:writeown" + own)
	refused("snapshot-create", "web1", snapshot(), "--redefine")

	// What is not defined.
	forbid("connect:write")
	refused("define", h.file(with(clone(left))))
	refused(set(xml.VENamespace, "<ve><clone of='"+left+"'/></ve>")...)

	// What comes by a migration.
	forbid("domain:writeweb1" + web1)
	r := &request{ctx: t.Context(), drv: h.drv, client: &client{drv: h.drv}, info: protocol.DomainMigratePrepare3Params.Info}
	for _, how := range []migration{
		{xml: with(clone(web1))},
		{xml: with(), flags: protocol.MigratePersistDest},
	} {
		a, err := r.arrive(how, cookie{Persistent: with(clone(web1))})
		if err == nil || !strings.Contains(err.Error(), "access denied: the disk of "+web1) {
			t.Errorf("%+v comes: %v", how, err)
		}
		if err == nil {
			a.leave()
		}
	}
	h.virsh(false, "dominfo", "web2")

	// A definition that has it already may be changed, and who may does.
	h.access.set(nil)
	h.virsh(true, "define", h.file(with(clone(web1))))
	forbid("domain:writeweb1" + web1)
	h.virsh(true, "desc", "web2", "--config", "changed")
	h.virsh(true, "define", h.file(h.virsh(true, "dumpxml", "web2")))
	h.virsh(true, "undefine", "web2")
	forbid("domain:writeown" + own)
	h.virsh(true, "define", h.file(with(disk(web1))))
	h.want(h.log.String(), "disk cloned")
	id, _ := protocol.ParseUUID(web2)
	if !h.drv.layers.Has(id) {
		t.Error("the disk was not cloned for who may")
	}
}
