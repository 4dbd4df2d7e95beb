package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCloneRoot(t *testing.T) {
	l := newTestLayers(t)
	from, to, third := layersUUID, [16]byte{2}, [16]byte{3}
	write(t, l.upper(from), "a=1", "-text")
	if err := l.Clone(from, "", to); err != nil {
		t.Fatal(err)
	}
	if err := l.Clone(from, "", to); err == nil {
		t.Error("a disk was replaced by a clone")
	}
	write(t, l.upper(from), "a=2")
	write(t, l.upper(to), "b=1")
	if a, b := l.shows(t, from), l.shows(t, to); a != "a=2" || b != "a=1 b=1" {
		t.Errorf("the original shows %q, the clone %q", a, b)
	}
	// Where nothing was written since, nothing is added.
	os.Remove(l.upper(to) + "/b")
	if err := l.Clone(to, "", third); err != nil {
		t.Fatal(err)
	}
	if left := l.left(t); len(left) != 1 {
		t.Errorf("%d layers of three disks with one state in common", len(left))
	}
	roots, err := l.Roots()
	if err != nil || len(roots) != 3 || roots[0].Layers != 1 || roots[0].Snapshots != 0 {
		t.Errorf("%+v, %v", roots, err)
	}

	// The clones keep what they need of an original that is deleted.
	if err := l.Remove(from); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(third); err != nil {
		t.Fatal(err)
	}
	if got, left := l.shows(t, to), l.left(t); got != "a=1" || len(left) != 0 {
		t.Errorf("the clone shows %q, layers %v", got, left)
	}
	if err := l.Remove(from); err == nil {
		t.Error("what is not there was removed")
	}
}

func TestCloneNothing(t *testing.T) {
	l := newTestLayers(t)
	if err := l.Clone([16]byte{7}, "", [16]byte{8}); !errors.Is(err, errNoDisk) {
		t.Errorf("clone of what never started: %v", err)
	}
	if err := l.Clone([16]byte{7}, "../../../../etc", [16]byte{8}); err == nil {
		t.Error("cloned a path")
	}
	if exists(l.privateDir(formatUUID([16]byte{8}))) {
		t.Error("a failed clone left a disk")
	}
}

// TestCloneOfOneThatStarts: a start that finds no disk and takes long to make one
// does not replace what was made meanwhile, and who starts or runs gets none.
func TestCloneOfOneThatStarts(t *testing.T) {
	l := newTestLayers(t)
	write(t, l.upper(layersUUID), "a=1")
	to := [16]byte{2}
	if err := os.WriteFile(filepath.Join(l.templates.Dir(), "web.tar"), tarOf(t, file("text", "2")), 0o600); err != nil {
		t.Fatal(err)
	}
	pinned := make(chan error, 1)
	err := l.templates.locked(unix.LOCK_EX, func() error {
		go func() {
			_, err := l.templates.pin(t.Context(), "web.tar", l.privateDir(formatUUID(to)))
			pinned <- err
		}()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if made, _ := filepath.Glob(l.templates.digestDir(".import-*/template.json")); len(made) > 0 {
				return l.Clone(layersUUID, "", to)
			}
			if time.Now().After(end) {
				return errors.New("the volume is not imported")
			}
		}
	})
	if err = errors.Join(err, <-pinned); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, to); got != "a=1 text=1" {
		t.Errorf("the clone shows %q", got)
	}

	third := [16]byte{3}
	if err := os.MkdirAll(filepath.Join(l.state, formatUUID(third)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Clone(layersUUID, "", third); !errors.Is(err, ErrRunning) {
		t.Errorf("clone for one that runs: %v", err)
	}
	if exists(l.privateDir(formatUUID(third))) {
		t.Error("a disk was made below one that runs")
	}
}

// What is kept goes on as the disk of another domain, with its snapshots.
func TestAdoptRoot(t *testing.T) {
	l := newTestLayers(t)
	old, now := layersUUID, [16]byte{5}
	write(t, l.upper(old), "a=1")
	one := must[string](t)(l.Push(old))
	write(t, l.upper(old), "a=2")
	if err := l.Adopt(old, now); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, now); got != "a=2 text=1" {
		t.Errorf("adopted: %s", got)
	}
	if err := l.Revert(now, one); err != nil {
		t.Error(err)
	}
	if err := l.Adopt(old, now); err == nil {
		t.Error("nothing was adopted without an error")
	}
	roots, err := l.Roots()
	if err != nil || len(roots) != 1 || roots[0].UUID != formatUUID(now) || roots[0].Snapshots != 1 {
		t.Errorf("%+v, %v", roots, err)
	}
}

