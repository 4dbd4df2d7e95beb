package runtime

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"virtvzd/xml"
)

var update = flag.Bool("update", false, "write the golden files")

var testHost = Host{
	Kernel: [2]int{6, 12}, OCI: "/usr/bin/crun", CPUs: []int{0, 1, 2, 3},
	LXCFS: "/var/lib/lxcfs", LXCFSFiles: []string{"/proc/meminfo", "/proc/uptime"},
}

var testUUID = [16]byte{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x80, 1, 2, 3, 4, 5, 6, 7}

func testEnvironment() *xml.Environment {
	return &xml.Environment{
		Name: "web1", UUID: testUUID, Type: "vz", PrivateNetwork: true,
		Memory:      xml.MemoryLimits{Max: 512 << 20, High: unlimited, Swap: 256 << 20},
		CPU:         xml.CPULimits{Count: 2, MaxCount: 2},
		Counts:      xml.NoCounts(),
		Filesystems: []xml.Filesystem{{Type: "template", Source: "debian", Target: "/"}},
	}
}

func testReserved() Reserved {
	return Reserved{
		Base: 655360, Dir: "/run/libvirt/vz/" + formatUUID(testUUID),
		Lower:  "/var/lib/libvirt/vz/template/.digest/sha256-0/rootfs",
		Layers: "/var/lib/libvirt/vz/private/" + formatUUID(testUUID),
	}
}

func TestPlan(t *testing.T) {
	systemdRoot := Root{Init: []string{"/sbin/init"}, Kind: Systemd}
	tests := []struct {
		name   string
		root   Root
		change func(*xml.Environment)
	}{
		{"systemd", systemdRoot, func(*xml.Environment) {}},
		{"busybox-directory", Root{Init: []string{"/sbin/init"}, Kind: Busybox}, func(e *xml.Environment) {
			e.Filesystems = []xml.Filesystem{{Type: "mount", Source: "/srv/ve", Target: "/", ReadOnly: true}}
			e.Name = "a b/ü"
		}},
		{"privileged", systemdRoot, func(e *xml.Environment) { e.IDMap.Mode = xml.Privileged }},
		{"everything", Root{Init: []string{"/bin/app", "-x"}, Kind: OtherInit, UID: 33, GID: 34, Home: "/var/www"}, func(e *xml.Environment) {
			e.IDMap = xml.IDMap{Mode: xml.Explicit, UIDs: []xml.IDRange{{Inside: 0, Host: 100000, Count: 1000}}, GIDs: []xml.IDRange{{Inside: 0, Host: 200000, Count: 4}}}
			e.Init, e.Env, e.Dir, e.Hostname = []string{"/bin/app", "-x"}, []string{"A=b c"}, "/srv", "h.example.org"
			e.Memory = xml.MemoryLimits{Max: unlimited, High: 1 << 30, Low: 1 << 20, Swap: unlimited}
			e.CPU = xml.CPULimits{Count: 1, Set: "1-2", Weight: 200, QuotaUSec: 50000, PeriodUSec: 100000}
			e.Counts, e.Partition = xml.CountLimits{Tasks: 100, Terminals: 8, SharedPages: 9, Cgroups: 10, Files: 64, LockedPages: 2, Signals: 3}, "/machine/prod"
			e.IO = xml.IOLimits{Weight: 50, Devices: []xml.DeviceIO{{Path: "/dev/vda", ReadBytes: 1 << 20, WriteIOPS: 30}, {Path: "/dev/vdb", Weight: 7, WriteIOPS: 40}}}
			e.CPU.MemoryNodes = "0"
			e.Devices = []xml.Device{{Source: "/dev/fuse", Target: "/dev/fuse"}, {Source: "/dev/vdb", Target: "/dev/sda", Block: true, ReadOnly: true}}
			e.Capabilities = xml.CapabilityPolicy{Policy: "deny", States: map[string]bool{"sys_admin": true, "net_admin": true}}
			e.Filesystems = append(e.Filesystems,
				xml.Filesystem{Type: "mount", Source: "/srv/data", Target: "/data", ReadOnly: true},
				xml.Filesystem{Type: "ram", Target: "/tmp"},
				xml.Filesystem{Type: "bind", Source: "/data/www", Target: "/var/www"})
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			env := testEnvironment()
			test.change(env)
			plan, err := NewPlan(env, testHost, test.root, testReserved())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "plan-"+test.name+".golden", plan.String())
		})
	}
}

