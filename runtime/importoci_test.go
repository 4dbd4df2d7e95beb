package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// layout is an OCI image layout that is being made.
type layout struct {
	t   *testing.T
	dir string
}

func newLayout(t *testing.T) layout {
	dir := t.TempDir()
	os.MkdirAll(dir+"/blobs/sha256", 0o755)
	l := layout{t, dir}
	l.write("oci-layout", v1.ImageLayout{Version: v1.ImageLayoutVersion})
	return l
}

func (l layout) write(name string, document any) {
	body, err := json.Marshal(document)
	if err == nil {
		err = os.WriteFile(filepath.Join(l.dir, name), body, 0o644)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l layout) blob(body []byte) v1.Descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(body))
	if err := os.WriteFile(l.dir+"/blobs/sha256/"+sum, body, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return v1.Descriptor{Digest: digest.Digest("sha256:" + sum), Size: int64(len(body))}
}

func (l layout) document(v any) v1.Descriptor {
	body, _ := json.Marshal(v)
	return l.blob(body)
}

// image makes an image of layers, compressed every other one.
func (l layout) image(layers ...[]byte) v1.Descriptor {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: l.document(v1.Image{})}
	for n, body := range layers {
		if n%2 == 1 {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			w.Write(body)
			w.Close()
			body = out.Bytes()
		}
		m.Layers = append(m.Layers, l.blob(body))
	}
	return l.document(m)
}

// forged puts another manifest, of at least so many bytes, under the digest of
// an image.
func (l layout) forged(layer []byte, size int) v1.Descriptor {
	genuine := l.image(layer)
	body, err := os.ReadFile(l.blobName(l.image(layer, tarOf(l.t, file("evil", "")))))
	if err == nil {
		body = append(body, bytes.Repeat([]byte(" "), max(0, size-len(body)))...)
		err = os.WriteFile(l.blobName(genuine), body, 0o644)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	genuine.Size = int64(len(body))
	return genuine
}

func (l layout) blobName(d v1.Descriptor) string {
	return filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded())
}

func (l layout) index(images ...v1.Descriptor) {
	l.write("index.json", v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: images})
}

// contents lists a tree, "name" or "name=text".
func contents(t *testing.T, root string) string {
	t.Helper()
	var list []string
	filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(root, name)
		if d.Type().IsRegular() {
			text, _ := os.ReadFile(name)
			rel += "=" + string(text)
		}
		list = append(list, rel)
		return nil
	})
	slices.Sort(list)
	return strings.Join(list[1:], " ")
}

