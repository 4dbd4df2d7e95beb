package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// nest makes directories below an open one, as many levels as no path names,
// each with a file, and gives the last.
func nest(t *testing.T, dir, levels int) int {
	t.Helper()
	dir, err := unix.Dup(dir)
	for range levels {
		var next int
		if err == nil {
			err = unix.Mkdirat(dir, "d", 0o755)
		}
		if err == nil {
			next, err = openDirectory(dir, "d")
		}
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(dir)
		dir = next
		var file int
		if file, err = unix.Openat(dir, "file", unix.O_CREAT|unix.O_WRONLY, 0o600); err == nil {
			err = unix.Close(file)
		}
	}
	return dir
}

// fewFiles has this process open hardly more files than it has open, also for
// other tests.
func fewFiles(t *testing.T) {
	last := 0
	for fd := range descriptors(t) {
		n, _ := strconv.Atoi(fd)
		last = max(last, n)
	}
	var before unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &before)
	fewer := before
	fewer.Cur = uint64(last) + 2*maxRemoveDepth + 64
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &fewer); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &before) })
}

// TestRemoveDeep removes a tree that is deeper than the files that may be open,
// with what a link in it points to left alone.
func TestRemoveDeep(t *testing.T) {
	dir := t.TempDir()
	tree, kept := filepath.Join(dir, "tree"), filepath.Join(dir, "kept")
	for _, d := range []string{tree, kept, filepath.Join(tree, ".deep-1"), filepath.Join(tree, "shallow/er")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(kept, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := unix.Open(tree, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(top)
	end := nest(t, top, 3000)
	defer unix.Close(end)
	for n, fd := range []int{top, end} {
		if err := unix.Symlinkat(kept, fd, fmt.Sprint("link", n)); err != nil {
			t.Fatal(err)
		}
	}
	fewFiles(t)
	if err := removeTree(tree); err != nil {
		t.Fatal(err)
	}
	if exists(tree) || !exists(filepath.Join(kept, "file")) {
		t.Error("the tree is there still, or what a link pointed to is gone")
	}
	if err := removeTree(tree); err != nil {
		t.Error("what is not there:", err)
	}
	if err := removeTree(filepath.Join(tree, "below")); err != nil {
		t.Error("what is in nothing:", err)
	}
}

// TestRemoveWide removes directories of more entries than are read at once, on
// the disk, where removing what has been read moves the rest.
func TestRemoveWide(t *testing.T) {
	top, err := os.MkdirTemp(onDisk, "remove")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	tree := filepath.Join(top, "tree")
	for _, dir := range []string{tree, filepath.Join(tree, "below")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		first := filepath.Join(dir, "first")
		if err := os.WriteFile(first, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for n := range 5000 {
			if err := os.Link(first, fmt.Sprintf("%s-%d", first, n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := removeTree(tree); err != nil || exists(tree) {
		t.Error("the tree is there still:", err)
	}
}