// golden compares with a file of testdata, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", file, lineDiff(string(want), got))
	}
}

func lineDiff(want, got string) string {
	var b strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, line := range w {
		if !slices.Contains(g, line) {
			b.WriteString("- " + line + "\n")
		}
	}
	for _, line := range g {
		if !slices.Contains(w, line) {
			b.WriteString("+ " + line + "\n")
		}
	}
	return b.String()
}

func TestPlanRefuses(t *testing.T) {
	tests := []struct {
		change func(*xml.Environment)
		want   string
	}{
		{func(e *xml.Environment) { e.Filesystems = nil }, "has no root"},
		{func(e *xml.Environment) { e.Filesystems[0].Target = "/srv" }, "has no root"},
		{func(e *xml.Environment) { e.Filesystems[0].Type = "ram" }, "use template, mount, file, block or volume"},
		{func(e *xml.Environment) { e.CPU.Set = "9" }, "none of the CPUs 0-3"},
		{func(e *xml.Environment) { e.CPU.Set = "x" }, "cpuset x"},
		{func(e *xml.Environment) { e.Partition = "a//..b" }, "partition"},
	}
	for _, test := range tests {
		env := testEnvironment()
		test.change(env)
		if _, err := NewPlan(env, testHost, Root{}, testReserved()); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
}

func TestChooseCPUs(t *testing.T) {
	host := Host{CPUs: []int{0, 1, 2, 3}}
	tests := []struct {
		count uint
		set   string
		load  map[int]int
		want  []int
	}{
		{0, "", nil, nil},
		{4, "", nil, nil},
		{9, "", nil, nil},
		{1, "", nil, []int{0}},
		{2, "", map[int]int{0: 1, 1: 2, 2: 1, 3: 0}, []int{0, 3}},
		{1, "2,3", map[int]int{2: 1}, []int{3}},
		{0, "1-2", nil, []int{1, 2}},
		{3, "0-3", map[int]int{0: 1}, []int{1, 2, 3}},
	}
	for _, test := range tests {
		got, err := chooseCPUs(xml.CPULimits{Count: test.count, Set: test.set}, host, test.load, nil)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%d of %q with %v: got %v, %v, want %v", test.count, test.set, test.load, got, err, test.want)
		}
	}
}

func TestPinnedCPUs(t *testing.T) {
	host := Host{CPUs: []int{0, 1, 2, 3}}
	tests := []struct {
		cpu  xml.CPULimits
		keep []int
		want []int
	}{
		{xml.CPULimits{Count: 1, Pins: []xml.Pin{{CPU: 0, Set: "3"}}}, []int{0}, []int{3}},
		{xml.CPULimits{Count: 2, Pins: []xml.Pin{{CPU: 1, Set: "0"}}}, nil, []int{0, 1}},
		// The first moves on, so that both have a place.
		{xml.CPULimits{Count: 2, Pins: []xml.Pin{{CPU: 0, Set: "0-1"}, {CPU: 1, Set: "0"}}}, []int{0}, []int{0, 1}},
		{xml.CPULimits{Count: 2, Pins: []xml.Pin{{CPU: 0, Set: "2"}, {CPU: 1, Set: "2"}}}, nil, []int{2}},
		{xml.CPULimits{Count: 1, Pins: []xml.Pin{{CPU: 3, Set: "2"}}}, nil, []int{0}}, // of a CPU that is off
		{xml.CPULimits{Count: 2, Emulator: "2-3", Set: "1-2"}, nil, []int{2}},
		{xml.CPULimits{Count: 2}, []int{1, 3}, []int{1, 3}},
		{xml.CPULimits{Count: 3}, []int{1, 3}, []int{0, 1, 3}},
		{xml.CPULimits{Count: 1}, []int{3}, []int{3}},
	}
	for _, test := range tests {
		got, err := chooseCPUs(test.cpu, host, nil, test.keep)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%+v with %v: got %v, %v, want %v", test.cpu, test.keep, got, err, test.want)
		}
	}
	if _, err := chooseCPUs(xml.CPULimits{Count: 1, Pins: []xml.Pin{{CPU: 0, Set: "0"}}, Set: "1"}, host, nil, nil); err == nil {
		t.Error("a pin outside of the cpuset is accepted")
	}
}

