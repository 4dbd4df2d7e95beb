package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The overlay itself is in the scripts of integration/virsh. Here view tells
// what it would show.

var layersUUID = [16]byte{1, 2, 3, 4}

// newTestLayers makes a template and the disk of an environment on it.
func newTestLayers(t *testing.T) *Layers {
	t.Helper()
	needRoot(t, "only root can make whiteouts and the overlay's attributes")
	data := t.TempDir()
	l := OpenLayers(data, filepath.Join(data, "state"))
	again(t, l.templates, "web", "1")
	use(t, l.templates, formatUUID(layersUUID), "web")
	if err := l.locked(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	// Nothing but on btrfs, where TestLayersOnBtrfs runs these tests again.
	if err := l.separate(t.Context(), layersUUID); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *Layers) upper(uuid [16]byte) string {
	return filepath.Join(l.privateDir(formatUUID(uuid)), "upper")
}

// write makes files in a directory: "NAME=TEXT" one with that text, "-NAME" a
// whiteout, "NAME/" a directory and "!NAME/" one through which nothing is seen.
func write(t *testing.T, dir string, entries ...string) {
	t.Helper()
	for _, e := range entries {
		name, text, isFile := strings.Cut(e, "=")
		whiteout := strings.HasPrefix(name, "-")
		opaque := strings.HasPrefix(name, "!")
		path := filepath.Join(dir, strings.TrimLeft(name, "-!"))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case isFile:
			err = errors.Join(err, os.WriteFile(path, []byte(text), 0o644))
		case whiteout:
			err = errors.Join(err, os.RemoveAll(path), unix.Mknod(path, unix.S_IFCHR, 0))
		default:
			err = errors.Join(err, os.MkdirAll(path, 0o755))
			if opaque {
				err = errors.Join(err, unix.Setxattr(path, overlayOpaque, []byte("y"), 0))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// view is what an overlay of these directories shows, the first on top.
func view(t *testing.T, dirs ...string) string {
	t.Helper()
	found := map[string]string{}
	look(t, found, "", dirs)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&b, "%s%s ", name, found[name])
	}
	return strings.TrimSpace(b.String())
}

func look(t *testing.T, found map[string]string, at string, dirs []string) {
	names := map[string]bool{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names[e.Name()] = true
		}
	}
	for name := range names {
		var merged []string
		for _, dir := range dirs {
			path := filepath.Join(dir, name)
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if !info.IsDir() {
				if len(merged) == 0 && info.Mode()&fs.ModeCharDevice == 0 {
					body, err := os.ReadFile(path)
					if err != nil {
						t.Fatal(err)
					}
					found[at+name] = "=" + string(body)
				}
				break
			}
			merged = append(merged, path)
			value := make([]byte, 8)
			if size, err := unix.Lgetxattr(path, overlayOpaque, value); err == nil && string(value[:size]) == "y" {
				break
			}
		}
		if len(merged) > 0 {
			found[at+name] = "/"
			look(t, found, at+name+"/", merged)
		}
	}
}

// shows is the view of an environment's disk at its next start.
func (l *Layers) shows(t *testing.T, uuid [16]byte) string {
	t.Helper()
	d, chain, err := l.below(uuid)
	if err != nil {
		t.Fatal(err)
	}
	template, err := l.templates.byDigest(d.Template)
	if err != nil {
		t.Fatal(err)
	}
	return view(t, slices.Concat([]string{l.upper(uuid)}, chain, []string{template.Path})...)
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// left lists what lies in the directory of layers.
func (l *Layers) left(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestPushRevertRelease(t *testing.T) {
	l := newTestLayers(t)
	write(t, l.upper(layersUUID), "a=1", "d/b=1")
	if err := os.Chmod(l.upper(layersUUID), 0o751); err != nil {
		t.Fatal(err)
	}
	one := must[string](t)(l.Push(layersUUID))
	if info, err := os.Stat(l.upper(layersUUID)); err != nil || info.Mode().Perm() != 0o751 {
		t.Errorf("the root directory of the new upper: %v, %v", info.Mode(), err)
	}
	first := "a=1 d/ d/b=1 text=1"
	if got := l.shows(t, layersUUID); got != first {
		t.Errorf("after the snapshot: %s", got)
	}
	write(t, l.upper(layersUUID), "a=2", "-d", "c=2")
	two := must[string](t)(l.Push(layersUUID))
	write(t, l.upper(layersUUID), "c=3", "!d/", "-text")
	if got := l.shows(t, layersUUID); got != "a=2 c=3 d/" {
		t.Errorf("third state: %s", got)
	}

	// A released layer that the disk stands on is joined with that, and what
	// is seen stays.
	if err := l.Release(layersUUID, two); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, layersUUID); got != "a=2 c=3 d/" {
		t.Errorf("after the second was released: %s", got)
	}
	if left := l.left(t); !slices.Equal(left, []string{one}) {
		t.Errorf("left: %v", left)
	}
	if err := l.Revert(layersUUID, one); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, layersUUID); got != first {
		t.Errorf("after the revert: %s", got)
	}
	if err := l.Revert(layersUUID, two); err == nil {
		t.Error("reverted to a layer that is gone")
	}
	if err := l.Revert([16]byte{9}, one); err == nil {
		t.Error("reverted to a layer of another environment")
	}
	if err := l.Release(layersUUID, one); err != nil {
		t.Fatal(err)
	}
	if got, left := l.shows(t, layersUUID), l.left(t); got != first || len(left) != 0 {
		t.Errorf("after all were released: %s, left %v", got, left)
	}
}

// What a running environment's disk stands on stays as it is until it ends.
func TestReleaseWhileRunning(t *testing.T) {
	l := newTestLayers(t)
	write(t, l.upper(layersUUID), "a=1")
	one := must[string](t)(l.Push(layersUUID))
	state := filepath.Join(l.state, formatUUID(layersUUID))
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Push(layersUUID); !errors.Is(err, ErrRunning) {
		t.Errorf("push of a running one: %v", err)
	}
	if err := l.Revert(layersUUID, one); !errors.Is(err, ErrRunning) {
		t.Errorf("revert of a running one: %v", err)
	}
	if err := l.Release(layersUUID, one); err != nil {
		t.Fatal(err)
	}
	if left := l.left(t); len(left) != 1 {
		t.Errorf("the layer is gone below a running environment: %v", left)
	}
	os.Remove(state)
	must[string](t)(l.Push(layersUUID))
	if left := l.left(t); len(left) != 1 || left[0] == one {
		t.Errorf("the released layer was not joined later: %v", left)
	}
}

func TestTooManyLayers(t *testing.T) {
	l := newTestLayers(t)
	for range maxChain {
		must[string](t)(l.Push(layersUUID))
	}
	if _, err := l.Push(layersUUID); !errors.Is(err, ErrTooManyLayers) {
		t.Errorf("one layer too many: %v", err)
	}
}

// The template stays as long as a layer stands on it, also one of an
// environment whose disk is gone.
func TestLayerKeepsTemplate(t *testing.T) {
	l := newTestLayers(t)
	must[string](t)(l.Push(layersUUID))
	os.RemoveAll(l.privateDir(formatUUID(layersUUID)))
	if err := l.templates.Remove("web"); err == nil || !strings.Contains(err.Error(), formatUUID(layersUUID)) {
		t.Errorf("the template below a snapshot was removed: %v", err)
	}
}

type killed struct{ step string }

// dying runs do, which is stopped dead at the n-th step. It returns the steps it
// came by.
func dying(n int, do func()) (steps []string) {
	defer func() { atStep = func(string) error { return nil } }()
	defer func() {
		if _, ok := recover().(killed); !ok && n < len(steps) {
			panic("it was not killed")
		}
	}()
	atStep = func(step string) error {
		if steps = append(steps, step); len(steps) > n {
			panic(killed{step})
		}
		return nil
	}
	do()
	return steps
}

// Whenever it is killed, the disk shows the old or the new state, and what was
// begun can be done again.
func TestLayersKilledAtEveryStep(t *testing.T) {
	prepare := func(t *testing.T) (*Layers, string, string) {
		l := newTestLayers(t)
		write(t, l.upper(layersUUID), "a=1", "d/b=1", "d/e/f=1")
		one := must[string](t)(l.Push(layersUUID))
		write(t, l.upper(layersUUID), "a=2", "-d/b", "!d/e/", "g/h=2")
		two := must[string](t)(l.Push(layersUUID))
		write(t, l.upper(layersUUID), "a=3", "g/i=3", "-text")
		return l, one, two
	}
	now, then := "a=3 d/ d/e/ g/ g/h=2 g/i=3", "a=1 d/ d/b=1 d/e/ d/e/f=1 text=1"
	for name, c := range map[string]struct {
		do    func(l *Layers, one, two string) error
		after string
	}{
		"push":   {func(l *Layers, _, _ string) error { _, err := l.Push(layersUUID); return err }, now},
		"revert": {func(l *Layers, one, _ string) error { return l.Revert(layersUUID, one) }, then},
		"release": {func(l *Layers, one, two string) error {
			return errors.Join(l.Release(layersUUID, one), l.Release(layersUUID, two))
		}, now},
	} {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				l, one, two := prepare(t)
				steps := dying(n, func() {
					if err := c.do(l, one, two); err != nil {
						t.Fatal(err)
					}
				})
				if got := l.shows(t, layersUUID); got != now && got != c.after {
					t.Fatalf("killed at %v: %s", steps, got)
				}
				if len(steps) <= n {
					if n < 3 {
						t.Errorf("only the steps %v", steps)
					}
					t.Logf("steps: %v", steps)
					return
				}
				if name == "release" { // again, as far as it is still there
					l.Release(layersUUID, one)
					l.Release(layersUUID, two)
				} else if err := c.do(l, one, two); err != nil {
					t.Fatalf("again, after it was killed at %v: %v", steps, err)
				}
				if got := l.shows(t, layersUUID); got != c.after {
					t.Fatalf("again, after it was killed at %v: %s", steps, got)
				}
				if left, _ := filepath.Glob(l.dir + "/.[gn]*"); len(left) > 0 {
					t.Errorf("killed at %v: left %v", steps, left)
				}
			}
		})
	}
}

