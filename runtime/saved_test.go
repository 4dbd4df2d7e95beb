package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func savedImage(t *testing.T) (path string, content []byte) {
	t.Helper()
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "images"), 0o700)
	content = bytes.Repeat([]byte("a page of memory "), 10000)
	os.WriteFile(filepath.Join(dir, manifestName), []byte(`{"Version":1}`), 0o600)
	os.WriteFile(filepath.Join(dir, "images", "pages-1.img"), content, 0o600)
	path = filepath.Join(t.TempDir(), "web1.save")
	committed := false
	err := WriteSaved(t.Context(), path, SavedHeader{ID: "1", Name: "web1", XML: "<domain/>"}, dir, func(done, total uint64) {
		if done > total || total < uint64(len(content)) {
			t.Errorf("%d of %d bytes", done, total)
		}
	}, func() error {
		committed = !exists(path) && exists(PartOfSaved(path))
		return nil
	})
	if err != nil || !committed {
		t.Fatal(err, committed)
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
