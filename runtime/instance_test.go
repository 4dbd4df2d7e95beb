package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestKillGivesUp: what does not end keeps nobody waiting for ever, whether
// init, another process or systemd is what is waited for. When it ends after
// all that is no crash.
func TestKillGivesUp(t *testing.T) {
	dir := t.TempDir() // for a cgroup, and nothing happens to what is said to be in it
	cgroup, err := filepath.Rel(cgroupRoot, dir)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cgroup.kill"), nil, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	gaveUp := func(t *testing.T, what string, began time.Time, err error, want string) {
		t.Helper()
		if took := time.Since(began); took < time.Second || took > 2*stopTimeout {
			t.Errorf("%s: given up after %s", what, took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %v", what, err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		r := &Runtime{config: Config{StateDir: t.TempDir()}}
		i := newInstance(r, &record{UUID: formatUUID(testUUID), Name: "web1", Scope: filepath.Base(cgroup), Cgroup: cgroup}, nil)
		if err := os.Mkdir(i.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		gaveUp(t, "init", began, i.Kill(t.Context()), "web1 was killed but has not ended yet: systemd has not removed its cgroup "+cgroup)
		if rec, err := loadRecord(i.dir); err != nil || (Exit{Cause: ExitCrash}).of(rec).Cause != ExitKilled {
			t.Errorf("noted %+v, %v", rec, err)
		}
		close(i.exited)
		began = time.Now()
		gaveUp(t, "cgroup", began, i.Kill(t.Context()), "has not ended yet")
		began = time.Now()
		gaveUp(t, "release", began, i.Release(t.Context()), "clean up after web1: "+filepath.Base(cgroup)+" was killed but has not ended yet")
	})
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("web1 was killed but has not ended yet: process %d (%q) is still ending: try again later", cmd.Process.Pid, "sleep")
	if err := errNotEnded("web1", cgroup, context.DeadlineExceeded); err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
