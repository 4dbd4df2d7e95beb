package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReadAll: of a directory that somebody hostile fills, regular files of the
// root alone, of the size and number that are asked for.
func TestReadAll(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	dir := filepath.Join(root, "run", "sessions")
	write := func(name, body string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(outside, "secret"), "secret")
	write(filepath.Join(dir, "1"), "one")
	write(filepath.Join(dir, "long"), strings.Repeat("x", 17))
	for name, to := range map[string]string{"absolute": filepath.Join(outside, "secret"), "relative": "../../../secret", "magic": "/proc/self/root" + outside + "/secret"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "1.ref"), 0o644); err != nil {
		t.Fatal(err)
	}
	tr, err := openTreeRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	bodies, err := tr.readAll("/run/sessions", 100, 16)
	if err != nil || len(bodies) != 1 || string(bodies[0]) != "one" {
		t.Errorf("%q, %v", bodies, err)
	}
	write(filepath.Join(dir, "2"), "two")
	if bodies, err = tr.readAll("/run/sessions", 1, 16); err != nil || len(bodies) > 1 {
		t.Errorf("%d of one at most, %v", len(bodies), err)
	}
	if err := os.Symlink(outside, filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/out", "/run/sessions/1"} {
		if bodies, err := tr.readAll(name, 100, 16); err == nil {
			t.Errorf("%s: %q", name, bodies)
		}
	}
}

// TestKernelFiles: a link that somebody hostile has put leads to no file of the
// kernel's, neither to read nor to change, not even by opening it.
func TestKernelFiles(t *testing.T) {
	tr, err := openTreeRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	for _, file := range []string{"/proc/self/coredump_filter", "/proc/sys/kernel/domainname", "/sys/kernel/uevent_seqnum", "/sys/fs/cgroup/cgroup.procs"} {
		if _, err := os.Stat(file); err != nil {
			t.Logf("not tried: %v", err)
			continue
		}
		link := filepath.Join(t.TempDir(), "backup")
		if err := os.Symlink(file, link); err != nil {
			t.Fatal(err)
		}
		if fd, err := openRegular(tr.fd, link, unix.O_RDONLY, 0); err == nil || !strings.Contains(err.Error(), "file of the kernel") {
			t.Errorf("%s opens as %d, %v", file, fd, err)
		}
		if body, err := tr.read(link, 100); err == nil {
			t.Errorf("%s is read: %q", file, body)
		}
	}
	name := filepath.Join(t.TempDir(), "file")
	for _, c := range []struct {
		flags int
		mode  uint32
		want  string
	}{{unix.O_WRONLY | unix.O_CREAT, 0o600, "text"}, {unix.O_WRONLY | unix.O_APPEND, 0, "texttext"}, {unix.O_WRONLY, 0, "texttext"}, {unix.O_WRONLY | unix.O_TRUNC, 0, "text"}} {
		fd, err := openRegular(tr.fd, name, c.flags, c.mode)
		if err != nil {
			t.Fatal(err)
		}
		unix.Write(fd, []byte("text"))
		unix.Close(fd)
		if body, err := tr.read(name, 100); err != nil || string(body) != c.want {
			t.Errorf("with %#x: %q, %v", c.flags, body, err)
		}
	}
}

// TestReadToEnd: what is read short is at its end.
func TestReadToEnd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f := &File{newInstance(&Runtime{}, &record{Name: "web1"}, nil), file}
	for _, c := range []struct {
		at    int64
		count int
		body  string
		end   error
	}{{0, 2, "te", nil}, {2, 2, "xt", nil}, {4, 2, "", io.EOF}, {0, 0, "", nil}, {1, 9, "ext", io.EOF}} {
		if _, err := f.Seek(t.Context(), c.at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if body, err := f.Read(t.Context(), c.count); string(body) != c.body || err != c.end {
			t.Errorf("%d from %d on: %q, %v", c.count, c.at, body, err)
		}
	}
}

// TestBecomeUser: the host's settings are not this thread's to change any more.
func TestBecomeUser(t *testing.T) {
	needRoot(t, "only root becomes somebody else")
	onOwnThread(func() error {
		if err := becomeUser(100000, 100001, 0); err != nil {
			t.Error(err)
		}
		if uid, gid := unix.Geteuid(), unix.Getegid(); uid != 100000 || gid != 100001 {
			t.Errorf("it is user %d of group %d", uid, gid)
		}
		if fd, err := unix.Open("/proc/sys/kernel/domainname", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			unix.Close(fd)
			t.Error("a setting of the host's opens for writing")
		}
		return nil
	})
	onOwnThread(func() error {
		if err := becomeUser(^uint32(0), 0, 0); err == nil {
			t.Error("it stays root")
		}
		if uid := unix.Geteuid(); uid != 0 {
			t.Errorf("another thread is user %d", uid)
		}
		return nil
	})
}

// A file system that never answers costs those who ask an error, and only so
// many may ask at once.
func TestPatience(t *testing.T) {
	i := newInstance(&Runtime{}, &record{Name: "web1"}, nil)
	stuck, gone := make(chan bool), make(chan bool, maxFileWaits)
	for range maxFileWaits {
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := patiently(ctx, i, func() (int, error) { cancel(); <-stuck; gone <- true; return 1, nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("one that is stuck: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := patiently(ctx, i, func() (int, error) { return 1, nil }); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "4 files of web1 are waited for already") {
		t.Errorf("one too many: %v", err)
	}
	next := make(chan error)
	go func() {
		_, err := patiently(t.Context(), i, func() (int, error) { return 1, nil })
		next <- err
	}()
	close(stuck)
	if err := <-next; err != nil {
		t.Errorf("one that waits until there is room: %v", err)
	}
	for range maxFileWaits {
		<-gone
	}
	for range maxFileWaits {
		i.waits <- struct{}{} // there is room again
	}
	if len(i.waits) != maxFileWaits {
		t.Error("no room")
	}
}