func TestImportOCI(t *testing.T) {
	l := newLayout(t)
	image := l.image(
		tarOf(t, dir("etc"), file("etc/keep", "1"), file("etc/gone", "1"), dir("opt"), file("opt/old", "1"), dir("opt/sub"), file("opt/sub/old", "1"),
			dir("was-dir"), file("was-dir/x", "1"), file("was-file", "1"), link("was-link", "/etc"), dir("usr"), link("lib", "usr")),
		tarOf(t, file("etc/.wh.gone", ""), file("etc/keep", "2"), file("opt/sub/new", "2"), file("opt/.wh..wh..opq", ""), file("opt/new", "2"),
			file("was-dir", "2"), dir("was-file"), dir("was-link"), file("was-link/in", "2"), file("lib/so", "2"), file(".wh.none", "")),
		tarOf(t, file("opt/.wh.sub", "")),
	)
	l.index(image)
	templates := OpenTemplates(t.TempDir())
	made, err := templates.Import(t.Context(), "x", "oci:"+l.dir, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const want = "etc etc/keep=2 lib opt opt/new=2 usr usr/so=2 was-dir=2 was-file was-link was-link/in=2"
	if got := contents(t, made.Path); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if made.Digest != "sha256-"+image.Digest.Encoded() {
		t.Errorf("digest %s of the image %s", made.Digest, image.Digest)
	}
}

// Images that were made on AUFS have its own files, into which what has several
// names may be linked.
func TestImportOCIFromAUFS(t *testing.T) {
	hardLink := func(name, to string) tar.Header { return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to} }
	l := newLayout(t)
	l.index(l.image(
		tarOf(t, file(".wh..wh.aufs", ""), dir(".wh..wh.orph"), file(".wh..wh.orph/x", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/7.1", "1"),
			hardLink("a", ".wh..wh.plnk/7.1"), hardLink("b", "./.wh..wh.plnk/7.1")),
		tarOf(t, dir("./.wh..wh.orph"), file("./.wh..wh.plnk/7.1", "2"), hardLink("b", ".wh..wh.plnk/7.1"), dir("d"), file("d/.wh..wh..opq", "")),
		tarOf(t, file(".wh..wh.plnk/7.2", "3"), hardLink("c", ".wh..wh.plnk/7.2")),
	))
	made, err := OpenTemplates(t.TempDir()).Import(t.Context(), "x", "oci:"+l.dir, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := contents(t, made.Path), "a=1 b=2 c=3 d"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestImportOCIChoice(t *testing.T) {
	l := newLayout(t)
	tagged := func(d v1.Descriptor, tag string) v1.Descriptor {
		d.Annotations = map[string]string{v1.AnnotationRefName: tag}
		return d
	}
	for_ := func(d v1.Descriptor, arch string) v1.Descriptor {
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
		return d
	}
	one, two := l.image(tarOf(t, file("x", "1"))), l.image(tarOf(t, file("x", "2")))
	both := l.document(v1.Index{Manifests: []v1.Descriptor{for_(one, "none"), for_(two, goruntime.GOARCH)}})
	l.index(tagged(one, "a"), tagged(both, "b"), tagged(l.document(v1.Index{Manifests: []v1.Descriptor{for_(one, "none")}}), "c"))
	for source, want := range map[string]string{
		":a": "x=1", ":b": "x=2",
		":c": "not for linux/", ":d": `no image "d"; there are a, b, c`, "": "name one as oci:DIR:TAG; there are a, b, c",
	} {
		made, err := OpenTemplates(t.TempDir()).Import(t.Context(), "x", "oci:"+l.dir+source, ImportOptions{})
		got := ""
		if err == nil {
			got = contents(t, made.Path)
		} else {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", source, got, want)
		}
	}
}

// Layers can take away and replace, and never outside the root.
func TestImportOCIHostile(t *testing.T) {
	outside := t.TempDir()
	victim := outside + "/victim"
	os.WriteFile(victim, []byte("safe"), 0o600)
	up := strings.Repeat("../", 20)
	tests := map[string][]tar.Header{
		"whiteout of dot dot":       {file("a/.wh...", "")},
		"whiteout of dot":           {file("a/.wh..", "")},
		"whiteout of nothing":       {file("a/.wh.", "")},
		"whiteout of a whiteout":    {file("a/.wh..wh.x", "")},
		"whiteout upwards":          {file(up+outside+"/.wh.victim", "")},
		"whiteout through a link":   {file("out/.wh.victim", "")},
		"whiteout by two links":     {link("b", "out"), file("b/.wh.victim", "")},
		"opaque through a link":     {file("out/.wh..wh..opq", "")},
		"opaque root":               {file(".wh..wh..opq", "")},
		"directory over a link":     {dir("out"), file("out/new", "bad")},
		"file over a link":          {file("out", "x"), file("out/victim", "bad")},
		"link in place of its home": {dir("d"), link("d", outside), file("d/new", "bad")},
		"hard link by a link":       {tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "out/victim"}},
	}
	for name, entries := range tests {
		l := newLayout(t)
		l.index(l.image(tarOf(t, dir("a"), link("out", outside)), tarOf(t, entries...)))
		templates := OpenTemplates(t.TempDir())
		_, err := templates.Import(t.Context(), "x", "oci:"+l.dir, ImportOptions{})
		if got := contents(t, outside); got != "victim=safe" {
			t.Fatalf("%s: outside is %s", name, got)
		}
		if err == nil {
			continue
		}
		if left, _ := os.ReadDir(templates.digestDir("")); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

func TestImportOCIDamaged(t *testing.T) {
	layer := tarOf(t, file("x", "1"))
	tests := map[string]struct {
		damage func(l layout)
		want   string
	}{
		"no layout":     {func(l layout) { os.Remove(l.dir + "/oci-layout") }, "is no OCI image layout"},
		"other version": {func(l layout) { l.write("oci-layout", v1.ImageLayout{Version: "9"}) }, "only 1.0.0 is known"},
		"no image":      {func(l layout) { l.index() }, "has no image"},
		"other content": {func(l layout) {
			other := bytes.Clone(layer)
			other[bytes.LastIndexByte(other, '1')] = '2'
			os.WriteFile(l.dir+"/blobs/sha256/"+fmt.Sprintf("%x", sha256.Sum256(layer)), other, 0o644)
		}, "has another digest"},
		"other size": {func(l layout) {
			os.WriteFile(l.dir+"/blobs/sha256/"+fmt.Sprintf("%x", sha256.Sum256(layer)), append(layer, 0), 0o644)
		}, "has not the size"},
		"digest is a path": {func(l layout) {
			l.index(v1.Descriptor{Digest: "sha256:../../../etc/passwd", Size: 1})
		}, "is not understood"},
		"other algorithm": {func(l layout) {
			l.index(v1.Descriptor{Digest: digest.Digest("sha512:" + strings.Repeat("a", 128)), Size: 1})
		}, "sha256 is known"},
		"other manifest": {func(l layout) { l.index(l.forged(layer, 0)) }, "has another digest"},
		// Read up to the bound, its end and so its digest would not be seen.
		"other manifest, as long as may be":  {func(l layout) { l.index(l.forged(layer, maxOCIDocument)) }, "has another digest"},
		"other manifest, longer than may be": {func(l layout) { l.index(l.forged(layer, maxOCIDocument+1)) }, "at most 4 MiB"},
		"no layers":                          {func(l layout) { l.index(l.image()) }, "has 0 layers"},
		"nested": {func(l layout) {
			d := l.image(layer)
			for range 10 {
				d = l.document(v1.Index{Manifests: []v1.Descriptor{d}})
			}
			l.index(d)
		}, "nested too deep"},
	}
	for name, test := range tests {
		l := newLayout(t)
		l.index(l.image(layer))
		test.damage(l)
		templates := OpenTemplates(t.TempDir())
		_, err := templates.Import(t.Context(), "x", "oci:"+l.dir, ImportOptions{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
		if left, _ := os.ReadDir(templates.digestDir("")); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
}

// Who opens a FIFO waits for somebody who writes it, and nothing ends that.
func TestImportFIFO(t *testing.T) {
	layer := tarOf(t, file("x", "1"))
	for _, name := range []string{"tar", "oci-layout", "index.json", "manifest", "layer"} {
		l := newLayout(t)
		image := l.image(layer)
		l.index(image)
		source, fifo := "oci:"+l.dir, filepath.Join(l.dir, name)
		switch name {
		case "tar":
			source = fifo
		case "manifest":
			fifo = l.blobName(image)
		case "layer":
			fifo = l.blobName(v1.Descriptor{Digest: digest.FromBytes(layer)})
		}
		os.Remove(fifo)
		if err := unix.Mkfifo(fifo, 0o644); err != nil {
			t.Fatal(err)
		}
		templates, done := OpenTemplates(t.TempDir()), make(chan error, 1)
		go func() {
			_, err := templates.Import(t.Context(), "x", source, ImportOptions{})
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "regular file") {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the import waits for a writer", name)
			if f, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil { // which lets it end
				f.Close()
				<-done
			}
		}
	}
}
