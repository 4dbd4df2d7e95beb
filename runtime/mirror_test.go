package runtime

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mirrorPair are both sides in one process.
type mirrorPair struct {
	t        *testing.T
	from, to string
	source   *mirrorSource
	target   *mirrorTarget
}

// Where files are on a disk, and where they are in memory.
const onDisk, inMemory = "/var/tmp", "/dev/shm"

// newMirrorPair makes both trees in a directory below where.
func newMirrorPair(t *testing.T, where string) *mirrorPair {
	t.Helper()
	needRoot(t, "only root can give files away, and make nodes")
	dir, err := os.MkdirTemp(where, "mirror-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &mirrorPair{t: t, from: filepath.Join(dir, "from"), to: filepath.Join(dir, "to")}
	for _, tree := range []string{p.from, p.to} {
		if err := os.Mkdir(tree, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if p.source, err = newMirrorSource(p.from); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.source.close)
	if p.target, err = newMirrorTarget(p.to); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.target.close)
	return p
}

func (p *mirrorPair) pass(still bool) PassStats {
	p.t.Helper()
	r, w := io.Pipe()
	received := make(chan error, 1)
	go func() {
		err := p.target.pass(p.t.Context(), r)
		r.CloseWithError(err)
		received <- err
	}()
	stats, err := p.source.pass(p.t.Context(), w, still, nil)
	w.CloseWithError(err)
	if err := errors.Join(err, <-received); err != nil {
		p.t.Fatal(err)
	}
	return stats
}

func (p *mirrorPair) same() {
	p.t.Helper()
	want, got := strings.Split(treeText(p.t, p.from), "\n"), strings.Split(treeText(p.t, p.to), "\n")
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			p.t.Fatalf("the tree has\n%s\nand the copy\n%s", want[min(i, len(want)-1)], got[min(i, len(got)-1)])
		}
	}
}

// treeText tells all of a tree that a copy must have.
func treeText(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	names := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%q %o %d:%d %x %d", rel, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Nano())
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %x", st.Size, sha256.Sum256(body))
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			fmt.Fprintf(&b, " -> %q", target)
		}
		if first := names[st.Ino]; first != "" && !d.IsDir() {
			fmt.Fprintf(&b, " = %q", first)
		}
		names[st.Ino] = rel
		have, err := attributes(path)
		if err != nil {
			return err
		}
		slices.Sort(have)
		for _, name := range have {
			value := make([]byte, 1024)
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return err
			}
			if !localAttribute(name) && (rel != "." || ownAttribute(name)) {
				fmt.Fprintf(&b, " %s=%q", name, value[:n])
			}
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestMirror changes a tree at random, again and again.
func TestMirror(t *testing.T) {
	p := newMirrorPair(t, onDisk)
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	w := &treeWriter{t: t, dir: p.from, rand: r}
	for round := range 40 {
		for range r.IntN(30) {
			w.change()
		}
		p.pass(round%3 == 2)
		p.same()
	}
}

// treeWriter makes, changes, moves and removes whatever a tree may have.
type treeWriter struct {
	t    *testing.T
	dir  string
	rand *rand.Rand
	made int
}

func (w *treeWriter) any(want func(fs.FileInfo) bool) string {
	var found []string
	filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if info, e := os.Lstat(path); e == nil && want(info) {
			found = append(found, path)
		}
		return nil
	})
	if len(found) == 0 {
		return ""
	}
	return found[w.rand.IntN(len(found))]
}

func (w *treeWriter) change() {
	isDir := func(i fs.FileInfo) bool { return i.IsDir() }
	isFile := func(i fs.FileInfo) bool { return i.Mode().IsRegular() }
	notTop := func(i fs.FileInfo) bool { return i.Name() != filepath.Base(w.dir) }
	w.made++
	fresh := filepath.Join(w.any(isDir), fmt.Sprintf("n%d\xff", w.made%50))
	data := make([]byte, w.rand.IntN(4000))
	for i := range data {
		data[i] = byte(w.rand.Uint32())
	}
	switch w.rand.IntN(14) {
	case 0, 1:
		os.Remove(fresh) // it might be a fifo
		os.WriteFile(fresh, data, fs.FileMode(w.rand.IntN(0o1000)))
	case 2:
		os.Mkdir(fresh, 0o755)
	case 3:
		os.Symlink("../../../etc/passwd", fresh)
	case 4:
		if file := w.any(isFile); file != "" {
			os.Link(file, fresh)
		}
	case 5:
		unix.Mknod(fresh, []uint32{unix.S_IFCHR, unix.S_IFIFO | 0o600, unix.S_IFSOCK | 0o777}[w.rand.IntN(3)], 0)
	case 6:
		if file := w.any(isFile); file != "" {
			if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
				f.WriteAt(data, int64(w.rand.IntN(3<<20)))
				f.Close()
			}
		}
	case 7:
		if file := w.any(isFile); file != "" {
			os.Truncate(file, int64(w.rand.IntN(2<<20)))
		}
	case 8:
		if file := w.any(isFile); file != "" {
			if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
				unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(w.rand.IntN(1<<20)), 1<<20)
				f.Close()
			}
		}
	case 9:
		os.RemoveAll(w.any(notTop))
	case 10:
		os.Rename(w.any(notTop), fresh)
	case 11:
		os.Lchown(w.any(notTop), w.rand.IntN(5), w.rand.IntN(5))
	case 12:
		what := w.any(notTop)
		name := []string{"user.one", "trusted.overlay.opaque", "trusted.overlay.origin", "security.capability"}[w.rand.IntN(4)]
		value := []byte("y")
		if name == "security.capability" {
			value = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		}
		if unix.Lsetxattr(what, name, value, 0) != nil || w.rand.IntN(2) == 0 {
			unix.Lremovexattr(what, name)
		}
	case 13:
		os.Chtimes(w.any(notTop), time.Unix(1, 2), time.Unix(3, 4))
	}
}

