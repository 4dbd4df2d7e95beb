package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// written is what lies on the disk below dir, in bytes.
func written(t *testing.T, dir string) (n int64) {
	filepath.WalkDir(dir, func(name string, _ os.DirEntry, _ error) error {
		var st unix.Stat_t
		if unix.Lstat(name, &st) == nil {
			n += st.Blocks * 512
		}
		return nil
	})
	return n
}

// watched imports body and returns how much of the disk it ever took.
func watched(t *testing.T, body []byte, limits Limits) (most int64, err error) {
	t.Helper()
	templates := OpenTemplates(t.TempDir())
	name := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(name, body, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = templates.Import(t.Context(), "x", name, ImportOptions{Limits: limits, Progress: func(int64, int64) {
		most = max(most, written(t, templates.dir))
	}})
	if left, _ := os.ReadDir(templates.digestDir("")); err != nil && len(left) > 0 {
		t.Errorf("left %v", left)
	}
	return most, err
}

// endless is a compressed stream that unpacks to much more.
func endless(t *testing.T, compress func(io.Writer) (io.WriteCloser, error), head []byte, zeros int64) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := compress(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(head)
	io.CopyN(w, zeroReader{}, zeros)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func byGzip(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriterLevel(w, gzip.BestSpeed) }
func byXZ(w io.Writer) (io.WriteCloser, error)   { return xz.NewWriter(w) }
func byZstd(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// header is the header of a file without its content.
func header(t *testing.T, h tar.Header) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImportBombs(t *testing.T) {
	limits := Limits{Bytes: 2 << 20, Files: 1000}
	var many, small, directories, links, attributes []tar.Header
	for n := range 1001 {
		many = append(many, file(fmt.Sprintf("%d", n), ""))
	}
	for n := range 900 {
		small = append(small, file(fmt.Sprintf("%d", n), strings.Repeat("x", 2500+n)))
	}
	for n := range 10 {
		directories = append(directories, file(fmt.Sprintf("%d/%sx", n, strings.Repeat("d/", 200)), ""))
	}
	for n := range 3000 {
		links = append(links, link(fmt.Sprintf("%d", n), strings.Repeat("x", 4000)))
	}
	for n := range 900 {
		attributes = append(attributes, tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d", n), PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 3000)}})
	}
	zeros := header(t, tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: 16 << 20, Mode: 0o644})
	tests := map[string][]byte{
		"gzip":          endless(t, byGzip, zeros, 16<<20),
		"xz":            endless(t, byXZ, zeros, 16<<20),
		"zstd":          endless(t, byZstd, zeros, 16<<20),
		"after the end": endless(t, byGzip, tarOf(t, file("x", "")), 16<<20),
		"what is skipped": endless(t, byGzip, header(t, tar.Header{
			Typeflag: tar.TypeCont, Name: "x", Size: 16 << 20, Format: tar.FormatUSTAR}), 16<<20),
		"many files":       tarOf(t, many...),
		"many directories": tarOf(t, directories...),
		"many links":       tarOf(t, links...),
		"attributes":       tarOf(t, attributes...),
		"small files":      tarOf(t, small...),
		"the same again":   tarOf(t, append(many[:500:500], many[:501]...)...),
	}
	for name, body := range tests {
		begin := time.Now()
		most, err := watched(t, body, limits)
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if most > limits.Bytes+limits.Bytes/4 {
			t.Errorf("%s: took %d KiB of the disk, %d are allowed", name, most>>10, limits.Bytes>>10)
		}
		t.Logf("%s: %d KiB, %v: %v", name, most>>10, time.Since(begin).Round(time.Millisecond), err)
	}
}

// Layers that are each within the limit are not together, also where the next
// replaces what the last has brought.
func TestImportOCIBomb(t *testing.T) {
	megabyte := strings.Repeat("x", 1<<20)
	for name, names := range map[string][]string{"other files": {"a", "b", "c"}, "the same file": {"a", "a", "a"}} {
		l := newLayout(t)
		var layers [][]byte
		for _, name := range names {
			layers = append(layers, tarOf(t, file(name, megabyte)))
		}
		l.index(l.image(layers...))
		templates := OpenTemplates(t.TempDir())
		_, err := templates.Import(t.Context(), "x", "oci:"+l.dir, ImportOptions{Limits: Limits{Bytes: 5 << 19, Files: 1000}})
		if !errors.Is(err, ErrTooLarge) || !strings.HasPrefix(err.Error(), "import oci:"+l.dir+": layer 3 of 3: ") {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(templates.digestDir("")); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

// xzDictionary is the code of a dictionary's size in the header of a block of
// 12 bytes.
func xzDictionary(t *testing.T, header []byte, code byte) {
	if !bytes.HasPrefix(header, []byte{2, 0, 0x21, 1}) {
		t.Fatalf("% x is no header of a block", header[:12])
	}
	header[4] = code
	binary.LittleEndian.PutUint32(header[8:], crc32.ChecksumIEEE(header[:8]))
}

// TestImportXZMemory: what a block asks for as its dictionary is bounded, of
// whichever block, and is not made anew for each.
func TestImportXZMemory(t *testing.T) {
	const (
		largest  = 30 // 128 MiB
		larger   = 31
		enormous = 40 // 4 GiB
	)
	plain := tarOf(t, file("x", strings.Repeat("0123456789", 1000)))
	var out bytes.Buffer
	w, err := xz.WriterConfig{BlockSize: 100, DictCap: 1 << 20}.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(plain)
	w.Close()
	var blocks []int // where their headers are
	header := out.Bytes()[12:20]
	for at := 0; ; {
		n := bytes.Index(out.Bytes()[at:], header)
		if n < 0 {
			break
		}
		blocks, at = append(blocks, at+n), at+n+1
	}
	if len(blocks) != (len(plain)+99)/100 {
		t.Fatalf("%d blocks", len(blocks))
	}
	for name, test := range map[string]struct {
		code   byte
		blocks []int
		want   string
	}{
		"all as large as may be": {largest, blocks, ""},
		"the first larger":       {larger, blocks[:1], "128 MiB"},
		"the first enormous":     {enormous, blocks[:1], "128 MiB"},
		"the last enormous":      {enormous, blocks[len(blocks)-1:], "128 MiB"},
	} {
		body := bytes.Clone(out.Bytes())
		for _, at := range test.blocks {
			xzDictionary(t, body[at:], test.code)
		}
		var before, after goruntime.MemStats
		goruntime.ReadMemStats(&before)
		_, err := watched(t, body, DefaultLimits)
		goruntime.ReadMemStats(&after)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if made := (after.TotalAlloc - before.TotalAlloc) >> 20; made > 160 {
			t.Errorf("%s: %d MiB of memory", name, made)
		}
	}
}

func testUnpacker(t *testing.T, limits Limits) *unpacker {
	t.Helper()
	u, err := newUnpacker(filepath.Join(t.TempDir(), "rootfs"), limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.close)
	return u
}

// TestImportNames: what is kept of names until the end is bounded, and is not
// more when the same comes again.
func TestImportNames(t *testing.T) {
	deep := strings.Repeat("abcdefghijklmno/", 200)
	var same, directories, short []tar.Header
	for n := range 1000 {
		same = append(same, dir(deep))
		short = append(short, dir(fmt.Sprint(n)+strings.Repeat("/", 3000)))
		directories = append(directories, dir(deep+fmt.Sprint(n)))
	}
	heap := func() int64 {
		var m goruntime.MemStats
		goruntime.GC()
		goruntime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for name, entries := range map[string][]tar.Header{"the same": same, "short": short} {
		u, body := testUnpacker(t, DefaultLimits), bytes.NewReader(tarOf(t, entries...))
		before := heap()
		if err := u.unpack(tar.NewReader(body)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if held := heap() - before; held > 1<<20 {
			t.Errorf("%s: %d KiB are held", name, held>>10)
		}
		goruntime.KeepAlive(u)
		goruntime.KeepAlive(body)
	}
	for name, layer := range map[string]map[string]bool{"directories": nil, "a layer": {}} {
		u := testUnpacker(t, DefaultLimits)
		u.layer, u.used.names = layer, maxNames-1<<20
		if err := u.unpack(tar.NewReader(bytes.NewReader(tarOf(t, directories...)))); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "names") {
			t.Errorf("%s: %v", name, err)
		}
	}
	u := testUnpacker(t, DefaultLimits)
	if err := u.unpack(tar.NewReader(bytes.NewReader(tarOf(t, same[:1]...)))); err != nil {
		t.Error(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := u.finish(ended, &Generation{}); !errors.Is(err, context.Canceled) {
		t.Errorf("times are set although the import has ended: %v", err)
	}
}

// TestImportDirectoryNames: nor are more names read of a directory than there
// may be files, or more kept of those that have several.
func TestImportDirectoryNames(t *testing.T) {
	from := t.TempDir()
	for n := range 40 {
		name := filepath.Join(from, fmt.Sprint(n, strings.Repeat("x", 200)))
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Link(name, name+"2")); err != nil {
			t.Fatal(err)
		}
	}
	walk := func(u *unpacker) error {
		fd, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		w := &walker{ctx: t.Context(), to: u, digest: sha256.New(), links: map[inode]string{}, progress: func(int64, int64) {}}
		return w.walk(fd, "")
	}
	u := testUnpacker(t, Limits{Bytes: 1 << 20, Files: 50})
	if err := walk(u); !errors.Is(err, ErrTooLarge) || u.have > 1 {
		t.Errorf("80 files, 50 are allowed: %v, after %d", err, u.have)
	}
	u = testUnpacker(t, Limits{Bytes: 1 << 20, Files: 81})
	if err := walk(u); err != nil {
		t.Errorf("as many as are allowed: %v", err)
	}
	u = testUnpacker(t, DefaultLimits)
	u.used.names = maxNames - 4096
	if err := walk(u); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "names") {
		t.Errorf("names of links: %v", err)
	}
}

// TestImportReplaced: an entry that replaces another has its mode, while others
// open and close files as they do in a daemon.
func TestImportReplaced(t *testing.T) {
	var entries []tar.Header
	for n := range 5000 {
		entries = append(entries, file("d/f", ""))
		entries[n].Mode = 0o600 + int64(n%2)*0o44
	}
	other, stop := t.TempDir(), make(chan bool)
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if fd, err := unix.Open(other, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
						unix.Close(fd)
					}
				}
			}
		})
	}
	_, err := watched(t, tarOf(t, entries...), DefaultLimits)
	close(stop)
	others.Wait()
	if err != nil {
		t.Error(err)
	}
}

// A name can be short and lead deep all the same.
func TestImportDeep(t *testing.T) {
	deep := strings.Repeat("d/", 250)
	for name, entries := range map[string][]tar.Header{
		"plain":   {file(strings.Repeat("d/", 300)+"x", "")},
		"by link": {file(deep+"x", ""), link("l", deep), file("l/e/e/e/e/e/e/e/e/e/x", "")},
	} {
		if _, err := watched(t, tarOf(t, entries...), DefaultLimits); err == nil || !strings.Contains(err.Error(), "nested deeper") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "4K": 4 << 10, "4 MiB": 4 << 20, "4GB": 4 << 30, "1T": 1 << 40,
		"": 0, "0": 0, "-1": 0, "4X": 0, "G": 0, "9223372036854775807K": 0, "1.5G": 0} {
		if got, err := ParseSize(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}
