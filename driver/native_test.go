package driver

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"virtvzd/runtime"
	"virtvzd/xml"
)

// TestToOCI: what is run is told, and a definition can be made of it again.
func TestToOCI(t *testing.T) {
	facts := xml.HostFacts{Arch: "x86_64", Emulator: "/usr/bin/crun"}
	doc := `<domain type='vz'><name>web</name><memory unit='MiB'>64</memory>
<memtune><swap_hard_limit unit='MiB'>96</swap_hard_limit></memtune>
<cputune><shares>200</shares><quota>50000</quota></cputune><os><type>exe</type><init>/bin/serve</init><initarg>-f</initarg></os>
<devices><filesystem type='mount'><source dir='/srv/root'/><target dir='/'/></filesystem>
<filesystem type='mount'><source dir='/srv/data'/><target dir='/data'/><readonly/></filesystem>
<filesystem type='ram'><source usage='8' units='MiB'/><target dir='/tmp'/></filesystem></devices></domain>`
	out, err := toOCI(doc, facts, runtime.Host{})
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal([]byte(out), &spec); err != nil {
		t.Fatal(err)
	}
	if spec.Root.Path != "/srv/root" || !slices.Equal(spec.Process.Args, []string{"/bin/serve", "-f"}) {
		t.Errorf("root %v, program %v", spec.Root, spec.Process.Args)
	}
	if len(spec.Linux.UIDMappings) != 1 || spec.Linux.UIDMappings[0].HostID == 0 {
		t.Errorf("ids %v: root inside must not be root", spec.Linux.UIDMappings)
	}
	for file, want := range map[string]string{"memory.max": "67108864", "memory.swap.max": "33554432", "cpu.weight": "200", "cpu.max": "50000 100000"} {
		if got := spec.Linux.Resources.Unified[file]; got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	again, err := xml.FromNative(xml.NativeOCI, out, facts)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"<source dir='/srv/root'/>", "<initarg>-f</initarg>", "<target dir='/data'/>\n      <readonly/>", "usage='8192' units='KiB'",
		"<memory unit='KiB'>65536</memory>", "<swap_hard_limit unit='KiB'>98304</swap_hard_limit>", "<shares>200</shares>", "<quota>50000</quota>"} {
		if !strings.Contains(again, want) {
			t.Errorf("%s is missing in\n%s", want, again)
		}
	}
	if _, err := toOCI("<domain/>", facts, runtime.Host{}); err == nil {
		t.Error("an empty definition is converted")
	}
}

// TestToOCIRefuses: what would be another mount, or none, is no config.json.
func TestToOCIRefuses(t *testing.T) {
	for kind, source := range map[string]string{
		"bind": "<source dir='/etc'/>", "file": "<source file='/srv/image'/>", "block": "<source dev='/dev/vdb'/>", "volume": "<source pool='p' volume='v'/>",
	} {
		doc := `<domain type='vz'><name>web</name><memory unit='MiB'>64</memory><os><type>exe</type></os>
<devices><filesystem type='mount'><source dir='/srv/root'/><target dir='/'/></filesystem>
<filesystem type='` + kind + `'>` + source + `<target dir='/data'/></filesystem></devices></domain>`
		out, err := toOCI(doc, xml.HostFacts{Arch: "x86_64"}, runtime.Host{})
		if err == nil || !strings.Contains(err.Error(), "of type '"+kind+"' at /data") {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
	}
}

// TestToOCIHostRoot: on the host's root there are places to write to.
func TestToOCIHostRoot(t *testing.T) {
	doc := `<domain type='vz'><name>web</name><memory unit='MiB'>64</memory><os><type>exe</type><init>/bin/sh</init></os></domain>`
	out, err := toOCI(doc, xml.HostFacts{Arch: "x86_64", HostRoot: true}, runtime.Host{})
	var spec specs.Spec
	if err == nil {
		err = json.Unmarshal([]byte(out), &spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	has := func(target string) bool {
		return slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == target && m.Type == "tmpfs" })
	}
	if spec.Root.Path != "/" || !spec.Root.Readonly || !has("/tmp") || !has("/var/tmp") {
		t.Errorf("root %+v, mounts %+v", spec.Root, spec.Mounts)
	}
}
