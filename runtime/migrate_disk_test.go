package runtime

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// TestMoveDisk moves the disk of an environment that is shut off, sent by the
// source or asked for by the destination.
func TestMoveDisk(t *testing.T) {
	for name, move := range map[string]func(from, to *Runtime, in *Incoming, root MigrationRoot) error{
		"sent": func(from, to *Runtime, in *Incoming, root MigrationRoot) error {
			link, served := serve(t.Context(), to)
			dial := func(context.Context) (io.ReadWriteCloser, error) { return link, nil }
			err := from.SendDisk(t.Context(), Outgoing{Session: in.options.Session, Dial: dial, Root: root, Control: NewMigrationControl(0, 0), Compress: true})
			return errors.Join(err, <-served)
		},
		"asked for": func(from, to *Runtime, in *Incoming, root MigrationRoot) error {
			from.AwaitPull(Outgoing{Session: in.options.Session, Root: root, Control: NewMigrationControl(8<<20, 0)})
			link, served := serve(t.Context(), from)
			began := time.Now()
			err := errors.Join(in.Pull(t.Context(), link), <-served)
			if took := time.Since(began); took < 400*time.Millisecond {
				t.Errorf("4 MiB came in %v, with 8 MiB a second", took)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to, target := emptyRuntime(t), emptyRuntime(t), filepath.Join(t.TempDir(), "root")
			in := await(t, to, target, NewSession())
			p := newMirrorPair(t, onDisk)
			os.WriteFile(filepath.Join(p.from, "file"), bytes.Repeat([]byte("text"), 1<<20), 0o640)
			os.Symlink("/etc/passwd", filepath.Join(p.from, "link"))
			if _, err := in.Commit(t.Context()); err == nil {
				t.Fatal("it was committed before anything came")
			}
			if err := move(from, to, in, MigrationRoot{Type: "mount", Dir: p.from}); err != nil {
				t.Fatal(err)
			}
			if exists(target) != in.complete() {
				t.Error("the disk is not where it belongs")
			}
			if _, err := in.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.to = target
			p.same()
			if err := in.Abort(t.Context()); err != errCommitted || !exists(filepath.Join(target, "file")) {
				t.Errorf("a late abort: %v", err)
			}
		})
	}
}

