package systemd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket is systemd's end of NOTIFY_SOCKET.
func notifySocket(t *testing.T, name string) (*Service, *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	l.SetReadDeadline(time.Now().Add(10 * time.Second))
	t.Setenv("NOTIFY_SOCKET", name)
	s, err := Inherit()
	must(t, err)
	return s, l
}

// receive returns a notification and the descriptor that came with it, or -1.
func receive(t *testing.T, l *net.UnixConn) (string, int) {
	t.Helper()
	message, control := make([]byte, 4096), make([]byte, 4096)
	n, oobn, _, _, err := l.ReadMsgUnix(message, control)
	must(t, err)
	if oobn == 0 {
		return string(message[:n]), -1
	}
	parsed, err := unix.ParseSocketControlMessage(control[:oobn])
	must(t, err)
	fds, err := unix.ParseUnixRights(&parsed[0])
	must(t, err)
	if len(fds) != 1 {
		t.Fatalf("%d descriptors", len(fds))
	}
	return string(message[:n]), fds[0]
}

func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), fmt.Sprintf("@virtvzd-test-%d", os.Getpid())} {
		s, l := notifySocket(t, name)
		if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
			t.Errorf("children would see NOTIFY_SOCKET=%s", v)
		}
		if !s.Managed() {
			t.Error("not managed")
		}
		for _, c := range []struct {
			send func() error
			want string
		}{
			{s.Ready, "^READY=1$"}, {s.Stopping, "^STOPPING=1$"}, {s.Alive, "^WATCHDOG=1$"}, {s.Reloading, `^RELOADING=1\nMONOTONIC_USEC=[1-9]\d+$`},
			{func() error { return s.Status("2 running\nREADY=1") }, "^STATUS=2 running READY=1$"},
			{func() error { return s.Remove("console-a") }, "^FDSTOREREMOVE=1\nFDNAME=console-a$"},
		} {
			must(t, c.send())
			if got, _ := receive(t, l); !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("got %q, want %s", got, c.want)
			}
		}
	}
}

func TestStore(t *testing.T) {
	s, l := notifySocket(t, filepath.Join(t.TempDir(), "n"))
	f, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer f.Close()
	must(t, s.Store("console 1", f))
	got, fd := receive(t, l)
	if got != "FDSTORE=1\nFDNAME=console 1\nFDPOLL=0" || fd < 0 {
		t.Fatalf("got %q, %d", got, fd)
	}
	defer unix.Close(fd)
	var a, b unix.Stat_t
	must(t, unix.Fstat(fd, &a))
	must(t, unix.Stat(f.Name(), &b))
	if a.Ino != b.Ino {
		t.Error("another file arrived")
	}
	for _, bad := range []string{"", "a:b", "new\nline", "\x7f", "ä", strings.Repeat("x", 256)} {
		if s.Store(bad, f) == nil || s.Remove(bad) == nil {
			t.Errorf("accepted the name %q", bad)
		}
	}
	f.Close()
	if s.Store("closed", f) == nil {
		t.Error("stored a closed file")
	}
}

func TestBarrier(t *testing.T) {
	s, l := notifySocket(t, filepath.Join(t.TempDir(), "n"))
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Barrier(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody closed it, got %v", err)
	}
	_, fd := receive(t, l)
	unix.Close(fd)
	done := make(chan error, 1)
	go func() { done <- s.Barrier(t.Context()) }()
	got, fd := receive(t, l)
	if got != "BARRIER=1" {
		t.Errorf("got %q", got)
	}
	select {
	case err := <-done:
		t.Errorf("returned early: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	unix.Close(fd)
	must(t, <-done)
}

func TestUnmanaged(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	s, err := Inherit()
	must(t, err)
	must(t, s.Ready())
	must(t, s.Store("a", os.Stderr))
	must(t, s.Barrier(t.Context()))
	if s.Managed() || s.Watchdog() != 0 || len(s.Sockets())+len(s.Stored()) != 0 {
		t.Errorf("got %+v", s)
	}
}

func TestSocketGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	s, err := Inherit()
	must(t, err)
	if err := s.Ready(); err == nil || !strings.Contains(err.Error(), "READY=1") {
		t.Errorf("got %v", err)
	}
}

func TestWatchdog(t *testing.T) {
	for pid, want := range map[string]time.Duration{"": 30 * time.Second, fmt.Sprint(os.Getpid()): 30 * time.Second, "1": 0} {
		t.Setenv("WATCHDOG_USEC", "30000000")
		t.Setenv("WATCHDOG_PID", pid)
		s, err := Inherit()
		must(t, err)
		if s.Watchdog() != want {
			t.Errorf("WATCHDOG_PID=%q: %v", pid, s.Watchdog())
		}
	}
}

// Descriptors begin at 3, so what they are can only be seen by a process of its own.
func TestInheritDescriptors(t *testing.T) {
	if os.Getenv("INHERIT_HELPER") != "" {
		inheritHelper()
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	defer l.Close()
	socket, err := l.(*net.UnixListener).File()
	must(t, err)
	defer socket.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	connected := os.NewFile(uintptr(pair[0]), "")
	defer connected.Close()
	defer unix.Close(pair[1])

	for env, want := range map[string]string{
		"LISTEN_FDS=3 LISTEN_FDNAMES=virtvzd.socket:console-a:stored": "socket virtvzd.socket; stored console-a; stored stored; child sees 0",
		"LISTEN_FDS=3 LISTEN_FDNAMES=one":                             "socket one; stored ; stored ; child sees 0",
		"LISTEN_FDS=0":                                                "child sees 3",
		"LISTEN_FDS=3 LISTEN_PID=1":                                   "child sees 3",
		"LISTEN_FDS=many":                                             `LISTEN_FDS="many" is no number of descriptors; child sees 3`,
		"LISTEN_FDS=-1":                                               `LISTEN_FDS="-1" is no number of descriptors; child sees 3`,
		"LISTEN_FDS=60000 LISTEN_FDNAMES=virtvzd.socket:console-a:console-b:x": "of the 60000",
	} {
		// The shell gives the process its own pid, which LISTEN_PID has to hold, and keeps it through exec.
		cmd := exec.Command("sh", "-c", `export LISTEN_PID=$$ `+env+` INHERIT_HELPER=1; exec "$0" -test.run=TestInheritDescriptors`, os.Args[0])
		cmd.ExtraFiles = []*os.File{socket, r, connected}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: got %q, %v", env, out, err)
		}
	}
}

func inheritHelper() {
	s, err := Inherit()
	var got []string
	if err != nil {
		got = append(got, err.Error())
	}
	for _, f := range s.Sockets() {
		got = append(got, "socket "+f.Name)
	}
	for _, f := range s.Stored() {
		got = append(got, "stored "+f.Name)
	}
	// Which of 3, 4 and 5 a child still has.
	out, _ := exec.Command("sh", "-c", `n=0; for i in 3 4 5; do [ -e /proc/$$/fd/$i ] && n=$((n+1)); done; echo $n`).Output()
	fmt.Println(strings.Join(append(got, "child sees "+strings.TrimSpace(string(out))), "; "))
	os.Exit(0)
}