func TestCopyLayer(t *testing.T) {
	l := newTestLayers(t)
	upper := l.upper(layersUUID)
	write(t, upper, "file=text", "-gone", "!opaque/", "opaque/in=1", "deep/er/x=1")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(upper, name) }
	must(os.Link(in("file"), in("deep/other")))
	must(os.Symlink("/etc/passwd", in("link")))
	must(unix.Mkfifo(in("fifo"), 0o640))
	must(unix.Mknod(in("disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 1))))
	must(unix.Mknod(in("socket"), unix.S_IFSOCK|0o600, 0))
	must(os.Lchown(in("link"), 7, 8))
	must(os.Chown(in("file"), 1000, 33))
	must(os.Chmod(in("file"), 0o4751))
	must(unix.Setxattr(in("file"), "user.note", []byte("kept"), 0))
	must(unix.Setxattr(in("file"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(unix.Setxattr(upper, overlayImpure, []byte("y"), 0))
	sparse, err := os.Create(in("sparse"))
	must(err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20)
	must(err)
	must(sparse.Truncate(100 << 20))
	sparse.Close()
	must(unix.UtimesNanoAt(unix.AT_FDCWD, in("deep"), []unix.Timespec{{Sec: 5}, {Sec: 77, Nsec: 99}}, 0))

	held := 0
	hold := func(do func() error) error { held++; return do() }
	var done, total uint64
	id, err := l.Copy(t.Context(), layersUUID, hold, func(d, all uint64) { done, total = d, all })
	must(err)
	copied := filepath.Join(l.layerDir(id), "rootfs")
	if want, got := describeTree(t, upper), describeTree(t, copied); want != got {
		t.Errorf("the copy is\n%s\nof\n%s", got, want)
	}
	if n, _ := unix.Lgetxattr(copied, overlayImpure, make([]byte, 8)); n > 0 {
		t.Error("the overlay's notes about the upper itself were copied")
	}
	var st unix.Stat_t
	must(unix.Lstat(filepath.Join(copied, "sparse"), &st))
	if st.Blocks*512 > 1<<20 {
		t.Errorf("the holes of a file were filled: %d bytes", st.Blocks*512)
	}
	if held != 1 || total == 0 || done != total {
		t.Errorf("held %d times, %d of %d bytes", held, done, total)
	}

	// What is given up leaves nothing.
	before := l.left(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err = l.Copy(ctx, layersUUID, hold, func(uint64, uint64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if after := l.left(t); !slices.Equal(before, after) {
		t.Errorf("left: %v, before: %v", after, before)
	}
}

// describeTree shows all that a copy must keep.
func describeTree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if inodes[st.Ino] == "" {
			inodes[st.Ino] = name
		}
		notes, err := attributes(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d dev=%x links=%d first=%s mtime=%d.%d", name, st.Mode, st.Uid, st.Gid, st.Rdev, st.Nlink, inodes[st.Ino], st.Mtim.Sec, st.Mtim.Nsec)
		for _, note := range notes {
			value := make([]byte, 256)
			n, _ := unix.Lgetxattr(path, note, value)
			if name != "." || ownAttribute(note) {
				fmt.Fprintf(&b, " %s=%q", note, value[:n])
			}
		}
		if target, err := os.Readlink(path); err == nil {
			fmt.Fprintf(&b, " -> %s", target)
		}
		if e.Type().IsRegular() {
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %q", len(body), strings.Trim(string(body), "\x00"))
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// As long as it is not known what something damaged stands on, nothing goes.
func TestDamagedLayer(t *testing.T) {
	for name, file := range map[string]func(l *Layers, two string) string{
		"layer": func(l *Layers, two string) string { return filepath.Join(l.layerDir(two), "layer.json") },
		"disk": func(l *Layers, _ string) string {
			return filepath.Join(l.privateDir(formatUUID(layersUUID)), "template")
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTestLayers(t)
			write(t, l.upper(layersUUID), "a=1")
			one := must[string](t)(l.Push(layersUUID))
			two := must[string](t)(l.Push(layersUUID))
			broken := file(l, two)
			good, err := os.ReadFile(broken)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Dir(broken), filepath.Base(broken)+"=x\nlayer ../..\n")
			if err := l.Release(layersUUID, one); err != nil {
				t.Error(err)
			}
			if left := l.left(t); len(left) != 2 {
				t.Errorf("left: %v", left)
			}
			if _, err := l.Roots(); err == nil {
				t.Error("the list says nothing of it")
			}
			write(t, filepath.Dir(broken), filepath.Base(broken)+"="+string(good))
			if got := l.shows(t, layersUUID); got != "a=1 text=1" {
				t.Errorf("mended: %s", got)
			}
			if err := l.Release(layersUUID, two); err != nil || len(l.left(t)) != 0 {
				t.Errorf("released: %v, left %v", err, l.left(t))
			}
		})
	}
}

// What stands on a template may be what is damaged: none is removed as long as
// that is not known, and no more than that.
func TestTemplateBelowDamage(t *testing.T) {
	for name, damage := range map[string]func(l *Layers) (file string){
		"disk": func(l *Layers) string { return filepath.Join(l.privateDir(formatUUID(layersUUID)), "template") },
		"layer": func(l *Layers) string {
			id := must[string](t)(l.Push(layersUUID))
			os.RemoveAll(l.privateDir(formatUUID(layersUUID))) // only the snapshot is left
			return filepath.Join(l.layerDir(id), "layer.json")
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newTestLayers(t)
			one, err := l.templates.Lookup("web")
			if err != nil {
				t.Fatal(err)
			}
			again(t, l.templates, "web", "2")
			again(t, l.templates, "db", "2") // the same by another name
			broken := damage(l)
			good, err := os.ReadFile(broken)
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Dir(broken), filepath.Base(broken)+"=")
			for _, which := range []string{"web", "web@" + one.ID()} {
				if err := l.templates.Remove(which); err == nil || !strings.Contains(err.Error(), "for what stands on it is not known: ") || !strings.Contains(err.Error(), "damaged") {
					t.Errorf("%s removed: %v", which, err)
				}
			}
			if gone, err := l.templates.Prune(); err == nil || len(gone) > 0 || !exists(one.Path) {
				t.Errorf("pruned %v: %v", gone, err)
			}
			if list, err := l.templates.List(); err == nil || len(list) != 3 {
				t.Errorf("the list of %d says nothing of it: %v", len(list), err)
			}
			if _, err := l.templates.Find("web"); err == nil {
				t.Error("whom it is used by is said to be known")
			}
			if err := l.templates.Remove("db"); err != nil {
				t.Errorf("a name of two: %v", err)
			}
			write(t, filepath.Dir(broken), filepath.Base(broken)+"="+string(good), "../stray=")
			if err := l.templates.Remove("web"); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Errorf("mended: %v", err)
			}
			again(t, l.templates, "web", "3")
			if gone, err := l.templates.Prune(); err != nil || len(gone) != 1 {
				t.Errorf("mended, pruned %v: %v", gone, err)
			}
		})
	}
}
