package runtime

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestImportDirectory(t *testing.T) {
	from := t.TempDir()
	at := time.Unix(1000000000, 0)
	os.MkdirAll(from+"/usr/bin", 0o755)
	os.WriteFile(from+"/usr/bin/su", []byte("text"), 0o755)
	os.Chmod(from+"/usr/bin/su", os.ModeSetuid|0o755)
	os.Chtimes(from+"/usr/bin/su", at, at)
	os.Link(from+"/usr/bin/su", from+"/usr/su2")
	os.Symlink("/etc/passwd", from+"/abs")
	unix.Mkfifo(from+"/fifo", 0o600)
	unix.Setxattr(from+"/usr/bin", "user.x", []byte("y"), 0)
	if l, err := net.Listen("unix", from+"/socket"); err == nil {
		defer l.Close()
	}
	sparse, _ := os.Create(from + "/lastlog")
	sparse.WriteAt([]byte("end"), 8<<30)
	sparse.Close()

	templates := OpenTemplates(t.TempDir())
	made, err := templates.Import(t.Context(), "x", from, ImportOptions{Limits: Limits{Bytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(made.Path + "/usr/bin/su")
	if err != nil || info.Mode() != os.ModeSetuid|0o755 || !info.ModTime().Equal(at) {
		t.Errorf("su: %v, %v", info, err)
	}
	if other, _ := os.Stat(made.Path + "/usr/su2"); !os.SameFile(info, other) {
		t.Error("a hard link was not made")
	}
	if to, _ := os.Readlink(made.Path + "/abs"); to != "/etc/passwd" {
		t.Errorf("abs points to %q", to)
	}
	if names := xattrs(t, made.Path+"/usr/bin"); names != "user.x " {
		t.Errorf("attributes %q", names)
	}
	if exists(made.Path+"/socket") || !exists(made.Path+"/fifo") {
		t.Error("a socket was copied, or the fifo not")
	}
	var st unix.Stat_t
	unix.Stat(made.Path+"/lastlog", &st)
	if st.Size != 8<<30+3 || st.Blocks > 100 {
		t.Errorf("lastlog: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	// The digest is of what is there, not of when or where.
	os.Chtimes(from+"/usr/bin/su", time.Now(), time.Now())
	if same, err := templates.Import(t.Context(), "x", from, ImportOptions{}); err != nil || same.Digest != made.Digest {
		t.Errorf("again: %s, %v, want %s", same.Digest, err, made.Digest)
	}
	os.WriteFile(from+"/usr/bin/su", []byte("TEXT"), 0o755)
	if other, err := templates.Import(t.Context(), "x", from, ImportOptions{}); err != nil || other.Digest == made.Digest {
		t.Errorf("changed: %s, %v", other.Digest, err)
	}
}

// mountTmpfs mounts one, whose files have the same numbers as those of the next.
func mountTmpfs(t *testing.T, at string) {
	t.Helper()
	needRoot(t, "only root can mount")
	if err := unix.Mount("test", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
}

// TestImportMountedFiles: files of two file systems that are mounted in a directory
// may have the same number. Each keeps its own text, and its other names.
func TestImportMountedFiles(t *testing.T) {
	from := t.TempDir()
	var numbers []uint64
	for _, text := range []string{"a", "b"} {
		dir := t.TempDir()
		mountTmpfs(t, dir)
		for _, name := range []string{"1", "2"} {
			if name == "1" {
				write(t, dir, "1="+text)
			} else if err := os.Link(dir+"/1", dir+"/2"); err != nil {
				t.Fatal(err)
			}
			at := filepath.Join(from, text+name)
			write(t, from, text+name+"=")
			if err := unix.Mount(filepath.Join(dir, name), at, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(from, text+"1"), &st); err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, st.Ino)
	}
	if numbers[0] != numbers[1] {
		t.Fatalf("the files have the numbers %d", numbers)
	}
	made, err := OpenTemplates(t.TempDir()).Import(t.Context(), "x", from, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := view(t, made.Path); got != "a1=a a2=a b1=b b2=b" {
		t.Errorf("imported are %s", got)
	}
	for _, text := range []string{"a", "b"} {
		one, _ := os.Stat(filepath.Join(made.Path, text+"1"))
		two, _ := os.Stat(filepath.Join(made.Path, text+"2"))
		if !os.SameFile(one, two) {
			t.Error("a hard link was not made")
		}
	}
}

func TestImportDirectoryRefused(t *testing.T) {
	empty, deep, large := t.TempDir(), t.TempDir(), t.TempDir()
	os.MkdirAll(filepath.Join(deep, strings.Repeat("d/", 300)), 0o755)
	os.WriteFile(large+"/x", make([]byte, 2<<20), 0o644)
	tests := map[string]struct {
		source string
		limit  int64
		want   string
	}{
		"missing": {empty + "/none", 0, "no such file"},
		"deep":    {deep, 0, "nested deeper"},
		"large":   {large, 1 << 20, "too large"},
		"device":  {"/dev/null", 0, "not a regular file"},
	}
	for name, test := range tests {
		templates := OpenTemplates(t.TempDir())
		_, err := templates.Import(t.Context(), "x", test.source, ImportOptions{Limits: Limits{Bytes: test.limit}})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(templates.digestDir("")); len(left) > 0 {
			t.Errorf("%s left %v", name, left)
		}
	}
	_, err := OpenTemplates(t.TempDir()).Import(t.Context(), "x", large, ImportOptions{Limits: Limits{Bytes: 1}})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
}
