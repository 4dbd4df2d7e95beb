package runtime

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEntered: what was started from outside is told by its name, and what has
// its parent inside is not: its own children, and those it has left to init.
func TestEntered(t *testing.T) {
	needRoot(t, "only root enters a PID namespace")
	start := func(cmd *exec.Cmd) *exec.Cmd {
		t.Helper()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	init := exec.Command("sh", "-c", "sleep 1000 & wait; wait; exec sleep 1000")
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	start(init)
	pidfd, err := openPidfd(init.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	i := newInstance(emptyRuntime(t), &record{UUID: formatUUID(testUUID), Name: "web1", Init: init.Process.Pid}, pidfd)
	expect := func(want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if got, err = i.entered(); err != nil {
				t.Fatal(err)
			}
			if got == want || time.Now().After(end) {
				break
			}
		}
		if got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	expect("")
	// nsenter forks for the PID namespace: its child is what has entered.
	entering := start(exec.Command("nsenter", "-t", fmt.Sprint(init.Process.Pid), "-p", "sh", "-c", "sleep 1000 & exec sleep 1000"))
	child := func() string {
		return strings.TrimSpace(readWhole(fmt.Sprintf("/proc/%d/task/%[1]d/children", entering.Process.Pid)))
	}
	for child() == "" {
		time.Sleep(10 * time.Millisecond)
	}
	pid := child()
	expect("what was started from outside and would not go on: 'sleep' (process " + pid + "): leave it, or end it")
	if err := exec.Command("kill", "-KILL", pid).Run(); err != nil {
		t.Fatal(err)
	}
	expect("")

	for range namedEntered + 2 {
		start(exec.Command("nsenter", "-t", fmt.Sprint(init.Process.Pid), "-p", "sleep", "1000"))
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got, err := i.entered()
		if err == nil && strings.Count(got, "'sleep'") == namedEntered && strings.HasSuffix(got, " and 2 more: leave it, or end it") {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
}
