package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// makeRoot builds a tree from "path" (directory), "path -> target" (link) and
// "path = text" (executable) lines.
func makeRoot(t *testing.T, lines ...string) *tree {
	t.Helper()
	dir := t.TempDir()
	for _, line := range lines {
		name, target, isLink := strings.Cut(line, " -> ")
		name, text, isFile := strings.Cut(name, " = ")
		name = filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(name), 0o755)
		var err error
		switch {
		case isLink:
			err = os.Symlink(target, name)
		case isFile:
			err = os.WriteFile(name, []byte(text), 0o755)
		default:
			err = os.MkdirAll(name, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := openTreeRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	return root
}

func TestInspect(t *testing.T) {
	const elf = "\x7fELF...."
	tests := []struct {
		name  string
		lines []string
		init  []string
		kind  InitKind
		path  string
	}{
		{"debian", []string{"usr/lib/systemd/systemd = " + elf, "usr/sbin/init -> ../lib/systemd/systemd", "sbin -> usr/sbin"}, nil, Systemd, "/sbin/init"},
		{"absolute link", []string{"lib/systemd/systemd = " + elf, "sbin/init -> /lib/systemd/systemd"}, nil, Systemd, "/sbin/init"},
		{"no sbin/init", []string{"lib/systemd/systemd = " + elf}, nil, Systemd, "/lib/systemd/systemd"},
		{"dangling", []string{"sbin/init -> /nowhere", "bin/init = " + elf + "INIT_VERSION="}, nil, Sysvinit, "/bin/init"},
		{"sysvinit", []string{"sbin/init = " + elf + "INIT_VERSION="}, nil, Sysvinit, "/sbin/init"},
		{"busybox", []string{"bin/busybox = " + elf, "sbin/init -> /bin/busybox"}, nil, Busybox, "/sbin/init"},
		{"busybox copied", []string{"sbin/init = " + elf + "BusyBox v1.37"}, nil, Busybox, "/sbin/init"},
		{"busybox as a shell", []string{"bin/busybox = " + elf, "bin/sh -> busybox"}, []string{"/bin/sh", "-c", "x"}, OtherInit, "/bin/sh"},
		{"openrc", []string{"sbin/openrc-init = " + elf, "sbin/init -> openrc-init"}, nil, OpenRC, "/sbin/init"},
		{"script", []string{"sbin/init = #!/bin/sh"}, nil, OtherInit, "/sbin/init"},
		{"configured", []string{"sbin/init = #!x", "lib/systemd/systemd = " + elf}, []string{"/lib/systemd/systemd", "--x"}, Systemd, "/lib/systemd/systemd"},
		{"upwards", []string{"sbin/init -> ../../../../../../bin/init", "bin/init = " + elf + "INIT_VERSION="}, nil, Sysvinit, "/sbin/init"},
	}
	for _, test := range tests {
		got, err := inspect(makeRoot(t, test.lines...), rootRequest{Init: test.init})
		if err != nil || got.Kind != test.kind || got.Init[0] != test.path {
			t.Errorf("%s: %+v, %v", test.name, got, err)
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	tests := []struct {
		name  string
		lines []string
		init  []string
		want  string
	}{
		{"empty", nil, nil, "has no init"},
		{"missing", []string{"bin"}, []string{"/bin/none"}, "init /bin/none cannot be run in the root: no such file"},
		{"relative", []string{"bin/x = #!x"}, []string{"bin/x"}, "not an absolute path"},
		{"text", []string{"bin/x = text"}, []string{"/bin/x"}, "neither a program nor a script"},
		{"directory", []string{"sbin/init"}, []string{"/sbin/init"}, "is not a file"},
		{"dev link", []string{"sbin/init = #!x", "dev -> /tmp"}, nil, "/dev of the root is a symbolic link"},
		{"run link", []string{"sbin/init = #!x", "run -> var/run"}, nil, "/run of the root is a symbolic link"},
		{"loop", []string{"sbin/init -> init"}, []string{"/sbin/init"}, "too many levels"},
	}
	for _, test := range tests {
		_, err := inspect(makeRoot(t, test.lines...), rootRequest{Init: test.init})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
	root := makeRoot(t, "bin/x = #!x")
	os.Chmod(filepath.Join(root.name, "bin/x"), 0o644)
	if _, err := inspect(root, rootRequest{Init: []string{"/bin/x"}}); err == nil || !strings.Contains(err.Error(), "not executable") {
		t.Errorf("got %v", err)
	}
}

func TestInitUser(t *testing.T) {
	root := makeRoot(t, "sbin/init = #!x", "etc/passwd = root:x:0:0::/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n", "etc/group = www:x:34:\nops:x:50:\n")
	tests := []struct {
		user, group, want string
		uid, gid          uint32
	}{
		{"", "", "", 0, 0},
		{"www", "", "", 33, 34},
		{"33", "", "", 33, 34},
		{"www", "ops", "", 33, 50},
		{"77", "88", "", 77, 88},
		{"nobody", "", "inituser nobody is not in", 0, 0},
		{"", "nogroup", "initgroup nogroup is not in", 0, 0},
	}
	for _, test := range tests {
		got, err := inspect(root, rootRequest{User: test.user, Group: test.group})
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%+v: %v", test, err)
			}
		} else if err != nil || got.UID != test.uid || got.GID != test.gid {
			t.Errorf("%+v: %+v, %v", test, got, err)
		}
	}
}

// A lookup stays in the root whatever is in it.
func TestTreeStaysInside(t *testing.T) {
	root := makeRoot(t, "a/up -> ../../../../../../../etc", "etc/passwd = inside", "abs -> /etc", "proc -> /proc/self/root")
	for _, name := range []string{"/a/up/passwd", "/abs/passwd", "/../../../etc/passwd"} {
		if body, err := root.read(name, 100); string(body) != "inside" {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	if _, err := root.read("/proc/etc/passwd", 100); err == nil {
		t.Error("a link to /proc/self/root leads out")
	}
	fd, err := root.directory("/abs/new/deep", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if where, _ := root.path(fd); where != "/etc/new/deep" {
		t.Errorf("made %s", where)
	}
}