// TestDifference: only what changed is sent, and what was given is taken away.
func TestDifference(t *testing.T) {
	r := &Runtime{host: Host{CPUs: []int{0, 1}}}
	env := testEnvironment()
	env.IO.Devices = []xml.DeviceIO{{Path: "/dev/vda", ReadIOPS: 5, Weight: 7}, {Path: "/dev/vdb", ReadIOPS: 6}}
	env.Devices = []xml.Device{{Source: "/dev/fuse", Target: "/dev/fuse"}}
	old := limitProperties(env, []int{1})
	next := testEnvironment()
	next.Memory.Max = 1 << 30
	next.IO.Devices = []xml.DeviceIO{{Path: "/dev/vdb", ReadIOPS: 6}}
	var got []string
	for _, p := range r.difference(old, limitProperties(next, nil)) {
		got = append(got, fmt.Sprint(p.Name, "=", p.Value.Value()))
	}
	want := []string{
		"IODeviceWeight=[{/dev/vda 100}]", "IOReadIOPSMax=[{/dev/vda 18446744073709551615}]",
		"MemoryMax=1073741824", "IOReadIOPSMax=[{/dev/vdb 6}]", "AllowedCPUs=[3]", "DeviceAllow=[]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if same := r.difference(old, old); len(same) != 0 {
		t.Errorf("nothing changed, but %v is sent", same)
	}
}

func TestCapabilities(t *testing.T) {
	tests := []struct {
		policy     string
		states     map[string]bool
		privileged bool
		has, not   string
	}{
		{"", nil, false, "CAP_SYS_ADMIN CAP_NET_ADMIN CAP_SYS_BOOT CAP_MKNOD", "CAP_SYS_TIME CAP_SYS_MODULE CAP_AUDIT_CONTROL CAP_MAC_ADMIN"},
		{"default", nil, true, "CAP_SYS_ADMIN CAP_SYS_BOOT", "CAP_MKNOD CAP_SYS_RAWIO CAP_DAC_READ_SEARCH"},
		{"default", map[string]bool{"sys_time": true, "chown": false}, false, "CAP_SYS_TIME", "CAP_CHOWN"},
		{"allow", map[string]bool{"mknod": false}, true, "CAP_SYS_MODULE", "CAP_MKNOD"},
		{"deny", map[string]bool{"chown": true}, false, "CAP_CHOWN", "CAP_SYS_ADMIN CAP_KILL"},
	}
	for _, test := range tests {
		got := capabilities(xml.CapabilityPolicy{Policy: test.policy, States: test.states}, test.privileged)
		for _, c := range strings.Fields(test.has) {
			if !slices.Contains(got, c) {
				t.Errorf("%+v lacks %s", test, c)
			}
		}
		for _, c := range strings.Fields(test.not) {
			if slices.Contains(got, c) {
				t.Errorf("%+v has %s", test, c)
			}
		}
	}
}

// Docker's profile changes with new versions; what we count on must stay.
func TestSeccomp(t *testing.T) {
	plan, err := NewPlan(testEnvironment(), testHost, Root{Init: []string{"/sbin/init"}}, testReserved())
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, rule := range plan.Spec.Linux.Seccomp.Syscalls {
		for _, name := range rule.Names {
			if rule.Action == "SCMP_ACT_ALLOW" && len(rule.Args) == 0 {
				allowed[name] = true
			}
		}
	}
	for _, name := range strings.Fields("mount umount2 pivot_root setns unshare clone clone3 reboot sethostname fsopen fsmount move_mount open_tree mount_setattr chroot ptrace mknodat") {
		if !allowed[name] {
			t.Errorf("%s is not allowed", name)
		}
	}
	for _, name := range append(slices.Clone(seccompDenied), "keyctl", "add_key", "userfaultfd", "settimeofday") {
		if allowed[name] {
			t.Errorf("%s is allowed", name)
		}
	}
}