// TestWrittenBack: nothing is decided before all that has come is on the disk, nor
// when it cannot be.
func TestWrittenBack(t *testing.T) {
	for name, failure := range map[string]error{"slow": nil, "full": unix.ENOSPC} {
		t.Run(name, func(t *testing.T) {
			from, to, target := emptyRuntime(t), emptyRuntime(t), filepath.Join(t.TempDir(), "root")
			in := await(t, to, target, NewSession())
			source := t.TempDir()
			os.WriteFile(filepath.Join(source, "file"), []byte("text"), 0o640)
			written, asked := make(chan error), make(chan string, 1)
			syncfs = func(fd int) error {
				where, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
				asked <- where
				return <-written
			}
			t.Cleanup(func() { syncfs = unix.Syncfs })
			link, served := serve(t.Context(), to)
			dial := func(context.Context) (io.ReadWriteCloser, error) { return link, nil }
			err := from.SendDisk(t.Context(), Outgoing{Session: in.options.Session, Dial: dial, Root: MigrationRoot{Type: "mount", Dir: source}, Control: NewMigrationControl(0, 0)})
			if err := errors.Join(err, <-served); err != nil {
				t.Fatal(err)
			}
			select {
			case where := <-asked:
				if filepath.Dir(where) != filepath.Dir(target) {
					t.Errorf("written: what is in %s", where)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("what has come is not written to the disk")
			}
			decided := make(chan error, 1)
			go func() {
				_, err := in.Commit(t.Context())
				decided <- err
			}()
			select {
			case err := <-decided:
				t.Fatalf("decided before it is on the disk: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			written <- failure
			if err := <-decided; !errors.Is(err, failure) || (in.Outcome() == Committed) != (failure == nil) {
				t.Errorf("%v, %v", err, in.Outcome())
			}
		})
	}
}

// TestTakeTar: of what comes as images only images are written, where they belong.
func TestTakeTar(t *testing.T) {
	header := func(name string, kind byte) *tar.Header {
		return &tar.Header{Name: name, Typeflag: kind, Mode: 0o777, Size: map[bool]int64{true: 4}[kind == tar.TypeReg], Linkname: "/etc/passwd"}
	}
	file := func(name string) *tar.Header { return header(name, tar.TypeReg) }
	for name, c := range map[string]struct {
		part string
		has  []*tar.Header
		want string // of the error
	}{
		"images":           {"images", []*tar.Header{file("images/core-1.img"), file("images/pages_1"), file("manifest.json")}, ""},
		"a round":          {"round-1", []*tar.Header{file("round-1/core-1.img")}, ""},
		"of another":       {"round-1", []*tar.Header{file("images/core-1.img")}, "is no image"},
		"manifest early":   {"round-1", []*tar.Header{file("manifest.json")}, "is no image"},
		"beside":           {"images", []*tar.Header{file("evil")}, "is no image"},
		"above":            {"images", []*tar.Header{file("images/../../evil")}, "is no image"},
		"the directory":    {"images", []*tar.Header{file("images/..")}, "file exists"},
		"absolute":         {"images", []*tar.Header{file("/images/evil")}, "is no image"},
		"deeper":           {"images", []*tar.Header{file("images/a/b")}, "is no image"},
		"a directory":      {"images", []*tar.Header{header("images/", tar.TypeDir)}, "is no image"},
		"a link":           {"images", []*tar.Header{header("images/core-1.img", tar.TypeSymlink)}, "is no image"},
		"a hard link":      {"images", []*tar.Header{header("images/core-1.img", tar.TypeLink)}, "is no image"},
		"a device":         {"images", []*tar.Header{header("images/core-1.img", tar.TypeBlock)}, "is no image"},
		"twice":            {"images", []*tar.Header{file("images/a"), file("images/a")}, "file exists"},
		"in place of one":  {"images", []*tar.Header{file("images/parent")}, "file exists"},
		"to the terminal":  {"images", []*tar.Header{file("images/\x1b]0;")}, "is no image"},
		"longer than that": {"images", []*tar.Header{file("images/" + strings.Repeat("a", 101))}, "is no image"},
	} {
		t.Run(name, func(t *testing.T) {
			where := t.TempDir()
			dir := filepath.Join(where, "incoming")
			outside := filepath.Join(where, "outside")
			os.MkdirAll(filepath.Join(dir, c.part), 0o700)
			os.WriteFile(outside, []byte("kept"), 0o600)
			os.Symlink(outside, filepath.Join(dir, c.part, "parent"))
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range c.has {
				err := w.WriteHeader(h)
				if err == nil {
					_, err = io.WriteString(w, "text"[:h.Size])
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			err := takeTar(dir, c.part, &b)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\x1b")) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			for _, h := range c.has {
				if c.want == "" && readWhole(filepath.Join(dir, h.Name)) != "text" {
					t.Errorf("%s is not there", h.Name)
				}
			}
			if left, _ := os.ReadDir(where); len(left) != 2 || readWhole(outside) != "kept" {
				t.Errorf("outside there is %v", left)
			}
		})
	}
}

// TestBaseGoneMeanwhile: what a disk stands on that is on its way here may be
// removed until it takes its place. Then it does not, and what was here stays.
func TestBaseGoneMeanwhile(t *testing.T) {
	for name, remove := range map[string]func(l *Layers, layer string) error{
		"nothing": func(*Layers, string) error { return nil },
		"template": func(l *Layers, layer string) error {
			return errors.Join(l.Release(layersUUID, layer), l.templates.Remove("base"))
		},
		"layer": func(l *Layers, layer string) error { return l.Release(layersUUID, layer) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newTestLayers(t)
			r := &Runtime{config: Config{DataDir: filepath.Dir(l.dir), StateDir: l.state}}
			base := again(t, l.templates, "base", "2")
			layer := newLayerID()
			made := Layer{Of: formatUUID(layersUUID), Template: base.Digest}
			if err := errors.Join(os.MkdirAll(filepath.Join(l.layerDir(layer), "rootfs"), 0o700), l.describe(l.layerDir(layer), made)); err != nil {
				t.Fatal(err)
			}
			write(t, l.upper(layersUUID), "was=here")
			s := &session{Session: NewSession(), UUID: formatUUID(layersUUID), Name: "web", Root: "template", Began: time.Now()}
			offer := &MigrationOffer{Root: MigrationRoot{Template: base, LayerIDs: []string{layer}}}
			if name == "template" { // right below the disk
				offer.Root.LayerIDs = nil
			}
			if err := errors.Join(r.saveSession(s), r.stageDisk(s, offer, xml.Filesystem{Type: "template"})); err != nil {
				t.Fatal(err)
			}
			write(t, s.stage(r), "came=here")
			if err := remove(l, layer); err != nil {
				t.Fatal(err)
			}
			err := r.placeDisk(s)
			if name == "nothing" {
				if got := l.shows(t, layersUUID); err != nil || got != "came=here text=2" {
					t.Errorf("it did not take its place: %v: %s", err, got)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "migrate it again") {
				t.Errorf("it took its place: %v", err)
			}
			if err := r.undoDisk(s); err != nil {
				t.Error(err)
			}
			if got := l.shows(t, layersUUID); got != "text=1 was=here" {
				t.Errorf("what was here: %s", got)
			}
		})
	}
}

// TestReplacedKept: until it is decided where an environment runs, what its disk
// stands on stays that was here, for it may be put back.
func TestReplacedKept(t *testing.T) {
	l := newTestLayers(t)
	r := &Runtime{config: Config{DataDir: filepath.Dir(l.dir), StateDir: l.state}}
	write(t, l.upper(layersUUID), "was=here")
	layer := must[string](t)(l.Push(layersUUID))
	if err := l.GiveUp(layersUUID, layer); err != nil {
		t.Fatal(err)
	}
	base := again(t, l.templates, "base", "2")
	s := &session{Session: NewSession(), UUID: formatUUID(layersUUID), Name: "web1", Root: "template", Began: time.Now()}
	offer := &MigrationOffer{Root: MigrationRoot{Template: base}}
	if err := errors.Join(r.saveSession(s), r.stageDisk(s, offer, xml.Filesystem{Type: "template"}), r.placeDisk(s)); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, layersUUID); got != "text=2" {
		t.Fatalf("it did not take its place: %s", got)
	}
	if err := l.Collect(layersUUID); err != nil || !exists(l.layerDir(layer)) {
		t.Errorf("its layer is gone: %v", err)
	}
	if err := l.templates.Remove("web"); err == nil || !strings.Contains(err.Error(), formatUUID(layersUUID)+", which a migration may bring back") {
		t.Errorf("its template is gone: %v", err)
	}
	if gone, err := l.templates.Prune(); err != nil || len(gone) > 0 {
		t.Errorf("pruned: %v, %v", gone, err)
	}
	if err := r.undoDisk(s); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, layersUUID); got != "text=1 was=here" {
		t.Errorf("put back it shows %s", got)
	}
	if err := l.Collect(layersUUID); err != nil || exists(l.layerDir(layer)) {
		t.Errorf("its layer is there still: %v", err)
	}
}

// TestKeptDiskGone: what came here may have left again, or was removed, before
// the migration is forgotten.
func TestKeptDiskGone(t *testing.T) {
	r := emptyRuntime(t)
	s := &session{Session: NewSession(), UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Root: "template", Outcome: Committed, Began: time.Now()}
	if err := r.saveSession(s); err != nil {
		t.Fatal(err)
	}
	if _, err := r.recoverSessions(); err != nil {
		t.Error(err)
	}
}
