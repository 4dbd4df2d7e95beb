package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// savedCheckpoint is one whose only page file has that content.
func savedCheckpoint(t *testing.T) (content []byte, dir string) {
	t.Helper()
	dir = t.TempDir()
	os.Mkdir(filepath.Join(dir, "images"), 0o700)
	content = bytes.Repeat([]byte("a page of memory "), 10000)
	os.WriteFile(filepath.Join(dir, manifestName), []byte(`{"Version":1}`), 0o600)
	os.WriteFile(filepath.Join(dir, "images", "pages-1.img"), content, 0o600)
	return content, dir
}

func savedImage(t *testing.T) (path string, content []byte) {
	t.Helper()
	content, dir := savedCheckpoint(t)
	path = filepath.Join(t.TempDir(), "web1.save")
	begun := false
	err := WriteSaved(t.Context(), path, SavedHeader{ID: "1", Name: "web1", XML: "<domain/>"}, dir, func(done, total uint64) {
		if done > total || total < uint64(len(content)) {
			t.Errorf("%d of %d bytes", done, total)
		}
	}, func() error {
		info, err := os.Stat(PartOfSaved(path))
		begun = !exists(path) && err == nil && info.Size() == 0
		return nil
	})
	if err != nil || !begun {
		t.Fatal(err, begun)
	}
	return path, content
}

func extract(t *testing.T, path string) (SavedHeader, string, error) {
	dir := t.TempDir()
	h, err := ExtractSaved(t.Context(), path, dir, func(_, _ uint64) {})
	return h, dir, err
}