// TestMirrorSends: what has not changed is not sent again, and of a large file
// what has.
func TestMirrorSends(t *testing.T) {
	p := newMirrorPair(t, onDisk)
	large := filepath.Join(p.from, "large")
	body := make([]byte, 8<<20)
	for i := range body {
		body[i] = byte(i >> 12)
	}
	os.WriteFile(large, body, 0o600)
	os.WriteFile(filepath.Join(p.from, "small"), []byte("text"), 0o600)
	time.Sleep(2 * clockTick)
	p.pass(false)
	if s := p.pass(false); s != (PassStats{}) {
		t.Errorf("nothing has changed, and sent was %+v", s)
	}
	f, err := os.OpenFile(large, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteAt([]byte("new"), 5<<20)
	if s := p.pass(true); s.Bytes != mirrorBlock {
		t.Errorf("%d bytes are sent of a file with three new ones", s.Bytes)
	}
	p.same()
}

// TestMirrorTimes: who sets the times of a file back hides nothing, nor who
// writes to a mapping.
func TestMirrorTimes(t *testing.T) {
	for _, where := range []string{onDisk, inMemory} {
		t.Run(filepath.Base(where), func(t *testing.T) { testMirrorTimes(t, newMirrorPair(t, where)) })
	}
}

func testMirrorTimes(t *testing.T, p *mirrorPair) {
	name := filepath.Join(p.from, "file")
	os.WriteFile(name, bytes.Repeat([]byte("a"), 8192), 0o600)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Stat_t
	syscall.Stat(name, &st)
	mapped, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	for round := range 5 {
		mapped[round] = 'm' // the page is dirty, and will be written to without a fault unless the pass saw to it
		p.pass(false)
		time.Sleep(2 * clockTick)
		p.pass(false) // nothing new
		mapped[100+round] = 'n'
		p.pass(true)
		p.same()
		f.WriteAt([]byte{'w'}, int64(200+round))
		os.Chtimes(name, time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()))
		p.pass(true)
		p.same()
	}
}

// mirrorRecord is one record as the other side could send it: bytes as they are,
// and anything else as JSON.
func mirrorRecord(kind byte, v any) []byte {
	var b bytes.Buffer
	body, raw := v.([]byte)
	if !raw {
		body, _ = json.Marshal(v)
	}
	writeRecord(&b, kind, body)
	return b.Bytes()
}

// hostile makes a copy that send has take what a hostile source sends, and checks
// that nothing beside it is touched. outside is where such a source would like to
// be.
func hostile(t *testing.T, send func(m *mirrorTarget, outside string)) {
	t.Helper()
	needRoot(t, "needs root, as the daemon is")
	dir := t.TempDir()
	outside, copied := filepath.Join(dir, "outside"), filepath.Join(dir, "copy")
	for _, made := range []string{outside, copied} {
		if err := os.Mkdir(made, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "kept"), []byte("kept"), 0o640); err != nil {
		t.Fatal(err)
	}
	m, err := newMirrorTarget(copied)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	before := treeText(t, outside)
	send(m, outside)
	if after := treeText(t, outside); after != before {
		t.Errorf("outside there is now\n%sand was\n%s", after, before)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("beside the copy there is %v", left)
	}
}