// TestUnmadeDisk: what is left of a disk whose maker was killed before it was
// one is in nobody's way and does not stay. Whatever else lies there does.
func TestUnmadeDisk(t *testing.T) {
	unmade := map[string][]string{
		"directory": {"/"},
		"start":     {"upper/", "work/", "template.new="},
		"clone":     {"upper.new/", "work/"},
	}
	others := map[string][]string{
		"written to": {"upper/file=1", "work/"},
		"other":      {"rootfs/"},
		"half one":   {"upper=1"},
	}
	left := func(t *testing.T, l *Layers, name string, entries []string) string {
		dir := l.privateDir(name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, dir, entries...)
		return dir
	}
	to := [16]byte{9}
	for name, entries := range unmade {
		t.Run(name, func(t *testing.T) {
			l := newTestLayers(t)
			dir := left(t, l, formatUUID(to), entries)
			if err := l.Adopt(layersUUID, to); err != nil {
				t.Fatal(err)
			}
			if got := l.shows(t, to); got != "text=1" {
				t.Errorf("adopted: %s", got)
			}
			os.RemoveAll(dir)
			left(t, l, formatUUID(to), entries)
			foreign := left(t, l, "a", entries) // nobody's name but its owner's
			state := filepath.Join(l.state, formatUUID(to))
			if err := os.MkdirAll(state, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := l.sweep(); err != nil || !exists(dir) {
				t.Errorf("it is gone from below one that starts: %v", err)
			}
			os.Remove(state)
			if err := l.sweep(); err != nil || exists(dir) || !exists(foreign) {
				t.Errorf("%v, it is there still: %t, another: %t", err, exists(dir), exists(foreign))
			}
			if entries := l.left(t); len(entries) > 0 {
				t.Errorf("left %v", entries)
			}
		})
	}
	for name, entries := range others {
		t.Run(name, func(t *testing.T) {
			l := newTestLayers(t)
			dir := left(t, l, formatUUID(to), entries)
			if err := l.Adopt(layersUUID, to); err == nil || !strings.Contains(err.Error(), dir+" is no disk and in its way") {
				t.Errorf("adopted: %v", err)
			}
			if err := l.sweep(); err != nil || view(t, dir) == "" {
				t.Errorf("%v, it is gone", err)
			}
			if got := l.shows(t, layersUUID); got != "text=1" {
				t.Errorf("what was not adopted: %s", got)
			}
		})
	}
}

func TestForgetIdentity(t *testing.T) {
	for kind, want := range map[InitKind]string{Systemd: "etc/ etc/machine-id= etc/other=1 var/ var/lib/ var/lib/dbus/", Sysvinit: "etc/ etc/other=1 var/ var/lib/ var/lib/dbus/"} {
		dir := t.TempDir()
		write(t, dir, "etc/machine-id=1234", "etc/other=1", "var/lib/dbus/machine-id=1234")
		tree, err := openTreeRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		if err := forgetIdentity(tree, kind); err != nil {
			t.Fatal(err)
		}
		if got := view(t, dir); got != want {
			t.Errorf("%s: %s", kind, got)
		}
	}

	// A link, and a directory that is one, lead nowhere outside.
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, "machine-id=host")
	write(t, dir, "var/")
	if err := errors.Join(os.Symlink(outside, dir+"/etc"), os.Mkdir(dir+"/var/lib", 0o755), os.Mkdir(dir+"/var/lib/dbus", 0o755),
		os.Symlink(outside+"/machine-id", dir+"/var/lib/dbus/machine-id")); err != nil {
		t.Fatal(err)
	}
	tree, err := openTreeRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := forgetIdentity(tree, Systemd); err != nil {
		t.Error(err)
	}
	if body, err := os.ReadFile(outside + "/machine-id"); string(body) != "host" {
		t.Errorf("the host's file is %q, %v", body, err)
	}
	for _, file := range []string{"/etc", "/var/lib/dbus/machine-id"} {
		if _, err := os.Readlink(dir + file); err != nil {
			t.Error(err)
		}
	}
	fifo := t.TempDir()
	write(t, fifo, "etc/")
	if err := unix.Mkfifo(filepath.Join(fifo, "etc/machine-id"), 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := openTreeRoot(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if err := forgetIdentity(pipe, Systemd); err != nil && !strings.Contains(err.Error(), "machine-id") {
		t.Error(err)
	}
}
