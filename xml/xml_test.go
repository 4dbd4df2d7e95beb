package xml

import (
	"errors"
	"flag"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew")

// host is the same on every machine that runs the tests.
var host = HostFacts{
	Arch: "x86_64", UUID: "c7a5fdbd-edaf-9455-926a-d65c16db1809", Emulator: "/usr/bin/crun", MaxVCPUs: 4,
	Templates: func() []string { return []string{"debian13", "centos-7-x86_64"} },
	Cells: []Cell{{ID: 0, MemoryKiB: 4096000, Pages: []Pages{{4, 1024000}, {2048, 0}}, Distances: []int{10}, CPUs: []CPU{
		{ID: 0, Socket: 0, Core: 0, Siblings: "0"}, {ID: 1, Socket: 0, Core: 1, Siblings: "1"},
	}}},
}

// TestDefinitions parses each document of testdata and compares what dumpxml
// shows of it, inactive and running.
func TestDefinitions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in.xml")
	if err != nil || len(files) == 0 {
		t.Fatal("testdata has no documents", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			doc, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			def, err := Parse(string(doc), host, ParseOptions{Validate: true})
			if err != nil {
				t.Fatal(err)
			}
			inactive, err := Format(def, FormatOptions{Inactive: true})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".in.xml")+".out.xml", inactive)
			again, err := Parse(inactive, host, ParseOptions{Validate: true})
			if err != nil {
				t.Fatalf("what was formatted cannot be parsed: %v", err)
			}
			if twice, _ := Format(again, FormatOptions{Inactive: true}); twice != inactive {
				t.Errorf("formatting again changes it:\n%s", twice)
			}
			env, err := NewEnvironment(def)
			if err != nil {
				t.Fatal(err)
			}
			facts := LiveFacts{ID: 4711, Consoles: map[string]string{"lxc 0": "/dev/console"}, IDMap: IDMap{Mode: Explicit,
				UIDs: []IDRange{{0, 524288, 65536}}, GIDs: []IDRange{{0, 524288, 65536}}}}
			if env.IDMap.Mode == Privileged {
				facts.IDMap = env.IDMap
			}
			live, err := Format(Live(def, facts), FormatOptions{})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".in.xml")+".live.xml", live)
			validate := schemaCheck(t)
			validate("domain", inactive)
			validate("domain", live)
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test -update writes it anew. Got:\n%s", path, got)
	}
}

// schemaCheck validates documents with libvirt's own tool and schema.
func schemaCheck(t *testing.T) func(schema, doc string) {
	if _, err := exec.LookPath("virt-xml-validate"); err != nil {
		if os.Getenv("VIRTVZD_REQUIRE") != "" {
			t.Fatal("virt-xml-validate is missing: install libvirt-clients and libxml2-utils")
		}
		return func(string, string) {}
	}
	return func(schema, doc string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "doc.xml")
		if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("virt-xml-validate", path, schema).CombinedOutput(); err != nil {
			t.Errorf("not valid by libvirt's %s schema: %s\n%s", schema, out, doc)
		}
	}
}

func TestCapabilities(t *testing.T) {
	caps, err := Capabilities(host)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/capabilities.xml", caps)
	domcaps, err := DomainCapabilities(host, "", "", "", "")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/domcapabilities.xml", domcaps)
	validate := schemaCheck(t)
	// libvirt's capability.rng does not list vz and openvz among the types a
	// guest can have, though its own drivers for them report just that.
	known := strings.NewReplacer("\n      <domain type=\"vz\"/>", "", "\n      <domain type=\"openvz\"/>", "").Replace(caps)
	if schema, _ := os.ReadFile("/usr/share/libvirt/schemas/capability.rng"); !strings.Contains(string(schema), "cluster_id") {
		known = strings.ReplaceAll(known, ` cluster_id="0"`, "") // older than libvirt 10.1, newer ones want it
	}
	validate("capability", known)
	validate("domaincaps", domcaps)
	for _, wrong := range [][3]string{{"ppc64", "", ""}, {"", "", "kvm"}} {
		if _, err := DomainCapabilities(host, "", wrong[0], wrong[1], wrong[2]); err == nil {
			t.Errorf("%v was accepted", wrong)
		}
	}
}

