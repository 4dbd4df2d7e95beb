package xml

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// random is what Parse makes up.
var random = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|52:54:00(:[0-9a-f]{2}){3}`)

// TestNative converts each configuration of testdata/native, by the format
// that is its file's ending. What comes out is a definition.
func TestNative(t *testing.T) {
	files, err := filepath.Glob("testdata/native/*.*")
	if err != nil || len(files) == 0 {
		t.Fatal("testdata/native has no configurations", err)
	}
	for _, file := range files {
		format := strings.TrimPrefix(filepath.Ext(file), ".")
		if format == "xml" {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			config, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			doc, err := FromNative(format, string(config), host)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(doc, HostFacts{Arch: "x86_64"}, ParseOptions{Validate: true}); err != nil {
				t.Errorf("cannot be defined: %v\n%s", err, doc)
			}
			schemaCheck(t)("domain", doc)
			golden(t, file+".xml", random.ReplaceAllString(doc, "…"))
		})
	}
}

// TestNativeRefused: what cannot be understood names its line.
func TestNativeRefused(t *testing.T) {
	for _, c := range []struct{ format, config, want string }{
		{"vmx", "", "openvz, lxc-tools and oci are accepted"},
		{"openvz", "", "does not say whose it is"},
		{"openvz", "NAME=a", "names no root"},
		{"openvz", "NAME=a\nwhat is this", "line 2: 'what is this'"},
		{"openvz", "NAME=\"a\nOSTEMPLATE=b", "line 1: the value of NAME has a quote"},
		{"openvz", "NAME=a\nVE_PRIVATE=/vz/private/$VEID", `line 2: VE_PRIVATE is '/vz/private/$VEID', and the file does not say which`},
		{"openvz", "NAME=a\nOSTEMPLATE=b\nHOSTNAME=\"$(reboot)\"", "line 3: HOSTNAME is '$(reboot)'"},
		{"openvz", "NAME=a\nOSTEMPLATE=`reboot`", "line 2: OSTEMPLATE"},
		{"openvz", "NAME=a\nOSTEMPLATE=b\nPHYSPAGES=1:lots", "line 3: PHYSPAGES"},
		{"openvz", "NAME=a\nOSTEMPLATE=b\nNUMFILE=1", "line 3: NUMFILE has the limit 1, at least 64"},
		{"openvz", "NAME=a\nOSTEMPLATE=b\nIP_ADDRESS='192.0.2.7 nonsense'", "line 3: IP_ADDRESS"},
		{"openvz", "NAME=a\nOSTEMPLATE=b\nCPUS=x", "line 3: CPUS"},
		{"openvz", "NAME=a/b\nOSTEMPLATE=b", "<name>"},
		{"openvz", strings.Repeat("#", maxNative+1), "the limit is"},
		{"openvz", "NAME=\xff", "not UTF-8"},
		{"lxc-tools", "", "names no root"},
		{"lxc-tools", "lxc.rootfs", "line 1: 'lxc.rootfs' is not KEY = VALUE"},
		{"lxc-tools", "lxc.rootfs.path = overlay:/a:/b", "line 1: the root is 'overlay:/a:/b'"},
		{"lxc-tools", "lxc.mount.fstab = /etc/fstab.x", "line 1: lxc.mount.fstab names a file"},
		{"lxc-tools", "lxc.idmap = u 0 x 1", "line 1: lxc.idmap"},
		{"lxc-tools", "lxc.net.0.ipv4.address = no", "line 1: 'no' is no address"},
		{"lxc-tools", "lxc.cgroup.memory.limit_in_bytes = many", "line 1: lxc.cgroup.memory.limit_in_bytes"},
		{"lxc-tools", "lxc.cgroup2.cpu.max = 1 2 3", "line 1: lxc.cgroup.cpu.max"},
		{"oci", "", "not a config.json"},
		{"oci", "{\n\"root\": 7}", "line 2"},
		{"oci", "{} {}", "behind its last brace"},
		{"oci", `{"root":{"path":"rootfs"}}`, "relative to the bundle"},
		{"oci", `{"root":{"path":"/r"},"process":{"args":["sh"]}}`, "process.args begins with 'sh'"},
	} {
		if _, err := FromNative(c.format, c.config, host); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %q", c.format, shorten(c.config), err, c.want)
		}
	}
}

// TestNativeAmounts: what a suffix means, of which OpenVZ and the kernel share
// one but not its meaning.
func TestNativeAmounts(t *testing.T) {
	const openvz = "NAME=a\nOSTEMPLATE=b\n"
	const lxc = "lxc.uts.name = a\nlxc.rootfs.path = dir:/x\n"
	const tmpfs = "lxc.mount.entry = tmpfs mnt tmpfs nosuid,size="
	for _, c := range []struct{ format, config, want string }{
		{"openvz", openvz + `PHYSPAGES="0:131072"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="0:131072P"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="0:131072p"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="0:536870912B"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="536870912b"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="0:512M"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="0:512MB"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `PHYSPAGES="0:0.5g"`, "<memory unit='KiB'>524288</memory>"},
		{"openvz", openvz + `DISKSPACE="1048576:2147483648B"`, "<space_hard_limit unit='KiB'>2097152</space_hard_limit>"},
		{"openvz", openvz + `DISKSPACE="1048576:524288P"`, "<space_hard_limit unit='KiB'>2097152</space_hard_limit>"},
		{"openvz", openvz + `NUMPROC="240B"`, "barrier='240' limit='240'"},
		{"lxc-tools", lxc + "lxc.cgroup2.memory.max = 536870912", "<memory unit='KiB'>524288</memory>"},
		{"lxc-tools", lxc + "lxc.cgroup2.memory.max = 512m", "<memory unit='KiB'>524288</memory>"},
		{"lxc-tools", lxc + "lxc.cgroup2.memory.max = 1P", "<memory unit='KiB'>1099511627776</memory>"},
		{"lxc-tools", lxc + tmpfs + "65536 0 0", "<source usage='64' units='KiB'/>"},
		{"lxc-tools", lxc + tmpfs + "65537 0 0", "<source usage='65' units='KiB'/>"},
		{"lxc-tools", lxc + tmpfs + "64k 0 0", "<source usage='64' units='KiB'/>"},
		{"lxc-tools", lxc + tmpfs + "1P 0 0", "<source usage='1099511627776' units='KiB'/>"},
	} {
		doc, err := FromNative(c.format, c.config, host)
		if err != nil || !strings.Contains(doc, c.want) {
			t.Errorf("%s: %v, want %s in\n%s", c.config, err, c.want, doc)
		}
	}
}

