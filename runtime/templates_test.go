package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// tarOf makes an archive of the headers; Linkname of a regular file is its text.
func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text, h.Linkname = h.Linkname, ""
			h.Size = int64(len(text))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return out.Bytes()
}

func dir(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name} }
func file(name, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: text}
}
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}

func importBody(t *testing.T, body []byte, limits Limits) (*Templates, Generation, error) {
	t.Helper()
	data := t.TempDir()
	name := filepath.Join(data, "root.tar")
	if err := os.WriteFile(name, body, 0o644); err != nil {
		t.Fatal(err)
	}
	templates := OpenTemplates(filepath.Join(data, "vz"))
	made, err := templates.Import(t.Context(), "x", name, ImportOptions{Limits: limits})
	return templates, made, err
}

func TestImport(t *testing.T) {
	at := time.Unix(1000000000, 0)
	body := tarOf(t, dir("./"), dir("./usr"), tar.Header{Typeflag: tar.TypeDir, Name: "usr/bin", ModTime: at}, link("bin", "usr/bin"),
		tar.Header{Typeflag: tar.TypeReg, Name: "bin/su", Linkname: "text", Mode: 0o4755, Uid: 1, Gid: 2, ModTime: at},
		tar.Header{Typeflag: tar.TypeLink, Name: "usr/bin/su2", Linkname: "./bin/su"},
		tar.Header{Typeflag: tar.TypeFifo, Name: "run/fifo", Mode: 0o600},
		tar.Header{Typeflag: tar.TypeChar, Name: "dev/null"},
		file("twice", "old"), file("twice", "new"),
		dir("bin/d"), dir("usr/bin/d"), tar.Header{Typeflag: tar.TypeDir, Name: "bin/d", ModTime: at},
		tar.Header{Typeflag: tar.TypeReg, Name: "ping", PAXRecords: map[string]string{
			"SCHILY.xattr.user.x": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}},
		link("abs", "/etc/passwd"), file("etc/deep/er/file", ""))
	templates, made, err := importBody(t, body, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	root := made.Path
	info, err := os.Lstat(root + "/usr/bin/su")
	if err != nil || info.Mode() != os.ModeSetuid|0o755 || !info.ModTime().Equal(at) {
		t.Errorf("su: %v, %v", info, err)
	}
	for _, name := range []string{"/usr/bin", "/usr/bin/d"} {
		if info, _ := os.Stat(root + name); !info.ModTime().Equal(at) {
			t.Errorf("the directory %s has the time %v", name, info.ModTime())
		}
	}
	if a, _ := os.Stat(root + "/usr/bin/su2"); !os.SameFile(a, info) {
		t.Error("a hard link was not made")
	}
	if text, _ := os.ReadFile(root + "/twice"); string(text) != "new" {
		t.Errorf("twice has %q", text)
	}
	if _, err := os.Lstat(root + "/dev/null"); err == nil {
		t.Error("a device was made")
	}
	if to, _ := os.Readlink(root + "/abs"); to != "/etc/passwd" {
		t.Errorf("abs points to %q", to)
	}
	if names := xattrs(t, root+"/ping"); names != "user.x " {
		t.Errorf("attributes %q", names)
	}
	list, err := templates.List()
	if err != nil || len(list) != 1 || list[0].Name != "x" || list[0].Digest != made.Digest || made.Files != 16 {
		t.Errorf("list %+v, %v", list, err)
	}
}

func TestImportCompressed(t *testing.T) {
	plain := tarOf(t, dir("etc"), file("etc/x", "y"))
	_, want, err := importBody(t, plain, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	packers := map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	}
	for name, packer := range packers {
		var out bytes.Buffer
		w, err := packer(&out)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(plain)
		w.Close()
		_, got, err := importBody(t, out.Bytes(), Limits{})
		if err != nil || got.Digest != want.Digest {
			t.Errorf("%s: %s, %v, want %s", name, got.Digest, err, want.Digest)
		}
		if _, _, err := importBody(t, out.Bytes()[:out.Len()-9], Limits{}); err == nil {
			t.Errorf("%s: a truncated file is accepted", name)
		}
	}
}

// Whatever an archive contains, nothing is written outside.
func TestImportHostile(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("safe"), 0o600); err != nil {
		t.Fatal(err)
	}
	before, _ := os.Lstat(victim)
	up := strings.Repeat("../", 20)
	tests := map[string][]tar.Header{
		"dot dot":            {file(up+victim, "bad")},
		"dot dot inside":     {dir("a"), file("a/../../x", "bad")},
		"absolute":           {file(victim, "bad")},
		"through link":       {link("a", outside), file("a/victim", "bad"), file("a/new", "bad")},
		"through two links":  {link("a", outside), link("b", "a"), file("b/new", "bad")},
		"through relative":   {link("a", up+outside), file("a/new", "bad")},
		"over link":          {link("a", victim), file("a", "bad")},
		"directory on link":  {link("a", outside), dir("a"), file("a/new", "bad")},
		"hard link out":      {tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: up + victim}, file("a", "bad")},
		"hard link absolute": {tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: victim}},
		"hard link by link":  {link("l", outside), tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: "l/victim"}},
		"mode by link":       {link("a", victim), tar.Header{Typeflag: tar.TypeDir, Name: "a", Mode: 0o777}},
		"root is a link":     {link(".", outside)},
		"no files":           {},
	}
	for name, entries := range tests {
		templates, made, err := importBody(t, tarOf(t, entries...), Limits{})
		after, _ := os.Lstat(victim)
		text, _ := os.ReadFile(victim)
		if string(text) != "safe" || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
			t.Fatalf("%s changed a file outside", name)
		}
		if names, _ := os.ReadDir(outside); len(names) != 1 {
			t.Fatalf("%s made files outside", name)
		}
		if err == nil {
			t.Logf("%s: taken, as %s", name, made.Digest)
			continue
		}
		if left, _ := os.ReadDir(filepath.Join(templates.dir, ".digest")); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
	if _, _, err := importBody(t, []byte("this is no archive at all"), Limits{}); err == nil || !strings.Contains(err.Error(), "no tar archive") {
		t.Errorf("text: %v", err)
	}
}

