package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestQuotaStructs: the kernel reads and writes them.
func TestQuotaStructs(t *testing.T) {
	for _, request := range []uintptr{getFSXattr, setFSXattr} { // which has the size in it
		if n := unsafe.Sizeof(fsxattr{}); n != request>>16&0x3fff {
			t.Errorf("fsxattr has %d bytes", n)
		}
	}
	if n := unsafe.Sizeof(diskQuota{}); n != 72 {
		t.Errorf("diskQuota has %d bytes", n)
	}
}

// TestOpenPlain opens nothing that acts when it is opened, and follows nothing.
func TestOpenPlain(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "dir"), 0o700)
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	os.Symlink("dir", filepath.Join(dir, "link"))
	unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, want := range map[string]bool{"dir": true, "file": true, "link": false, "fifo": false, "gone": false} {
		got, err := openPlain(f, name)
		if err != nil || (got != nil) != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		got.Close()
	}
}

// TestNoQuota says how to get one.
func TestNoQuota(t *testing.T) {
	for magic, want := range map[int64]string{
		unix.EXT4_SUPER_MAGIC: "tune2fs -O project,quota",
		unix.XFS_SUPER_MAGIC:  "option prjquota",
		unix.TMPFS_MAGIC:      "use ext4 or xfs",
	} {
		if err := noQuota("/d", magic); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
	}
}

// TestGiveBelow gives up on a tree that would take all descriptors, and when
// nobody waits for it any more.
func TestGiveBelow(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := giveBelow(t.Context(), f, ".", 1, maxDepth+1); err == nil || !strings.Contains(err.Error(), "nested") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := giveBelow(ctx, f, ".", 1, 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