// TestNativeQuotes: LXC takes off quotes around a value, not those within it.
func TestNativeQuotes(t *testing.T) {
	const config = "lxc.uts.name = 'a'\nlxc.rootfs.path = \"dir:/x\"\n"
	for line, want := range map[string]string{
		`lxc.environment = A="x y"`:               `<initenv name='A'>&quot;x y&quot;</initenv>`,
		`lxc.environment = "A=x y"`:               `<initenv name='A'>x y</initenv>`,
		`lxc.environment = 'A=x "y"'`:             `<initenv name='A'>x &quot;y&quot;</initenv>`,
		`lxc.environment = A="`:                   `<initenv name='A'>&quot;</initenv>`,
		`lxc.environment = "A='`:                  `<initenv name='&quot;A'>&apos;</initenv>`,
		`lxc.environment = ""A"="`:                `<initenv name='&quot;A&quot;'/>`,
		`lxc.environment = A=`:                    `<initenv name='A'/>`,
		`lxc.init.cmd = /bin/sh -c "echo hi" x'y`: "<init>/bin/sh</init>\n    <initarg>-c</initarg>\n    <initarg>echo hi</initarg>\n    <initarg>x&apos;y</initarg>",
		`lxc.init.cmd = /sbin/init ' 1" 2`:        "<initarg>&apos;</initarg>\n    <initarg>1&quot;</initarg>\n    <initarg>2</initarg>",
		`lxc.mount.entry = /d" y none bind 0 0"`:  `<source dir='/d&quot;'/>`,
	} {
		doc, err := FromNative("lxc-tools", config+line+"\n", host)
		if err != nil || !strings.Contains(doc, want) || !strings.Contains(doc, "<name>a</name>") {
			t.Errorf("%s: %v, want %s in\n%s", line, err, want, doc)
		}
	}
}

// TestNativeComment: a comment can neither be left nor be without end.
func TestNativeComment(t *testing.T) {
	config := "NAME=a\nOSTEMPLATE=b\nX='--><domain>---'\n"
	for n := range 2 * maxNotes {
		config += strings.Repeat("A", n+1) + "=" + strings.Repeat("x", 1000) + "\n"
	}
	doc, err := FromNative(NativeOpenVZ, config, host)
	if err != nil {
		t.Fatal(err)
	}
	comment, _, _ := strings.Cut(doc, "-->\n<domain")
	if strings.Contains(comment[4:], "--") || !strings.Contains(comment, "more\n") || len(comment) > (maxNotes+2)*(maxNote+40) {
		t.Errorf("%d bytes of comment:\n%s", len(comment), shorten(comment))
	}
}

// FuzzFromNative holds that nothing panics, and that what comes out is a
// definition of bounded size.
func FuzzFromNative(f *testing.F) {
	files, _ := filepath.Glob("testdata/native/*.*")
	for _, file := range files {
		config, _ := os.ReadFile(file)
		f.Add(strings.TrimPrefix(filepath.Ext(file), "."), string(config))
	}
	f.Fuzz(func(t *testing.T, format, config string) {
		doc, err := FromNative(format, config, host)
		if err != nil {
			return
		}
		def, err := Parse(doc, HostFacts{Arch: "x86_64"}, ParseOptions{})
		if err != nil {
			t.Fatalf("cannot be defined: %v\n%s", err, doc)
		}
		if _, err := NewEnvironment(def); err != nil {
			t.Fatalf("cannot be run: %v\n%s", err, doc)
		}
	})
}
