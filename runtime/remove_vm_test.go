//go:build vm

package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoveMounted: what is mounted in a tree is nobody's to delete.
func TestRemoveMounted(t *testing.T) {
	tree := t.TempDir()
	at := filepath.Join(tree, "d/at")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	kept := filepath.Join(at, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(filepath.Join(tree, "d")); !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
		t.Error("the error is", err)
	}
	if !exists(kept) {
		t.Error("a file that was mounted in the tree is gone")
	}
}

// TestRemoveSubvolumes: each may be as deep as the files that may be open, and
// in another.
func TestRemoveSubvolumes(t *testing.T) {
	tree := filepath.Join(onTestBtrfs(t), "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	top, err := unix.Open(tree, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		dir := nest(t, top, 2*maxRemoveDepth)
		unix.Close(top)
		if err := makeSubvolume(procPath(dir, "sub")); err != nil {
			t.Fatal(err)
		}
		if top, err = openDirectory(dir, "sub"); err != nil {
			t.Fatal(err)
		}
		unix.Close(dir)
	}
	unix.Close(nest(t, top, 2*maxRemoveDepth))
	unix.Close(top)
	fewFiles(t)
	if err := removeTree(tree); err != nil || exists(tree) {
		t.Error("the tree is there still:", err)
	}
}
