package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
)

// newSnapshotHost has an environment with a disk that never runs.
func newSnapshotHost(t *testing.T) (h *testHost, upper string) {
	t.Helper()
	h = newTestHost(t)
	data, root := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "issue"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.OpenTemplates(data).Import(t.Context(), "busybox", root, runtime.ImportOptions{Limits: runtime.DefaultLimits}); err != nil {
		t.Fatal(err)
	}
	h.set(func(drv *Driver) { drv.layers = runtime.OpenLayers(data, filepath.Join(data, "state")) })
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	id := strings.TrimSpace(h.virsh(true, "domuuid", "web1"))
	return h, filepath.Join(data, "private", id, "upper")
}

func (h *testHost) put(dir, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *testHost) same(got string, want ...string) {
	h.t.Helper()
	if fields := strings.Fields(got); strings.Join(fields, " ") != strings.Join(want, " ") {
		h.t.Errorf("got %q, want %q", fields, want)
	}
}

func TestVirshSnapshots(t *testing.T) {
	h, upper := newSnapshotHost(t)
	h.want(h.virsh(true, "snapshot-create-as", "web1", "one", "the first state"), "Domain snapshot one created")
	h.put(upper, "1")
	h.virsh(true, "snapshot-create-as", "web1", "two", "--disk-only")
	h.virsh(true, "snapshot-create-as", "web1", "three")
	h.virsh(true, "snapshot-revert", "web1", "one")
	h.virsh(true, "snapshot-create-as", "web1", "other")

	list := func(args ...string) string {
		return h.virsh(true, append([]string{"snapshot-list", "web1", "--name"}, args...)...)
	}
	h.same(list(), "one", "other", "three", "two")
	h.same(list("--topological"), "one", "other", "two", "three")
	h.same(list("--roots"), "one")
	h.same(list("--leaves"), "other", "three")
	h.same(list("--no-leaves"), "one", "two")
	h.same(list("--from", "one"), "other", "two")
	h.same(list("--from", "one", "--descendants"), "other", "three", "two")
	h.same(list("--inactive"), "one", "other", "three", "two")
	h.same(list("--disk-only"))
	h.same(list("--active"))
	h.same(list("--external"))
	h.same(list("--internal", "--leaves"), "other", "three")
	h.same(list("--no-metadata"))
	h.want(h.virsh(true, "snapshot-list", "web1", "--tree"), "one", "  |", "  +- two", "+- three", "+- other")
	h.want(h.virsh(true, "snapshot-list", "web1", "--parent"), "shutoff", "one")
	h.same(h.virsh(true, "snapshot-current", "web1", "--name"), "other")
	h.same(h.virsh(true, "snapshot-parent", "web1", "three"), "two")
	h.want(h.virsh(false, "snapshot-parent", "web1", "one"), "has no parent")
	h.want(h.virsh(true, "snapshot-info", "web1", "one"), "Current:        no", "State:          shutoff", "Children:       2", "Descendants:    3", "Metadata:       yes", "Location:       internal")
	h.want(h.virsh(true, "snapshot-dumpxml", "web1", "one"), "<description>the first state</description>", "<memory snapshot='no'/>", "<domain type='vz'>", "<layer id='")
	h.same(h.virsh(true, "list", "--all", "--name", "--with-snapshot"), "web1")
	h.same(h.virsh(true, "list", "--all", "--name", "--without-snapshot"))

	h.want(h.virsh(true, "snapshot-current", "web1", "two"), "Snapshot two set as current")
	h.same(h.virsh(true, "snapshot-current", "web1", "--name"), "two")

	// Another daemon knows the same.
	next := &testHost{t: t, log: &output{}, socket: h.socket + "2", relay: relay.Config{Dir: t.TempDir()}}
	next.open(h.drv.store.configDir)
	next.same(next.virsh(true, "snapshot-list", "web1", "--name", "--topological"), "one", "other", "two", "three")
	next.same(next.virsh(true, "snapshot-current", "web1", "--name"), "two")

	// Deleting one moves its children up; the current one is its parent then.
	h.virsh(true, "snapshot-delete", "web1", "two")
	h.same(h.virsh(true, "snapshot-parent", "web1", "three"), "one")
	h.same(h.virsh(true, "snapshot-current", "web1", "--name"), "one")
	h.virsh(true, "snapshot-current", "web1", "three")
	h.virsh(true, "snapshot-delete", "web1", "one", "--children-only")
	h.same(list(), "one")
	h.same(h.virsh(true, "snapshot-current", "web1", "--name"), "one")
	h.virsh(true, "snapshot-create-as", "web1", "again")
	h.virsh(true, "snapshot-delete", "web1", "--current")
	h.virsh(true, "snapshot-delete", "web1", "one", "--children")
	h.same(list())
	h.want(h.virsh(false, "snapshot-current", "web1"), "current snapshot")
	if left, _ := filepath.Glob(filepath.Join(h.drv.store.configDir, "snapshot", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(upper), "../../layers/[^.]*")); len(left) > 0 {
		t.Errorf("layers are left: %v", left)
	}
}

