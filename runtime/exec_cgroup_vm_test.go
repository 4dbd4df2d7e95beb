//go:build vm

package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"
)

// TestExecFrozen: whoever freezes a cgroup inside, and when, stops what runs
// there and nothing of ours.
func TestExecFrozen(t *testing.T) {
	r := vmRuntime(t)
	i := vmStart(t, r, vmEnvironment(t, "busybox"), StartOptions{})
	vmExec(t, i, "mkdir /sys/fs/cgroup/own && echo 1 > /sys/fs/cgroup/own/cgroup.procs")
	if out := vmExec(t, i, "cat /proc/self/cgroup"); out != "0::/own" {
		t.Fatalf("a command is in %s", out)
	}
	cgroup, err := i.openInitCgroup() // just before that is frozen
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	if err := os.WriteFile(filepath.Join(i.CgroupPath(), "own/cgroup.freeze"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); i.refuseFrozenCgroup(cgroup) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not freeze")
		}
	}
	if _, err := i.Exec(t.Context(), Command{Args: []string{"/bin/true"}}); err == nil || !strings.Contains(err.Error(), "is frozen") {
		t.Errorf("a command in what is frozen: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	ended := make(chan error)
	go func() { ended <- inCgroup(ctx, cgroup, "/bin/true").Run() }()
	time.Sleep(time.Second)
	goruntime.GC() // which waits for each thread
	if err := <-ended; err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("it ran in what is frozen: %v, %v", err, ctx.Err())
	}
	if err := i.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}