// TestEnvironment checks the numbers the kernel gets.
func TestEnvironment(t *testing.T) {
	doc := strings.Replace(minimal, "<memory>65536</memory>", `<memory unit='GiB'>2</memory><currentMemory unit='MiB'>512</currentMemory>
<memtune><soft_limit unit='MiB'>256</soft_limit><min_guarantee unit='MiB'>64</min_guarantee><swap_hard_limit unit='MiB'>768</swap_hard_limit></memtune>
<vcpu current='2' cpuset='0-3,^1'>4</vcpu><cputune><shares>2048</shares><period>50000</period><quota>25000</quota></cputune>
<resource><partition>/machine/web</partition></resource>
<metadata><ve:ve xmlns:ve='`+VENamespace+`'><ve:hostname>www.example.org</ve:hostname><ve:tasks>512</ve:tasks><ve:later/></ve:ve></metadata>`, 1)
	doc = strings.Replace(doc, "</type>", "</type><init>/bin/app</init><initarg>-x</initarg><initarg>a b</initarg><initenv name='A'>1=2</initenv><initdir>/srv</initdir><inituser>www</inituser>", 1)
	doc = strings.Replace(doc, "</devices>", "<filesystem type='ram'><source usage='8' units='MiB'/><target dir='/srv/a/b/'/></filesystem><filesystem type='mount'><source dir='/data'/><target dir='/srv'/><readonly/></filesystem></devices>", 1)
	def, err := Parse(doc, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEnvironment(def)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]any{
		"memory":    {e.Memory, MemoryLimits{Max: 512 << 20, High: 256 << 20, Low: 64 << 20, Swap: 256 << 20}},
		"cpu":       {e.CPU, CPULimits{Count: 2, MaxCount: 4, Set: "0-3,^1", Weight: 2048, QuotaUSec: 25000, PeriodUSec: 50000}},
		"init":      {e.Init, []string{"/bin/app", "-x", "a b"}},
		"env":       {e.Env, []string{"A=1=2"}},
		"where":     {e.Dir + e.User + e.Partition, "/srvwww/machine/web"},
		"hostname":  {e.Hostname, "www.example.org"},
		"tasks":     {e.Counts.Tasks, uint64(512)},
		"idmap":     {e.IDMap, IDMap{Mode: Auto}},
		"root":      {e.Filesystems[0], Filesystem{Type: "template", Source: "debian13", Target: "/"}},
		"read-only": {e.Filesystems[1], Filesystem{Type: "mount", Source: "/data", Target: "/srv", ReadOnly: true}},
		"ram":       {e.Filesystems[2], Filesystem{Type: "ram", Source: "tmpfs", Target: "/srv/a/b", Size: 8 << 20}},
	} {
		if !reflect.DeepEqual(c[0], c[1]) {
			t.Errorf("%s: got %+v, want %+v", name, c[0], c[1])
		}
	}
	plain, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e, err = NewEnvironment(plain); err != nil {
		t.Fatal(err)
	}
	if want := (MemoryLimits{Max: 64 << 20, High: math.MaxUint64, Swap: math.MaxUint64}); e.Memory != want || e.Counts.Tasks != math.MaxUint64 {
		t.Errorf("without tuning: %+v, %d tasks", e.Memory, e.Counts.Tasks)
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct {
		value uint64
		unit  string
		kib   uint64
	}{
		{1, "", 1}, {1, "KiB", 1}, {1, "MiB", 1024}, {1, "GiB", 1 << 20}, {1, "b", 1}, {1024, "bytes", 1}, {1025, "bytes", 2},
		{1000, "KB", 977}, {1, "MB", 977}, {9007199254740991, "KiB", Unlimited}, {1 << 60, "TiB", Unlimited},
	} {
		if got, err := toKiB("<memory>", c.value, c.unit); err != nil || got != c.kib {
			t.Errorf("%d %s: got %d KiB, %v, want %d", c.value, c.unit, got, err, c.kib)
		}
	}
	for shares, weight := range map[uint64]uint64{1: 1, 1024: 1024, 10000: 10000, 262144: 10000} {
		if got := Weight(shares); got != weight {
			t.Errorf("shares %d: weight %d, want %d", shares, got, weight)
		}
	}
}

// TestAllow: who may not touch a domain learns nothing else of what is wrong
// with its definition.
func TestAllow(t *testing.T) {
	refused := errors.New("refused")
	for _, tt := range []struct{ doc, id string }{
		{strings.Replace(minimal, "<os>", "<uuid>00112233445566778899aabbccddeeff</uuid><os>", 1), "00112233-4455-6677-8899-aabbccddeeff"},
		{minimal, formatUUID([16]byte{})},
		{strings.Replace(minimal, "<os>", "<memory>0</memory><vcpu>-</vcpu><os>", 1), ""}, // not readable: nothing to ask about
		{strings.Replace(minimal, "exe", "hvm", 1), formatUUID([16]byte{})},
	} {
		asked := ""
		_, err := Parse(tt.doc, host, ParseOptions{Validate: true, Allow: func(name string, id [16]byte) error {
			asked = formatUUID(id)
			if name != "web1" {
				t.Errorf("asked for %q", name)
			}
			return refused
		}})
		if asked != tt.id || (err == refused) != (tt.id != "") {
			t.Errorf("asked for %q, want %q; error %v\n%s", asked, tt.id, err, tt.doc)
		}
	}
}

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{"web1": "web1", "a b": "a-b", "--": "localhost", "ü": "localhost", strings.Repeat("x", 99): strings.Repeat("x", 64)} {
		if got := hostname(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}
