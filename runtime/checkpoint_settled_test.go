package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestUnsettled: a thread that waits for its child of vfork(2) is told apart, and
// so is one that is traced, also when it is not its process's first, and in a
// cgroup below.
func TestUnsettled(t *testing.T) {
	const begun = "begun\n"
	switch os.Getenv("TEST_UNSETTLED") {
	case "vfork":
		os.Stdout.WriteString(begun)
		if pid, _, _ := unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_VFORK|uintptr(unix.SIGCHLD), 0, 0); pid == 0 {
			for { // it has a copy of one thread, and nothing of Go's can be used
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
		fallthrough
	case "sleep":
		os.Stdout.WriteString(begun)
		for {
			time.Sleep(time.Hour)
		}
	}
	scope := t.TempDir()
	below := filepath.Join(scope, "system.slice")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	helper := func(what string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestUnsettled$")
		cmd.Env = append(os.Environ(), "TEST_UNSETTLED="+what)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		if _, err := out.Read(make([]byte, len(begun))); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	any := func(cmd *exec.Cmd, is func(string) bool) bool {
		t.Helper()
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, thread := range threads {
			ids = append(ids, thread.Name())
		}
		os.WriteFile(filepath.Join(below, "cgroup.threads"), []byte(strings.Join(ids, "\n")+"\n"), 0o600)
		found, err := anyIn(scope, "cgroup.threads", is)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	eventually := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}

	forking := helper("vfork")
	var child string // without it, a thread of Go's may be seen that waits for memory
	eventually("a thread that waits for its child is not seen", func() bool {
		names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", forking.Process.Pid))
		for _, name := range names {
			child += strings.TrimSpace(readWhole(name))
		}
		return child != "" && any(forking, sleepsDeep)
	})
	if err := exec.Command("kill", "-KILL", child).Run(); err != nil {
		t.Fatal(err)
	}
	eventually("it is seen when it waits no more", func() bool { return !any(forking, sleepsDeep) })

	asleep := helper("sleep")
	// While it begins it may wait for memory, too.
	eventually("one that only sleeps is told apart", func() bool { return !any(asleep, isTraced) && !any(asleep, sleepsDeep) })
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", asleep.Process.Pid))
	err := onOwnThread(func() error {
		var last int
		fmt.Sscan(threads[len(threads)-1].Name(), &last)
		if err := unix.PtraceSeize(last); err != nil {
			return err
		}
		if !any(asleep, isTraced) {
			t.Error("one that is traced is not seen")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestKeptLog: what CRIU has said is where the error says that it is, also when
// the checkpoint is gone.
func TestKeptLog(t *testing.T) {
	r, dir := emptyRuntime(t), t.TempDir()
	log := filepath.Join(dir, "dump.log")
	os.WriteFile(log, []byte("(00.1) Error (criu/x.c:1): No parent image found\n(60.2) Error (criu/cr-dump.c:1511): Timeout reached. Try to interrupt: 0\n"), 0o600)
	err := r.criuSays(log, os.ErrInvalid)
	os.RemoveAll(dir)
	what, where, _ := strings.Cut(err.Error(), " (all it says is in ")
	if what != "CRIU: Timeout reached. Try to interrupt: 0" || !strings.Contains(readWhole(strings.TrimSuffix(where, ")")), "cr-dump.c:1511") {
		t.Errorf("got %v", err)
	}
}