// TestMirrorHostile: what the other side says cannot lead out of the copy.
func TestMirrorHostile(t *testing.T) {
	var outside string
	entry := func(name string, mode uint32) *mirrorEntry { return &mirrorEntry{Path: []byte(name), Mode: mode} }
	file := func(name string) []byte {
		return mirrorRecord(recordFile, &mirrorEntry{Path: []byte(name), Mode: unix.S_IFREG | 0o600, Size: 4})
	}
	link := func(name, target string) []byte {
		return mirrorRecord(recordNode, &mirrorEntry{Path: []byte(name), Mode: unix.S_IFLNK | 0o777, Target: []byte(target)})
	}
	remove := func(name string) []byte { return mirrorRecord(recordRemove, []byte(name)) }
	done := mirrorRecord(recordDone, []byte{})
	type records = [][]byte
	for name, send := range map[string]func() records{
		"up":               func() records { return records{file("../evil")} },
		"absolute":         func() records { return records{file(filepath.Join(outside, "evil"))} },
		"dots":             func() records { return records{file("a/../../evil")} },
		"a long part":      func() records { return records{file(strings.Repeat("a", 5000) + "/b")} },
		"zero":             func() records { return records{file("a\x00b")} },
		"through a link":   func() records { return records{link("out", outside), file("out/evil")} },
		"remove by a link": func() records { return records{link("out", outside), remove("out/kept")} },
		"link outside": func() records {
			return records{link("out", outside), mirrorRecord(recordNode, &mirrorEntry{Path: []byte("x"), Mode: unix.S_IFREG, Same: []byte("out/kept")})}
		},
		"change by a link": func() records {
			return records{link("out", outside+"/kept"), mirrorRecord(recordFile, &mirrorEntry{Path: []byte("out"), Mode: unix.S_IFREG, Changed: true}), done}
		},
		"mode by a link": func() records {
			return records{link("out", outside), mirrorRecord(recordAttributes, entry("out", unix.S_IFDIR|0o777))}
		},
		"a link in a file's place": func() records {
			return records{file("a"), remove("a"), link("a", outside+"/kept"), done}
		},
		"a file in a file": func() records { return records{file("a"), file("b")} },
		"a directory's place": func() records {
			return records{file("a"), done, mirrorRecord(recordAttributes, entry("a", unix.S_IFDIR|0o777))}
		},
		"the tree":          func() records { return records{remove("")} },
		"top is a file":     func() records { return records{file("")} },
		"top is a node":     func() records { return records{link("", outside)} },
		"data of nothing":   func() records { return records{mirrorRecord(recordData, make([]byte, 16))} },
		"done with nothing": func() records { return records{done} },
		"negative": func() records {
			return records{file("a"), mirrorRecord(recordData, slices.Concat(offset(-1), []byte("x")))}
		},
		"behind the end": func() records {
			return records{file("a"), mirrorRecord(recordData, slices.Concat(offset(5), []byte("x")))}
		},
		"endless hole": func() records {
			return records{file("a"), mirrorRecord(recordHole, slices.Concat(offset(0), offset(1<<40)))}
		},
		"no JSON":    func() records { return records{mirrorRecord(recordFile, []byte("{"))} },
		"kind":       func() records { return records{mirrorRecord('?', entry("a", 0))} },
		"long":       func() records { return records{{recordData, 0xff, 0xff, 0xff, 0xff}} },
		"cut":        func() records { return records{file("a")[:20]} },
		"unfinished": func() records { return records{file("a"), mirrorRecord(recordEnd, []byte{})} },
		"cut before": func() records { return records{} },
	} {
		t.Run(name, func(t *testing.T) {
			hostile(t, func(m *mirrorTarget, where string) {
				outside = where
				if err := m.pass(t.Context(), bytes.NewReader(bytes.Join(send(), nil))); err == nil || errors.Is(err, io.ErrUnexpectedEOF) != strings.HasPrefix(name, "cut") {
					t.Errorf("it was taken, or something else was wrong: %v", err)
				}
			})
		})
	}
}

