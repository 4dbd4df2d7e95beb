package runtime

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// again imports another content under a name.
func again(t *testing.T, templates *Templates, name, text string) Generation {
	t.Helper()
	file := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(file, tarOf(t, tar.Header{Typeflag: tar.TypeReg, Name: "text", Linkname: text}), 0o644); err != nil {
		t.Fatal(err)
	}
	made, err := templates.Import(t.Context(), name, file, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// use makes a layer as the first start of an environment does.
func use(t *testing.T, templates *Templates, uuid, name string) string {
	t.Helper()
	layers := filepath.Join(templates.private, uuid)
	if _, err := templates.pin(t.Context(), name, layers); err != nil {
		t.Fatal(err)
	}
	return layers
}

// listing is what `template list` shows, in a line for each generation.
func listing(t *testing.T, templates *Templates) string {
	t.Helper()
	list, err := templates.List()
	if err != nil {
		t.Error(err)
	}
	var b strings.Builder
	for _, g := range list {
		text, _ := os.ReadFile(g.Path + "/text")
		fmt.Fprintf(&b, "%s:%s:%t:%s ", g.Name, text, g.Current, strings.Join(g.Users, ","))
	}
	return strings.TrimSpace(b.String())
}

func TestGenerations(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	templates.NameOf = func(uuid string) string { return "env-" + uuid }
	one := again(t, templates, "web", "1")
	old := use(t, templates, "a", "web")
	two := again(t, templates, "web", "2")
	use(t, templates, "b", "web")
	again(t, templates, "web", "3")
	again(t, templates, "db", "1") // the same content by another name

	if got, want := listing(t, templates), "db:1:true:env-a web:3:true: web:2:false:env-b web:1:false:env-a"; got != want {
		t.Errorf("list\n%s, want\n%s", got, want)
	}
	if got, err := templates.pin(t.Context(), "web", old); err != nil || got.Digest != one.Digest {
		t.Errorf("an environment left its generation: %+v, %v", got, err)
	}
	err := templates.Remove("web")
	if err == nil || !strings.Contains(err.Error(), "template web is in use: generation "+two.ID()+" by env-b; undefine") {
		t.Errorf("in use: %v", err)
	}
	if err := templates.Remove("web@" + two.ID()); err == nil || !strings.Contains(err.Error(), "env-b") {
		t.Errorf("in use: %v", err)
	}
	// What another name holds as well loses only this name.
	if err := templates.Remove("web@" + one.ID()[:6]); err != nil {
		t.Error(err)
	}
	if err := templates.Remove("db"); err == nil || !strings.Contains(err.Error(), "env-a") {
		t.Errorf("in use: %v", err)
	}
	// Without the current one the name means the newest that is left.
	current, _ := templates.Lookup("web")
	if err := templates.Remove("web@" + current.ID()); err != nil {
		t.Error(err)
	}
	if got, want := listing(t, templates), "db:1:true:env-a web:2:true:env-b"; got != want {
		t.Errorf("list\n%s, want\n%s", got, want)
	}
	again(t, templates, "web", "4")
	again(t, templates, "web", "5")
	gone, err := templates.Prune()
	if err != nil || len(gone) != 1 || gone[0].Name != "web" {
		t.Errorf("pruned %+v, %v", gone, err)
	}
	for _, which := range []string{"web@1", "@", "web@ffffffffffff", "none", "../x", ""} {
		if err := templates.Remove(which); err == nil {
			t.Errorf("%q was removed", which)
		}
	}
	if got, want := listing(t, templates), "db:1:true:env-a web:5:true: web:2:false:env-b"; got != want {
		t.Errorf("list\n%s, want\n%s", got, want)
	}
}

// Templates of the first version have no names/ and no more of a manifest.
func TestGenerationsFromBefore(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	for _, digest := range []string{"sha256-0000000000000000", "sha256-1111111111111111"} {
		dir := templates.digestDir(digest)
		os.MkdirAll(dir+"/rootfs", 0o755)
		os.WriteFile(dir+"/rootfs/text", []byte(digest[7:8]), 0o644)
		os.WriteFile(dir+"/template.json", []byte(`{"Digest":"`+digest+`","Source":"/x.tar","Size":4096,"Files":3,"Imported":"2026-01-02T03:04:05Z"}`), 0o644)
	}
	os.MkdirAll(templates.private+"/u", 0o700)
	os.WriteFile(templates.private+"/u/template", []byte("sha256-0000000000000000\n"), 0o600)
	os.Symlink(".digest/sha256-1111111111111111", templates.dir+"/web")

	if got, want := listing(t, templates), "web:1:true: :0:false:u"; got != want {
		t.Errorf("list\n%s, want\n%s", got, want)
	}
	if g, err := templates.Find("web"); err != nil || g.Source != "/x.tar" || g.Made.Year() != 2026 {
		t.Errorf("%+v, %v", g, err)
	}
	if g, err := templates.pin(t.Context(), "web", templates.private+"/u"); err != nil || g.Digest != "sha256-0000000000000000" {
		t.Errorf("%+v, %v", g, err)
	}
	if err := templates.Remove("@0000"); err == nil {
		t.Error("one in use is removed")
	}
	os.RemoveAll(templates.private + "/u")
	if err := templates.Remove("@0000"); err != nil {
		t.Error(err)
	}
	again(t, templates, "web", "2")
	if got, want := listing(t, templates), "web:2:true: web:1:false:"; got != want {
		t.Errorf("list %s, want %s", got, want)
	}
}

func TestDamagedTemplate(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	bad, good := again(t, templates, "bad", "1"), again(t, templates, "good", "2")
	os.WriteFile(filepath.Dir(bad.Path)+"/template.json", []byte("{"), 0o600)
	list, err := templates.List()
	if err == nil || len(list) != 1 || list[0].Digest != good.Digest {
		t.Errorf("%+v, %v", list, err)
	}
	if err := templates.Remove("bad"); err != nil {
		t.Error(err)
	}
	if names := templates.Names(); len(names) != 1 {
		t.Errorf("names %v", names)
	}
}

// What a killed import leaves goes with the next; what another is making stays.
func TestInterruptedImport(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	if err := templates.makeDirs(); err != nil {
		t.Fatal(err)
	}
	dead, alive := templates.digestDir(".import-1"), templates.digestDir(".import-2")
	os.MkdirAll(dead+"/rootfs/etc", 0o700)
	os.MkdirAll(alive+"/rootfs/etc", 0o700)
	f, err := os.Open(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	again(t, templates, "x", "1")
	if exists(dead) || !exists(alive) {
		t.Errorf("dead: %t, alive: %t", exists(dead), exists(alive))
	}
}

// Below .digest lie set-user-id programs of strangers.
func TestTemplatesAreClosed(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	os.MkdirAll(templates.dir+"/.digest", 0o755)
	again(t, templates, "x", "1")
	info, err := os.Stat(templates.dir + "/.digest")
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestManifest(t *testing.T) {
	templates, made, err := importBody(t, tarOf(t,
		file("etc/os-release", "ID=x\nPRETTY_NAME=\"Some\x1b Linux\"\n"),
		file("var/lib/dpkg/status", "Package: b\nStatus: install ok installed\nVersion: 1:2-3\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nVersion: 9\n"),
		file("lib/apk/db/installed", "C:x\nP:musl\nV:1.2-r3\n\nC:Q1YEHCzHG/9OTMfvqQoUiYxQvNzTY=\nP:busybox\nV:1.37.0-r18\nA:x86_64\nT:busybox of a test\n"+
			"D:alpine-baselayout\nF:bin\nR:busybox\na:0:0:755\nZ:Q1PAEWIcBcXCQXg9PzCe0c+Y3rZBI=\n\n"),
		dir("var/lib/pacman/local/gcc-libs-15.1-2"), file("var/lib/pacman/local/ALPM_DB_VERSION", "9")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if made.System != "Some Linux" || made.Packages != 5 {
		t.Errorf("%+v", made)
	}
	found, err := templates.Find("x@" + made.ID())
	if err != nil {
		t.Fatal(err)
	}
	list, err := found.PackageList()
	if got, want := strings.Join(list, ", "), "a 9, b 1:2-3, busybox 1.37.0-r18, gcc-libs 15.1-2, musl 1.2-r3"; got != want || err != nil {
		t.Errorf("packages %s, %v, want %s", got, err, want)
	}
}

// TestSweepBeside: what begins while others sweep is not taken for what somebody
// who was killed left, and what is removed is gone.
func TestSweepBeside(t *testing.T) {
	templates := OpenTemplates(t.TempDir())
	again(t, templates, "base", "base")
	stop := make(chan struct{})
	var sweepers sync.WaitGroup
	for range 2 {
		sweepers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					templates.sweep()
				}
			}
		})
	}
	defer sweepers.Wait()
	defer close(stop)
	for range 100 {
		dir, done, err := templates.workDir()
		if err == nil && !exists(dir) {
			err = errors.New("the directory is gone")
		}
		if err != nil {
			t.Fatal(err)
		}
		done()
	}
	for n := range 50 {
		made := again(t, templates, "web", fmt.Sprint(n))
		if err := templates.Remove("web"); err != nil || exists(made.Path) {
			t.Fatalf("removed: %v; it is there still: %t", err, exists(made.Path))
		}
	}
}
