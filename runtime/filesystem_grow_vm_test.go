//go:build vm

package runtime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

func mountedSize(t *testing.T, tree int) uint64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(tree, &fs); err != nil {
		t.Fatal(err)
	}
	return fs.Blocks * uint64(fs.Bsize)
}

// testGrow: an image grows while it is mounted and while it is not, and never
// shrinks.
func testGrow(t *testing.T, size uint64, mkfs ...string) {
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, int64(size))); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", mkfs, err, out)
	}
	r, root := &Runtime{}, xml.Filesystem{Type: "file", Source: image, Target: "/"}
	tree, on, err := openRaw(image, false)
	if err != nil {
		t.Fatal(err)
	}
	i := &Instance{rec: &record{Name: "web1", Root: &recordedRoot{Source: image, Device: on}}}
	before := mountedSize(t, tree)
	if err := r.GrowRoot(t.Context(), i, root, 2*size); err != nil {
		t.Fatal(err)
	}
	running := mountedSize(t, tree)
	if running < before+size/2 {
		t.Errorf("%d bytes were %d before", running, before)
	}
	if err := r.GrowRoot(t.Context(), i, root, size); !errors.Is(err, ErrCannotShrink) {
		t.Errorf("it shrinks: %v", err)
	}
	if err := r.GrowRoot(t.Context(), i, root, 0); err != nil || mountedSize(t, tree) != running {
		t.Errorf("as large as it is: %d, %v", mountedSize(t, tree), err)
	}
	other := root
	other.Source = filepath.Join(t.TempDir(), "other")
	if err := errors.Join(os.WriteFile(other.Source, nil, 0o600), r.GrowRoot(t.Context(), i, other, 4*size)); err == nil {
		t.Error("another image is taken for the one that is mounted")
	}
	if info, err := os.Stat(other.Source); err != nil || info.Size() != 0 {
		t.Errorf("%+v, %v", info, err)
	}

	unix.Close(tree)
	for range 1200 { // the kernel lets go of it on its own time
		if err = r.GrowRoot(t.Context(), nil, root, 3*size); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 1200 {
		if tree, _, err = openRaw(image, false); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	if now := mountedSize(t, tree); now < running+size/2 {
		t.Errorf("%d bytes were %d before", now, running)
	}
}

func TestGrowExt4(t *testing.T) { testGrow(t, 24<<20, "mkfs.ext4", "-q") }

func TestGrowXFS(t *testing.T) { testGrow(t, 320<<20, "mkfs.xfs", "-q") }

func TestGrowBtrfs(t *testing.T) { testGrow(t, 128<<20, "mkfs.btrfs", "-q") }

// TestGrowRefused: a file system with errors in it does not grow, and its image
// is as it was.
func TestGrowRefused(t *testing.T) {
	const size = 24 << 20
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", image}, {"debugfs", "-w", "-R", "set_super_value state 2", image}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	tree, on, err := openRaw(image, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	r, i := &Runtime{}, &Instance{rec: &record{Name: "web1", Root: &recordedRoot{Source: image, Device: on}}}
	if err := r.GrowRoot(t.Context(), i, xml.Filesystem{Type: "file", Source: image, Target: "/"}, 2*size); err == nil {
		t.Error("it has grown")
	}
	if info, err := os.Stat(image); err != nil || info.Size() != size {
		t.Errorf("the image has %d bytes, %v", info.Size(), err)
	}
}

// TestGrowReplaced: a file of the same name and number, on another file system, is
// not the image that is mounted.
func TestGrowReplaced(t *testing.T) {
	dir, size := t.TempDir(), int64(8<<20)
	image := filepath.Join(dir, "image")
	var numbers []uint64
	fresh := func() {
		t.Helper()
		mountTmpfs(t, dir)
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var st unix.Stat_t
		if err := unix.Stat(image, &st); err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, st.Ino)
	}
	fresh()
	tree, on, err := openRaw(image, false)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	fresh()
	if numbers[0] != numbers[1] {
		t.Fatalf("the images have the numbers %d", numbers)
	}
	i := &Instance{rec: &record{Name: "web1", Root: &recordedRoot{Source: image, Device: on}}}
	err = (&Runtime{}).GrowRoot(t.Context(), i, xml.Filesystem{Type: "file", Source: image, Target: "/"}, uint64(2*size))
	if err == nil || !strings.Contains(err.Error(), "had that name when it started") {
		t.Errorf("another image is taken for the one that is mounted: %v", err)
	}
	if info, err := os.Stat(image); err != nil || info.Size() != size {
		t.Errorf("it has %d bytes now, %v", info.Size(), err)
	}
}