func TestVirshSnapshotRevert(t *testing.T) {
	h, upper := newSnapshotHost(t)
	h.virsh(true, "snapshot-create-as", "web1", "empty")
	h.put(upper, "1")
	h.virsh(true, "desc", "web1", "--config", "before")
	h.virsh(true, "snapshot-create-as", "web1", "full")
	h.put(upper, "2")
	h.virsh(true, "desc", "web1", "--config", "after")
	h.virsh(true, "domrename", "web1", "www")
	h.virsh(true, "snapshot-revert", "www", "full")
	h.want(h.virsh(true, "desc", "www", "--config"), "before")
	if _, err := os.Stat(filepath.Join(upper, "file")); err == nil {
		t.Error("what was written after the snapshot is still there")
	}
	h.same(h.virsh(true, "snapshot-current", "www", "--name"), "full")
	h.want(h.virsh(false, "snapshot-revert", "www", "nosuch"), "no domain snapshot with matching name 'nosuch'")
}

// What is known of snapshots can be forgotten and made known again, without
// the data being touched.
func TestVirshSnapshotRedefine(t *testing.T) {
	h, _ := newSnapshotHost(t)
	h.virsh(true, "snapshot-create-as", "web1", "one")
	h.virsh(true, "snapshot-create-as", "web1", "two")
	one, two := h.file(h.virsh(true, "snapshot-dumpxml", "web1", "one")), h.file(h.virsh(true, "snapshot-dumpxml", "web1", "two"))
	definition := h.file(h.virsh(true, "dumpxml", "web1"))
	h.want(h.virsh(false, "undefine", "web1"), "cannot delete inactive domain with 2 snapshots")
	saved := func(is bool) { setView(h.drv.domains.lookupName("web1"), func(v *view) { v.saved = is }) }
	saved(true)
	h.want(h.virsh(false, "undefine", "web1", "--snapshots-metadata"), "managed save image exists")
	h.same(h.virsh(true, "snapshot-list", "web1", "--name"), "one", "two")
	saved(false)
	h.virsh(true, "undefine", "web1", "--snapshots-metadata")
	h.virsh(true, "define", definition)
	h.same(h.virsh(true, "snapshot-list", "web1", "--name"))
	h.want(h.virsh(false, "snapshot-create", "web1", two, "--redefine"), "parent one for snapshot two not found")
	h.virsh(true, "snapshot-create", "web1", one, "--redefine")
	h.want(h.virsh(false, "snapshot-current", "web1", "--name"), "no current snapshot")
	h.virsh(true, "snapshot-create", "web1", two, "--redefine", "--current", "--validate")
	h.same(h.virsh(true, "snapshot-current", "web1", "--name"), "two")
	h.virsh(true, "snapshot-delete", "web1", "one", "--metadata")
	h.virsh(true, "snapshot-create", "web1", one, "--redefine")
	h.virsh(true, "snapshot-revert", "web1", "one")

	edit := func(expression string, args ...string) string {
		editor := filepath.Join(t.TempDir(), "editor")
		if err := os.WriteFile(editor, []byte(fmt.Sprintf("#!/bin/sh\nexec sed -i '%s' \"$1\"\n", expression)), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("EDITOR", editor)
		return h.virsh(true, append([]string{"snapshot-edit", "web1"}, args...)...)
	}
	h.want(edit("s:<state>:<description>edited</description><state>:", "one"), "edited")
	h.want(h.virsh(true, "snapshot-dumpxml", "web1", "one"), "<description>edited</description>")
	edit("s:<name>one:<name>uno:", "one", "--clone")
	h.same(h.virsh(true, "snapshot-list", "web1", "--name"), "one", "two", "uno")
	h.virsh(true, "snapshot-delete", "web1", "one")
	h.virsh(true, "snapshot-revert", "web1", "uno")
}

// TestSnapshotCutOff: the data of a snapshot that no daemon lived to keep goes with
// the next, and nothing else does.
func TestSnapshotCutOff(t *testing.T) {
	h, upper := newSnapshotHost(t)
	uuid, err := protocol.ParseUUID(filepath.Base(filepath.Dir(upper)))
	if err != nil {
		t.Fatal(err)
	}
	layerOf := func(name string) string {
		_, rest, _ := strings.Cut(h.virsh(true, "snapshot-dumpxml", "web1", name), "<layer id='")
		return rest[:32]
	}
	remain := func(ids ...string) {
		t.Helper()
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(upper), "../../layers/[^.]*"))
		for n := range left {
			left[n] = filepath.Base(left[n])
		}
		slices.Sort(ids)
		if !slices.Equal(left, ids) {
			t.Errorf("layers %v, want %v", left, ids)
		}
	}
	h.virsh(true, "snapshot-create-as", "web1", "kept")
	h.virsh(true, "snapshot-create-as", "web1", "forgotten")
	kept, forgotten := layerOf("kept"), layerOf("forgotten")
	h.virsh(true, "snapshot-delete", "web1", "forgotten", "--metadata")
	still := func(do func() error) error { return do() }
	cutOff, err := h.drv.layers.Copy(t.Context(), uuid, still, func(_, _ uint64) {})
	if err != nil {
		t.Fatal(err)
	}
	remain(kept, forgotten, cutOff)

	// What a snapshot is of that cannot be read is not known.
	damaged := filepath.Join(h.drv.store.snapshotDir(uuid), "damaged.xml")
	os.WriteFile(damaged, []byte("<domainsnapshot>"), 0o600)
	h.drv.collect(h.drv.giveUpUnfinished())
	remain(kept, forgotten, cutOff)
	os.Remove(damaged)
	h.drv.collect(h.drv.giveUpUnfinished())
	remain(kept, forgotten)

	// The daemon was killed right after it had kept the snapshot.
	last, err := h.drv.layers.Push(uuid)
	if err != nil {
		t.Fatal(err)
	}
	dump := strings.ReplaceAll(strings.Replace(h.virsh(true, "snapshot-dumpxml", "web1", "kept"), kept, last, 1), "<name>kept</name>", "<name>last</name>")
	h.virsh(true, "snapshot-create", "web1", h.file(dump), "--redefine")
	h.drv.collect(h.drv.giveUpUnfinished())
	h.virsh(true, "snapshot-delete", "web1", "last", "--metadata")
	h.drv.collect(h.drv.giveUpUnfinished())
	remain(kept, forgotten, last)
}