func TestSaved(t *testing.T) {
	path, content := savedImage(t)
	if info, _ := os.Stat(path); info.Mode() != 0o600 || info.Size() > int64(len(content))/10 {
		t.Errorf("%v, %d bytes", info.Mode(), info.Size())
	}
	for range 2 { // as it was written, and changed
		h, dir, err := extract(t, path)
		if err != nil || h.Name != "web1" || h.Kernel == "" {
			t.Fatal(h, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "images", "pages-1.img")); err != nil || !bytes.Equal(got, content) {
			t.Error("another page", err)
		}
		if err := EditSaved(path, func(h *SavedHeader) error { h.XML, h.Paused = "<domain type='vz'/>", true; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if h, err := ReadSaved(path); err != nil || h.XML != "<domain type='vz'/>" || !h.Paused || h.ID != "1" {
		t.Error(h, err)
	}
	if exists(PartOfSaved(path)) {
		t.Error("a part is left")
	}
}

// TestOldSaved: what the first version wrote can be restored, and what a later
// one may write is refused by its number.
func TestOldSaved(t *testing.T) {
	old := filepath.Join("testdata", "saved", "version-1.save")
	h, dir, err := extract(t, old)
	if err != nil || h.Name != "web1" || h.Version != 1 {
		t.Fatal(h, err)
	}
	if m, err := loadManifest(dir); err != nil || m.Version != 1 {
		t.Error(m, err)
	}
	if page := readWhole(filepath.Join(dir, "images", "pages-1.img")); page != strings.Repeat("a page of memory ", 10000) {
		t.Errorf("%d bytes of memory", len(page))
	}
	body, _ := os.ReadFile(old)
	later := filepath.Join(t.TempDir(), "later.save")
	os.WriteFile(later, bytes.Replace(body, []byte(`"Version":1,`), []byte(`"Version":2,`), 1), 0o600)
	if _, _, err := extract(t, later); err == nil || !strings.Contains(err.Error(), "use a newer one") {
		t.Errorf("one of version 2: %v", err)
	}
}

// TestDamagedSaved: whichever byte is another, or where ever it ends, it is not
// restored; and it cannot be changed into one that is.
func TestDamagedSaved(t *testing.T) {
	path, _ := savedImage(t)
	whole, _ := os.ReadFile(path)
	broken := filepath.Join(t.TempDir(), "broken")
	refused := func(what string, body []byte) {
		t.Helper()
		os.WriteFile(broken, body, 0o600)
		if _, _, err := extract(t, broken); err == nil || !strings.Contains(err.Error(), "cannot be restored") && !errors.As(err, new(*NotSavedError)) {
			t.Errorf("%s: %v", what, err)
		}
		if err := EditSaved(broken, func(*SavedHeader) error { return nil }); err == nil {
			t.Errorf("%s: it was changed", what)
		}
		if exists(PartOfSaved(broken)) {
			t.Fatalf("%s: a part is left", what)
		}
	}
	for at := 0; at < len(whole); at += 7 {
		body := bytes.Clone(whole)
		body[at] ^= 0x41
		refused(fmt.Sprintf("byte %d of %d", at, len(whole)), body)
		refused(fmt.Sprintf("%d of %d bytes", at, len(whole)), whole[:at])
	}
	refused("one byte less", whole[:len(whole)-1])
}

// TestSavedKeepsTheOld: what cannot be written takes nothing away.
func TestSavedKeepsTheOld(t *testing.T) {
	path, _ := savedImage(t)
	before, _ := os.ReadFile(path)
	err := WriteSaved(t.Context(), path, SavedHeader{}, t.TempDir(), func(_, _ uint64) {}, func() error { return nil })
	if err == nil {
		t.Error("nothing was saved")
	}
	refusal := errors.New("not now")
	if err := EditSaved(path, func(*SavedHeader) error { return refusal }); !errors.Is(err, refusal) {
		t.Error(err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the image has changed")
	}
}

// cancelling writes, and gives up what is written after the first piece.
type cancelling struct {
	cancel  context.CancelFunc
	written int
}

func (c *cancelling) Write(p []byte) (int, error) {
	c.written += len(p)
	c.cancel()
	return len(p), nil
}

// TestGiveUpWithinFile: all memory may be in one file, and who gives a save up
// does not wait for the rest of it.
func TestGiveUpWithinFile(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, manifestName), nil, 0o600)
	os.Truncate(filepath.Join(dir, manifestName), 16<<20)
	ctx, cancel := context.WithCancel(t.Context())
	w := &cancelling{cancel: cancel}
	err := writeFiles(ctx, w, dir, []string{manifestName}, 16<<20, func(_, _ uint64) {})
	if !errors.Is(err, context.Canceled) || w.written > 1<<20 {
		t.Errorf("%v after %d bytes", err, w.written)
	}
}

// TestSaveCutOff: a daemon that is killed while it writes an image has noted what
// the next one is to remove, and so the next save finds nothing in its way.
func TestSaveCutOff(t *testing.T) {
	_, dir := savedCheckpoint(t)
	r, path := emptyRuntime(t), filepath.Join(t.TempDir(), "web1.save")
	r.config.Scopes = &units{}
	i := newInstance(r, &record{UUID: formatUUID(layersUUID), Checkpoint: &recordedCheckpoint{Dir: dir}}, nil)
	if err := errors.Join(os.Mkdir(i.dir, 0o700), i.rec.save(i.dir)); err != nil {
		t.Fatal(err)
	}
	save := func(progress func(done, total uint64)) error {
		return WriteSaved(t.Context(), path, SavedHeader{ID: "1"}, dir, progress, func() error { return i.noteImage(path, "1") })
	}
	func() {
		defer func() { recover() }()
		save(func(_, _ uint64) { panic("killed") })
	}()
	if !exists(PartOfSaved(path)) {
		t.Fatal("nothing was cut off")
	}
	rec, err := loadRecord(i.dir)
	if err != nil {
		t.Fatal(err)
	}
	rec.Checkpoint.Dir = t.TempDir() // the checkpoint is written once more below
	if err := r.endCheckpoint(t.Context(), rec.UUID, rec.Checkpoint); err != nil {
		t.Fatal(err)
	}
	if err := save(func(_, _ uint64) {}); err != nil {
		t.Error(err)
	}
}

// TestDumpCutOff: the same of a dump, whether the environment is there still or
// has ended.
func TestDumpCutOff(t *testing.T) {
	r, path := emptyRuntime(t), filepath.Join(t.TempDir(), "dump")
	i := newInstance(r, &record{UUID: formatUUID(layersUUID), Name: "web1"}, nil)
	if err := os.Mkdir(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for n, begin := range []func(*record) error{
		endDumping,
		func(rec *record) error { return r.sweepSaves([]*Instance{newInstance(r, rec, nil)}) },
	} {
		func() {
			defer func() { recover() }()
			replaceWhole(path, func() error { return i.noteDump(path) }, func(io.Writer) error { panic("killed") })
		}()
		if !exists(PartOfSaved(path)) {
			t.Fatal("nothing was cut off")
		}
		rec, err := loadRecord(i.dir)
		if err == nil {
			err = begin(rec)
		}
		if err != nil || exists(PartOfSaved(path)) {
			t.Errorf("way %d: what was cut off is there still: %v", n, err)
		}
	}
	if rec, err := loadRecord(i.dir); err != nil || rec.Dumping != "" {
		t.Error("it is noted still", err)
	}
}

// TestSaveChecksPath: what is in the way is told before anything of the environment
// is touched, and stays.
func TestSaveChecksPath(t *testing.T) {
	r, dir := emptyRuntime(t), t.TempDir()
	i := newInstance(r, &record{UUID: formatUUID(layersUUID), Name: "web1"}, nil)
	os.Mkdir(filepath.Join(dir, "directory"), 0o700)
	os.WriteFile(PartOfSaved(filepath.Join(dir, "other")), nil, 0o600)
	for name, want := range map[string]string{
		"directory": "is a directory", "other": "other.part is there", "no/such": "no such file",
	} {
		path := filepath.Join(dir, name)
		for what, err := range map[string]error{
			"save": i.Save(t.Context(), path, SavedHeader{}, nil, func(_, _ uint64) {}),
			"dump": i.Dump(t.Context(), path, nil, false, func(_, _ uint64) {}),
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s to %s: %v", what, name, err)
			}
		}
	}
	if !exists(PartOfSaved(filepath.Join(dir, "other"))) || exists(PartOfSaved(filepath.Join(dir, "directory"))) {
		t.Error("what is there has changed")
	}
}

// TestSweepSaves: after a crash of the host no record names what was being
// written, and the daemon's own directories are cleaned all the same.
func TestSweepSaves(t *testing.T) {
	r := emptyRuntime(t)
	save, memory := r.ManagedSave("web1"), r.Layers().Memory(newLayerID())
	for _, path := range []string{save, memory} {
		os.Mkdir(filepath.Dir(path), 0o700)
		os.WriteFile(path, nil, 0o600)
		os.WriteFile(PartOfSaved(path), nil, 0o600)
	}
	if err := r.sweepSaves(nil); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{save, memory} {
		if exists(PartOfSaved(path)) || !exists(path) {
			t.Errorf("%s: its part is left: %v; it is there: %v", path, exists(PartOfSaved(path)), exists(path))
		}
	}
}