// TestMirrorOpensFiles: of what is there only a file is opened, as opening a
// device may do something already.
func TestMirrorOpensFiles(t *testing.T) {
	p := newMirrorPair(t, onDisk)
	fifo := filepath.Join(p.to, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(reader)
	m, err := newMirrorTarget(p.to)
	if err != nil {
		t.Fatal(err)
	}
	records := mirrorRecord(recordFile, &mirrorEntry{Path: []byte("fifo"), Mode: unix.S_IFREG | 0o600, Changed: true})
	if err := m.pass(t.Context(), bytes.NewReader(records)); err == nil || !strings.Contains(err.Error(), "something else is there") {
		t.Errorf("got %v", err)
	}
	m.close()
	poll := []unix.PollFd{{Fd: int32(reader), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err != nil || n != 0 {
		t.Errorf("somebody has opened it: %v %v", poll, err)
	}
}

// FuzzMirror sends what a source never would: any bytes, and records after a
// script in which every four bytes are one, of few names so that they meet each
// other. What is refused is passed over there, to get further.
func FuzzMirror(f *testing.F) {
	r := rand.NewChaCha8([32]byte{})
	for range 10 {
		script := make([]byte, 4*2000)
		r.Read(script)
		f.Add(script, mirrorRecord(recordEnd, []byte{}))
	}
	f.Add([]byte{}, mirrorRecord(recordFile, &mirrorEntry{Path: []byte("a"), Mode: unix.S_IFREG, Size: 4}))
	f.Fuzz(func(t *testing.T, script, raw []byte) {
		hostile(t, func(m *mirrorTarget, outside string) {
			for ; len(script) >= 4; script = script[4:] {
				m.record(scriptRecord(outside, script[0], script[1], script[2], script[3]))
			}
			m.pass(t.Context(), bytes.NewReader(raw))
		})
	})
}

func scriptRecord(outside string, which, at, other, bits byte) (kind byte, body []byte) {
	names := []string{"a", "b", "a/a", "a/kept", "b/a/kept", "kept", "", ".."}
	targets := []string{outside, outside + "/kept", "../outside", "..", "a"}
	modes := []uint32{unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK, unix.S_IFIFO, unix.S_IFSOCK}
	name := names[int(at)%len(names)]
	switch kind = "dafbzcnr"[which%8]; kind {
	case recordData, recordHole:
		return kind, slices.Concat(offset(int64(other%32)), offset(int64(bits%32)))
	case recordRemove:
		return kind, []byte(name)
	case recordDone:
		return kind, nil
	}
	e := &mirrorEntry{
		Path: []byte(name), Mode: modes[int(bits)%len(modes)] | 0o777, Size: 16, UID: 7, Changed: bits&0x40 != 0,
		Target: []byte(targets[int(other)%len(targets)]), Attributes: map[string][]byte{"trusted.fuzz": {bits}},
	}
	if bits&0x80 != 0 {
		e.Same = []byte(names[int(other)%len(names)])
	}
	body, _ = json.Marshal(e)
	return kind, body
}

func readWhole(name string) string {
	body, _ := os.ReadFile(name)
	return string(body)
}

// interrupted is a pass in which do is called once, as soon as the first of what
// is sent leaves.
func (p *mirrorPair) interrupted(do func()) {
	p.t.Helper()
	var b bytes.Buffer
	once := sync.OnceFunc(do)
	_, err := p.source.pass(p.t.Context(), writerFunc(func(data []byte) (int, error) {
		once()
		return b.Write(data)
	}), false, nil)
	if err = errors.Join(err, p.target.pass(p.t.Context(), &b)); err != nil {
		p.t.Fatal(err)
	}
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// TestMirrorMappedMeanwhile: a page that is written to all the time is dirty again
// before it is read, so that what comes after leaves no trace, however long the
// rest of its file takes.
func TestMirrorMappedMeanwhile(t *testing.T) {
	p := newMirrorPair(t, onDisk)
	name := filepath.Join(p.from, "file")
	os.WriteFile(name, make([]byte, 600<<10), 0o600)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := uint64(1); ; n++ {
			binary.NativeEndian.PutUint64(mapped, n)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	p.interrupted(func() {
		time.Sleep(2 * clockTick)
		close(stop)
		<-stopped
	})
	p.pass(true)
	p.same()
}

// TestMirrorWholeSeconds: where times of change are in whole seconds, a second that
// has not ended hides another change.
func TestMirrorWholeSeconds(t *testing.T) {
	now := time.Unix(1000, 950e6)
	for changed, want := range map[unix.Timespec]bool{
		{Sec: 1000}: true, {Sec: 999, Nsec: 0}: false, {Sec: 1000, Nsec: 1}: false, {Sec: 1000, Nsec: 900e6}: true, {Sec: 1001}: true,
	} {
		if got := maybeAfter(changed, now); got != want {
			t.Errorf("%v may be after %v: %v", changed, now, got)
		}
	}
	if !maybeAfter(unix.Timespec{Sec: 1000}, time.Unix(1001, 50e6)) {
		t.Error("the clock that such times are of may lag, too")
	}
}

// TestMirrorLinkedMeanwhile: a file that changes between two of its names was not
// sent as it is, whichever of them is met first in the next pass.
func TestMirrorLinkedMeanwhile(t *testing.T) {
	p := newMirrorPair(t, onDisk)
	first, second := filepath.Join(p.from, "b", "first"), filepath.Join(p.from, "c", "second")
	for _, dir := range []string{first, second} {
		os.Mkdir(filepath.Dir(dir), 0o755)
	}
	err := errors.Join(os.WriteFile(first, []byte("old"), 0o600), os.Link(first, second),
		os.WriteFile(filepath.Join(p.from, "b", "long"), make([]byte, 600<<10), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * clockTick)
	p.interrupted(func() {
		os.WriteFile(first, []byte("new"), 0o600)
		time.Sleep(2 * clockTick)
	})
	os.Rename(filepath.Join(p.from, "b"), filepath.Join(p.from, "d"))
	p.pass(true)
	p.same()
}
