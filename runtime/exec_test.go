package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// run has this host's shell in the place of a program inside.
func (s *streams) run(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	return s.start(t, exec.Command("/bin/sh", "-c", script))
}

func (s *streams) start(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.program[0], s.program[1], s.program[2]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.begin()
	return cmd
}

func TestStreams(t *testing.T) {
	var out, errs bytes.Buffer
	long := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		command           Command
		script, out, errs string
	}{
		{Command{Stdin: strings.NewReader(long), Stdout: &out, Stderr: &errs}, "cat; echo oops >&2", long, "oops\n"},
		{Command{Stdout: &out, Stderr: &out}, "echo a; echo b >&2; echo c", "a\nb\nc\n", ""},
		{Command{Stdin: strings.NewReader(long)}, "echo nobody reads it; cat >&2", "", ""},
		{Command{Stdin: strings.NewReader(long), Stdout: &out}, "echo does not read", "does not read\n", ""},
		{Command{Stdout: &out}, "cat; wc -c </dev/stdin", "0\n", ""},
	} {
		out.Reset()
		errs.Reset()
		s, err := openStreams(c.command, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.run(t, c.script).Wait(); err != nil {
			t.Fatal(err)
		}
		s.end()
		s.close()
		if out.String() != c.out || errs.String() != c.errs {
			t.Errorf("%s: %.40q and %.40q", c.script, out.String(), errs.String())
		}
	}
}

// TestStreamsOwner: root inside may open again what it was given.
func TestStreamsOwner(t *testing.T) {
	needRoot(t, "only root starts programs of somebody else")
	var out, errs bytes.Buffer
	s, err := openStreams(Command{Stdin: strings.NewReader("text\n"), Stdout: &out, Stderr: &errs}, 100000, 100001)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "cat </dev/stdin >/dev/stdout; echo oops >/dev/stderr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 100000, Gid: 100001}}
	if err := s.start(t, cmd).Wait(); err != nil {
		t.Error(err)
	}
	s.end()
	s.close()
	if out.String() != "text\n" || errs.String() != "oops\n" {
		t.Errorf("%q and %q", out.String(), errs.String())
	}
}

// TestStreamsHeld: a daemon that a program leaves holds its output open. It is
// not waited for, and writes nothing afterwards.
func TestStreamsHeld(t *testing.T) {
	var out bytes.Buffer
	s, err := openStreams(Command{Stdout: &out, Stderr: &out}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := s.run(t, "echo begun; (sleep 60; echo late) &").Wait(); err != nil {
		t.Fatal(err)
	}
	s.end()
	s.close()
	if out.String() != "begun\n" || time.Since(begun) > 20*outputPatience {
		t.Errorf("%q after %s", out.String(), time.Since(begun))
	}
}

// slow takes what it is given later than output may come.
type slow struct{ got int }

func (s *slow) Write(p []byte) (int, error) {
	if s.got == 0 {
		time.Sleep(3 * outputPatience / 2)
	}
	s.got += len(p)
	return len(p), nil
}

// TestStreamsSlow: what a program wrote before it ended reaches a reader who
// takes his time.
func TestStreamsSlow(t *testing.T) {
	out := &slow{}
	s, err := openStreams(Command{Stdout: out}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.run(t, "head -c 90000 /dev/zero; (sleep 60; echo late) &").Wait(); err != nil {
		t.Fatal(err)
	}
	s.end()
	s.close()
	if out.got != 90000 {
		t.Errorf("%d bytes of 90000", out.got)
	}
}

// TestWaitStatus: a signal is told from an exit status that looks like one, and
// what has no end is killed in time.
func TestWaitStatus(t *testing.T) {
	for script, want := range map[string]syscall.WaitStatus{"exit 137": 137 << 8, "kill -9 $$": 9, "exit 0": 0, "exec sleep 1000": 9} {
		cmd := exec.Command("/bin/sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pidfd, err := openPidfd(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		patience := time.Minute
		if strings.Contains(script, "sleep") {
			patience = time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		late := awaitOrKill(ctx, cmd.Process.Pid, pidfd, "no such cgroup")
		if errors.Is(late, context.DeadlineExceeded) != strings.Contains(script, "sleep") {
			t.Errorf("%s: %v", script, late)
		}
		comesTrue(t, script+" does not end", func() bool { return dead(pidfd) }) // which may take longer than it was waited for
		if ws, err := waitStatus(pidfd); err != nil || ws != want {
			t.Errorf("%s: %#x, %v, want %#x", script, ws, err, want)
		}
		cancel()
		pidfd.Close()
		cmd.Process.Release()
	}
}

// TestKillSession: with a program that is given up ends what it has started,
// but no daemon, and nothing of another.
func TestKillSession(t *testing.T) {
	const script = `(trap "" TERM HUP; sleep 1000; sleep 1000) & echo $!; setsid sleep 1000 & echo $!; wait`
	begin := func() *[3]int {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		pids := &[3]int{}
		if err == nil {
			pids[0] = cmd.Process.Pid
			_, err = fmt.Fscan(out, &pids[1], &pids[2])
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, pid := range pids[1:] {
				unix.Kill(pid, unix.SIGKILL)
			}
			cmd.Process.Kill()
			cmd.Wait()
		})
		for sessionOf(pids[2]) == sessionOf(pids[0]) {
			time.Sleep(time.Millisecond)
		}
		return pids
	}
	ours, others := begin(), begin()
	dir := t.TempDir() // for a cgroup
	cgroup, err := filepath.Rel(cgroupRoot, dir)
	if err != nil {
		t.Fatal(err)
	}
	procs := fmt.Sprintln(others[0], others[1], others[2], ours[0], ours[1], ours[2])
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(procs), 0o600); err != nil {
		t.Fatal(err)
	}
	var pidfds []*os.File
	for _, pid := range append(ours[:], others[:]...) {
		pidfd, err := openPidfd(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer pidfd.Close()
		pidfds = append(pidfds, pidfd)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitOrKill(ctx, ours[0], pidfds[0], cgroup); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// On a busy host that may take longer than it was waited for.
	comesTrue(t, "what was killed does not end", func() bool { return dead(pidfds[0]) && dead(pidfds[1]) })
	for n, want := range []bool{true, true, false, false, false, false} {
		if got := dead(pidfds[n]); got != want {
			t.Errorf("process %d of %v and %v has ended: %v, want %v", n, ours, others, got, want)
		}
	}
}