func TestVirshSnapshotRefused(t *testing.T) {
	h, _ := newSnapshotHost(t)
	h.virsh(true, "snapshot-create-as", "web1", "one")
	good := h.virsh(true, "snapshot-dumpxml", "web1", "one")
	layer := good[strings.Index(good, "<layer id='")+len("<layer id='"):][:32]
	for name, c := range map[string]struct {
		doc  string
		args string
		want string
	}{
		"again":       {"<domainsnapshot><name>one</name></domainsnapshot>", "", "domain snapshot one already exists"},
		"slash":       {"<domainsnapshot><name>a/b</name></domainsnapshot>", "", "contains '/'"},
		"hidden":      {"<domainsnapshot><name>.a</name></domainsnapshot>", "", "may not begin with '.'"},
		"long":        {"<domainsnapshot><name>" + strings.Repeat("x", 201) + "</name></domainsnapshot>", "", "has 201 bytes"},
		"memory":      {"<domainsnapshot><memory snapshot='external' file='/tmp/x'/></domainsnapshot>", "", "the daemon keeps the memory itself"},
		"disk":        {"<domainsnapshot><disks><disk name='vda'/></disks></domainsnapshot>", "", "the only disk of an environment is its root"},
		"external":    {"<domainsnapshot><disks><disk name='/' snapshot='external'/></disks></domainsnapshot>", "", "is 'internal'"},
		"root":        {"<domain/>", "", "it must be <domainsnapshot>"},
		"schema":      {"<domainsnapshot><colour/></domainsnapshot>", "--validate", "unknown element 'colour'"},
		"no metadata": {"<domainsnapshot/>", "--no-metadata", "a layer that the daemon keeps"},
		"other layer": {strings.Replace(good, layer, strings.Repeat("0", 32), 1), "--redefine", "there is no layer"},
		"path":        {strings.Replace(good, layer, "../../../etc", 1), "--redefine", "is no layer"},
		"own parent":  {strings.Replace(good, "<state>", "<parent><name>one</name></parent><state>", 1), "--redefine", "as its own parent"},
		"state":       {strings.Replace(good, "<state>shutoff", "<state>crashed", 1), "--redefine", "snapshots of environments are"},
		"running":     {strings.Replace(good, "<state>shutoff", "<state>running", 1), "--redefine", "cannot change between online and offline"},
		"no memory":   {strings.NewReplacer("<state>shutoff", "<state>running", "<name>one", "<name>other").Replace(good), "--redefine", "the memory of snapshot other is lost"},
		"no time":     {strings.Replace(good, "<creationTime>", "<creationTime>x", 1), "--redefine", "a number of seconds"},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.t = t
			args := append([]string{"snapshot-create", "web1", h.file(c.doc)}, strings.Fields(c.args)...)
			h.want(h.virsh(false, args...), "error: ", c.want)
		})
	}
	h.same(h.virsh(true, "snapshot-list", "web1", "--name"), "one")
	h.virsh(true, "define", h.file(strings.NewReplacer("web1", "dir", "type='template'", "type='mount'", "name='busybox'", "dir='/srv'").Replace(domainXML("web1", ""))))
	h.want(h.virsh(false, "snapshot-create-as", "dir", "x"), "the root of dir is a directory of the host")
	ro := "vz+unix:///system?socket=" + h.socket + "-ro"
	h.want(h.virshOn(ro, false, "snapshot-delete", "web1", "one"), "read only access prevents virDomainSnapshotDelete")
}