func TestTemplateNames(t *testing.T) {
	templates, made, err := importBody(t, tarOf(t, dir("etc")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := templates.Lookup("y"); !errors.Is(err, ErrNoTemplate) || !strings.Contains(err.Error(), "there are x") {
		t.Errorf("unknown: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", ".digest", "-x", "a b", strings.Repeat("a", 200)} {
		if _, err := templates.Import(t.Context(), bad, made.Source, ImportOptions{}); err == nil {
			t.Errorf("name %q is accepted", bad)
		}
	}
	if again, err := templates.Import(t.Context(), "y", made.Source, ImportOptions{}); err != nil || again.Digest != made.Digest {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	layers := filepath.Join(templates.private, formatUUID(testUUID))
	if _, err := templates.pin(t.Context(), "x", layers); err != nil {
		t.Fatal(err)
	}
	if err := templates.Remove("y"); err != nil {
		t.Errorf("one of two names: %v", err)
	}
	if err := templates.Remove("x"); err == nil || !strings.Contains(err.Error(), formatUUID(testUUID)) {
		t.Errorf("in use: %v", err)
	}
	os.RemoveAll(layers)
	if err := templates.Remove("x"); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(templates.dir, ".digest")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// A layer stays on the generation it was made from.
func TestPinKeepsGeneration(t *testing.T) {
	templates, old, err := importBody(t, tarOf(t, dir("etc")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	layers := filepath.Join(templates.private, formatUUID(testUUID))
	if got, err := templates.pin(t.Context(), "x", layers); err != nil || got.Digest != old.Digest {
		t.Fatalf("%+v, %v", got, err)
	}
	os.WriteFile(old.Source, tarOf(t, dir("etc"), file("etc/new", "")), 0o644)
	fresh, err := templates.Import(t.Context(), "x", old.Source, ImportOptions{})
	if err != nil || fresh.Digest == old.Digest {
		t.Fatalf("%+v, %v", fresh, err)
	}
	if got, err := templates.pin(t.Context(), "x", layers); err != nil || got.Digest != old.Digest {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestImportCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	data := t.TempDir()
	os.WriteFile(data+"/x.tar", tarOf(t, dir("etc")), 0o644)
	templates := OpenTemplates(data)
	if _, err := templates.Import(ctx, "x", data+"/x.tar", ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(data, "template/.digest")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
