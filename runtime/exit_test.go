package runtime

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	goruntime "runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestExitOf(t *testing.T) {
	tests := []struct {
		status syscall.WaitStatus
		want   ExitCause
	}{
		{0, ExitPoweroff},
		{3 << 8, ExitCrash},
		{syscall.WaitStatus(syscall.SIGHUP), ExitReboot},
		{syscall.WaitStatus(syscall.SIGINT), ExitPoweroff},
		{syscall.WaitStatus(syscall.SIGKILL), ExitCrash},
		{syscall.WaitStatus(syscall.SIGSEGV) | 0x80, ExitCrash},
	}
	for _, test := range tests {
		if got := exitOf(test.status); got.Cause != test.want {
			t.Errorf("%#x: %v, want %v", test.status, got, test.want)
		}
	}
}

func TestPidfd(t *testing.T) {
	// Who is started in the background of a script ignores SIGINT, and so does what
	// it starts, unless it listens to it itself.
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGHUP, syscall.SIGINT)
	defer signal.Stop(heard)
	for script, want := range map[string]Exit{
		"exit 0":        {Cause: ExitPoweroff},
		"exit 7":        {Cause: ExitCrash, Status: 7},
		"kill -HUP $$":  {Cause: ExitReboot, Signal: syscall.SIGHUP},
		"kill -INT $$":  {Cause: ExitPoweroff, Signal: syscall.SIGINT},
		"kill -SEGV $$": {Cause: ExitCrash, Signal: syscall.SIGSEGV},
	} {
		cmd := exec.Command("sh", "-c", "read x; "+script)
		in, _ := cmd.StdinPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children.add(cmd.Process.Pid)
		if _, err := openPidfd(cmd.Process.Pid, startTime(cmd.Process.Pid)+1); err == nil {
			t.Error("another start time is accepted")
		}
		pidfd, err := openPidfd(cmd.Process.Pid, startTime(cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if dead(pidfd) {
			t.Error("dead before it ended")
		}
		done := make(chan bool)
		go func() { done <- awaitExit(pidfd) }()
		time.Sleep(5 * time.Millisecond)
		in.Write([]byte("\n"))
		if !<-done {
			t.Error("not waited for")
		}
		if got := collect(pidfd); got != want {
			t.Errorf("%s: %v, want %v", script, got, want)
		}
		pidfd.Close()
		children.remove(cmd.Process.Pid)
	}
}

// TestTracedEnd: an init that is killed while another process traces it, as CRIU
// does when it dumps, has not powered off.
func TestTracedEnd(t *testing.T) {
	needRoot(t, "tracing")
	if text := os.Getenv("TEST_TRACED"); text != "" {
		goruntime.LockOSThread()
		pid, _ := strconv.Atoi(text)
		if err := unix.PtraceSeize(pid); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("traced\n")
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	children.add(cmd.Process.Pid)
	defer children.remove(cmd.Process.Pid)
	pidfd, err := openPidfd(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	tracer := exec.Command(os.Args[0], "-test.run=^TestTracedEnd$")
	tracer.Env = append(os.Environ(), fmt.Sprint("TEST_TRACED=", cmd.Process.Pid))
	in, _ := tracer.StdinPipe()
	out, _ := tracer.StdoutPipe()
	if err := tracer.Start(); err != nil {
		t.Fatal(err)
	}
	defer tracer.Wait()
	defer in.Close()
	said := make([]byte, 100)
	if n, err := out.Read(said); err != nil || string(said[:n]) != "traced\n" {
		t.Fatalf("%q, %v", said[:n], err)
	}
	syscall.Kill(cmd.Process.Pid, syscall.SIGKILL)
	if !awaitExit(pidfd) {
		t.Fatal("not waited for")
	}
	time.AfterFunc(100*time.Millisecond, func() { in.Close() })
	if got, want := collect(pidfd), (Exit{Cause: ExitCrash, Signal: syscall.SIGKILL}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestAwaitExitEndsOnClose(t *testing.T) {
	pidfd, err := openPidfd(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	go func() { done <- awaitExit(pidfd) }()
	time.Sleep(10 * time.Millisecond)
	pidfd.Close()
	if <-done {
		t.Error("our own end was seen")
	}
}

// The reaper takes an orphan and leaves the child of os/exec.
func TestReaper(t *testing.T) {
	r := reaper{seen: map[int]zombie{}}
	mine := exec.Command("true")
	known := exec.Command("true")
	for _, c := range []*exec.Cmd{mine, known} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	children.add(known.Process.Pid)
	for processState(mine.Process.Pid) != 'Z' || processState(known.Process.Pid) != 'Z' {
		time.Sleep(time.Millisecond)
	}
	now := time.Now()
	if !r.sweep(now) {
		t.Error("no zombie was seen")
	}
	if r.sweep(now.Add(orphanAge / 2)); processState(mine.Process.Pid) != 'Z' {
		t.Error("reaped too early")
	}
	r.sweep(now.Add(orphanAge))
	if processState(mine.Process.Pid) != 0 {
		t.Error("an orphan is not reaped")
	}
	mine.Wait()
	if err := known.Wait(); err != nil {
		t.Errorf("a known child was taken away: %v", err)
	}
	children.remove(known.Process.Pid)
	if r.sweep(now.Add(2 * orphanAge)) {
		t.Error("something is left")
	}
}
