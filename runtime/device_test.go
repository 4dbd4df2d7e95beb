package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holdOpens has whoever opens a directory, or a file in it, wait for an answer, as
// a file system that somebody inside serves may: until answer is called, or the
// test ends. A file that is made is there by then.
func holdOpens(t *testing.T, dir string) (answer func()) {
	t.Helper()
	group, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(group), "fanotify")
	t.Cleanup(func() { f.Close() })
	if err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM|unix.FAN_EVENT_ON_CHILD|unix.FAN_ONDIR, unix.AT_FDCWD, dir); err != nil {
		t.Fatal(err)
	}
	return func() {
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := f.Read(buf)
				if err != nil {
					return
				}
				for e := buf[:n]; len(e) >= unix.FAN_EVENT_METADATA_LEN; e = e[binary.NativeEndian.Uint32(e):] {
					fd := binary.NativeEndian.Uint32(e[16:])
					unix.Close(int(fd))
					f.Write(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, fd), unix.FAN_ALLOW))
				}
			}
		}()
	}
}

// comesTrue waits for something that another goroutine is about to do.
func comesTrue(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestDeviceOnSlowFiles: a device goes where a file system does not answer, and is
// not had in time. When that answers nothing of it is left, nor is it taken away
// when its end could not be had.
func TestDeviceOnSlowFiles(t *testing.T) {
	dir, err := os.MkdirTemp("", "inside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	own := filepath.Join(dir, "own")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(own, 0o755), os.Chown(own, 100000, 100000)); err != nil {
		t.Fatal(err)
	}
	i := userspace(t, "", "")
	nodes := []deviceNode{{Source: "/dev/null", Target: filepath.Join(own, "null")}}
	there := func() bool {
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", i.rec.Init))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(mounts), nodes[0].Target)
	}
	impatient := func(do func(context.Context, []deviceNode) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := endsSoon(t, "it", begin(func() error { return do(ctx, nodes) }))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "device "+nodes[0].Target+": a file of web1 cannot be had") {
			t.Errorf("got %v", err)
		}
	}
	idle := func() bool { return len(i.waits) == 0 }
	answer := holdOpens(t, own)
	impatient(i.addNodes)
	// Else what follows tells nothing; on a busy host it may take longer than was waited for it.
	comesTrue(t, "it was held before it made anything", func() bool { return exists(nodes[0].Target) })
	answer()
	comesTrue(t, "it still waits", idle)
	if exists(nodes[0].Target) || there() {
		t.Errorf("of what was not had there is a file: %t, a node: %t", exists(nodes[0].Target), there())
	}

	if err := i.addNodes(t.Context(), nodes); err != nil || !there() {
		t.Fatalf("it is there: %t, %v", there(), err)
	}
	answer = holdOpens(t, own)
	impatient(i.removeNodes)
	answer()
	comesTrue(t, "it still waits", idle)
	if !there() {
		t.Error("it is gone, and was said to stay")
	}
	if err := i.removeNodes(t.Context(), nodes); err != nil || there() || exists(nodes[0].Target) {
		t.Errorf("it is there: %t, a file: %t, %v", there(), exists(nodes[0].Target), err)
	}
}

// TestLateIsUndone: what comes when nobody waits for it any more does not stay.
func TestLateIsUndone(t *testing.T) {
	i := newInstance(&Runtime{}, &record{Name: "web1"}, nil)
	for name, result := range map[string]error{"done": nil, "failed": errors.New("no")} {
		ctx, cancel := context.WithCancel(t.Context())
		goOn, undone := make(chan bool), make(chan int, 1)
		if _, err := patientlyOr(ctx, i, func() (int, error) { cancel(); <-goOn; return 7, result }, func(n int) { undone <- n }); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		close(goOn)
		comesTrue(t, "it still waits", func() bool { return len(i.waits) == 0 })
		if len(undone) != map[string]int{"done": 1, "failed": 0}[name] {
			t.Errorf("%s: %d undone", name, len(undone))
		}
	}
	if n, err := patientlyOr(t.Context(), i, func() (int, error) { return 7, nil }, func(int) { t.Error("undone") }); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
