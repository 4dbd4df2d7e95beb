package systemd

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"testing/quick"
)

var odd = []string{
	"web1", "web-1", "a.b", ".hidden", "..", "-", "a b", "ä€", "tab\there", "new\nline", `back\slash`, `\x2d`, "UPPER_lower:9", "@at", "100%", "*?[x]", "'\"`$", "a/b",
	"\x01\x7f\xff", strings.Repeat("x", 235), strings.Repeat("x", 236), strings.Repeat("-", 100), strings.Repeat("ü", 150), strings.Repeat("y", 5000),
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"web-1": `web\x2d1`, ".hidden": `\x2ehidden`, "a.b": "a.b", "a/b": "a-b", "/a": "-a", "ä": `\xc3\xa4`, `a\b`: `a\x5cb`, "a:_B9": "a:_B9", "": "", "a@b": `a\x40b`,
	} {
		if got := Escape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	for _, bad := range []string{`\`, `\x2`, `\y2d`, `\xzz`, `a\x`} {
		if got, ok := Unescape(bad); ok {
			t.Errorf("%q is no escaped name, got %q", bad, got)
		}
	}
	if err := quick.Check(func(b []byte) bool {
		back, ok := Unescape(Escape(string(b)))
		return ok && back == string(b)
	}, nil); err != nil {
		t.Error(err)
	}
}

// The tool itself is the specification.
func TestEscapeAsSystemdDoes(t *testing.T) {
	tool, err := exec.LookPath("systemd-escape")
	if err != nil {
		t.Skip("no systemd-escape here to compare with; TestEscape has its known answers")
	}
	for _, name := range odd {
		out, err := exec.Command(tool, "--", name).Output()
		if err != nil {
			continue // it refuses what would be too long for a unit
		}
		if want := strings.TrimSuffix(string(out), "\n"); Escape(name) != want {
			t.Errorf("%q: %q, systemd-escape says %q", name, Escape(name), want)
		}
	}
}

func TestScopeName(t *testing.T) {
	if got := ScopeName("web-1"); got != `machine-vz\x2dweb\x2d1.scope` {
		t.Errorf("got %s", got)
	}
	if got := ScopeName(".a"); got != `machine-vz\x2d.a.scope` {
		t.Errorf("got %s", got)
	}
	seen := map[string]string{}
	for _, domain := range append(odd, strings.Repeat("x", 237), strings.Repeat("x", 236)+"y", strings.Repeat("ü", 151)) {
		scope := ScopeName(domain)
		if len(scope) > 255 || !strings.HasPrefix(scope, `machine-vz\x2d`) || !strings.HasSuffix(scope, ".scope") {
			t.Errorf("%q: %q (%d)", domain, scope, len(scope))
		}
		if other, ok := seen[scope]; ok && other != domain {
			t.Errorf("%q and %q are both %s", domain, other, scope)
		}
		seen[scope] = domain
		for i := 0; i < len(scope); i++ { // VALID_CHARS of src/basic/unit-name.c
			if !strings.ContainsRune(`0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:-_.\`, rune(scope[i])) {
				t.Errorf("%q: %q has %q", domain, scope, scope[i])
			}
		}
		inner := strings.TrimSuffix(strings.TrimPrefix(scope, scopePrefix), scopeSuffix)
		if _, ok := Unescape(inner); !ok {
			t.Errorf("%q: an escape was cut in two: %s", domain, scope)
		}
		back, ok := DomainName(scope)
		if fits := len(Escape("x"+domain))-1 <= 235; !strings.Contains(domain, "/") && ok != fits || ok && back != domain {
			t.Errorf("%q comes back as %q, %v", domain, back, ok)
		}
	}
	for _, foreign := range []string{"machine-qemu\\x2d1.scope", "session-1.scope", `machine-vz\x2d.scope`, `machine-vz\x2da.service`, `machine-vz\x2da\x.scope`} {
		if name, ok := DomainName(foreign); ok {
			t.Errorf("%s is not ours, got %q", foreign, name)
		}
	}
}

func TestSliceName(t *testing.T) {
	for partition, want := range map[string]string{
		"/machine": "machine.slice", "/machine/": "machine.slice", "/machine/web": "machine-web.slice", "/a-b/c": `a\x2db-c.slice`, "/": "-.slice",
		"machine": "", "": "", "/a//b": "", "/a/../b": "", "/" + strings.Repeat("x", 300): "",
	} {
		got, err := SliceName(partition)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", partition, got, err)
		}
	}
}

func TestMachineName(t *testing.T) {
	id := [16]byte{0xab, 15: 0xcd}
	const hex = "ab0000000000000000000000000000cd"
	for domain, want := range map[string]string{
		"web1": "vz-web1", "web-1.example.org": "vz-web-1.example.org", "a b": "vz-ab-" + hex, "a_b": "vz-ab-" + hex, "a--b": "vz-a-b-" + hex,
		"-a": "vz-a-" + hex, "a.": "vz-a-" + hex, "ä": "vz-" + hex, "": "vz-" + hex, "...": "vz-" + hex,
		strings.Repeat("x", 61): "vz-" + strings.Repeat("x", 61), strings.Repeat("x", 62): "vz-" + strings.Repeat("x", 28) + "-" + hex,
		strings.Repeat("a.", 40): "vz-" + strings.TrimSuffix(strings.Repeat("a.", 14), ".") + "-" + hex,
	} {
		if got := MachineName(domain, id); got != want || len(got) > 64 {
			t.Errorf("%q: %q, want %q", domain, got, want)
		}
	}
	for _, a := range odd {
		for _, b := range odd {
			if a != b && MachineName(a, [16]byte{1}) == MachineName(b, [16]byte{2}) {
				t.Errorf("%q and %q have the same machine name", a, b)
			}
		}
	}
}

func TestUnitPath(t *testing.T) {
	if got := unitPath(`machine-vz\x2da.scope`); got != systemdPath+"/unit/machine_2dvz_5cx2da_2escope" || !got.IsValid() {
		t.Errorf("got %s", got)
	}
	if got := unitPath("9.scope"); got != systemdPath+"/unit/_39_2escope" {
		t.Errorf("got %s", got)
	}
}

func TestUnitCgroup(t *testing.T) {
	unit := ScopeName("a")
	path := "/machine.slice/" + unit
	for file, want := range map[string]string{
		"0::" + path + "\n": path,
		"12:pids:/x\n1:name=systemd:/y\n0::" + path + "/init.scope\n": path,
		"0::" + path + "x\n":      "",
		"1:name=systemd:" + path:  "",
		"0::/system.slice\n":      "",
		"0::/../.." + path + "/a": "/../.." + path,
	} {
		if got, ok := unitCgroup([]byte(file), unit); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", file, got, ok)
		}
	}
	if _, err := ControlGroupOf(1, unit); !errors.Is(err, ErrNoSuchUnit) {
		t.Errorf("got %v", err)
	}
}

func TestParseCPUList(t *testing.T) {
	for list, want := range map[string][]byte{"0": {1}, "0-3,8": {15, 1}, "0-7,^4": {0xef}, " 1 , 1 ": {2}, "65535": nil, "": nil, "3-1": nil, "a": nil, "0,^0": nil, "-1": nil, "0-": nil, "^1-2": nil} {
		cpus, err := ParseCPUList(list)
		if (err == nil) != (want != nil) || err == nil && string(mask(cpus)) != string(want) {
			t.Errorf("%q: %v, %v", list, cpus, err)
		}
	}
	if n := len(mask([]int{-1, cpuMax})); n != 0 {
		t.Errorf("%d bytes of mask for no processor", n)
	}
}
