//go:build vm

// Package gui drives the daemon with an unmodified virt-manager, by mouse and
// keyboard. The scripts of testdata read as what a user does.
//
// The daemon is in a machine, that of another host in a second one. virt-manager
// runs on this host in a Debian 13 root of its own (see recipe), which is much
// faster than in an emulated machine, and reaches both by their sockets,
// forwarded.
package gui

import (
	"bufio"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"virtvzd/integration/vm"
)

//go:embed all:recipe
var recipe embed.FS

// scripts are what is done, in this order: each goes on where the one before
// it ended.
var scripts = strings.Fields(`connect create console graphs resources hardware autostart lifecycle
	editxml snapshots clone rename delete host migrate`)

func TestVirtManager(t *testing.T) {
	root, err := vm.Made(t.Context(), "gui", recipe)
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := vm.StartPair(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hosts.Close)
	m := hosts.A
	m.Sh(t, `virtvzd template import debian13 `+vm.Roots+`/debian13-sysvinit.tar.zst
virtvzd template import busybox `+vm.Roots+`/busybox.tar.zst
virsh -c network:///system net-start default`)
	sockets := make([]string, 2)
	for n, host := range []*vm.VM{hosts.A, hosts.B} {
		if sockets[n], err = host.Forward(t.Context(), "/run/libvirt/virtvzd-sock"); err != nil {
			t.Fatal(err)
		}
	}
	out := pictures(t)
	desk := enter(t, filepath.Join(root, "root"), sockets, out)
	for _, name := range scripts {
		if !t.Run(name, func(t *testing.T) { desk.run(t, name) }) {
			break // the next ones stand on it
		}
	}
	complaints(t, filepath.Join(out, "virt-manager.log"))
	if t.Failed() {
		t.Logf("pictures and logs are in %s\n%s", out, m.Sh(t, "journalctl -u virtvzd -n 40 -o cat --no-pager"))
	}
}

// pictures is where the screenshots and logs go: $VIRTVZD_GUI_OUT, which is
// kept, or a directory that is removed unless the test fails.
func pictures(t *testing.T) string {
	if dir := os.Getenv("VIRTVZD_GUI_OUT"); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir, err := os.MkdirTemp("", "virt-manager-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	return dir
}

// session is a desktop with virt-manager on it, see testdata/session.py.
type session struct {
	ask    io.Writer
	answer *bufio.Reader
}

// enter starts a session in root, with the sockets of two hosts. It ends with
// the test, and with this process.
func enter(t *testing.T, root string, sockets []string, out string) *session {
	scripts, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "sh", "enter.sh", root, sockets[0], sockets[1], scripts, out,
		"dbus-run-session", "--", "python3", "-B", "/srv/session.py")
	// The first process of the namespace takes all others along.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	log, err := os.Create(filepath.Join(out, "session.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Answers have a descriptor of their own: services of the bus print, too.
	answers, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{write}
	runtime.LockOSThread() // the death signal comes when the thread that started it ends
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		answers.Close()
		log.Close()
		runtime.UnlockOSThread()
	})
	return &session{stdin, bufio.NewReader(answers)}
}

// run runs testdata/NAME.py on the desktop.
func (s *session) run(t *testing.T, name string) {
	if _, err := fmt.Fprintln(s.ask, name); err != nil {
		t.Fatal(err)
	}
	line, err := s.answer.ReadBytes('\n')
	if err != nil {
		t.Fatal("the desktop ended: ", err)
	}
	var result struct {
		OK      bool
		Seconds float64
		Output  string
	}
	if err := json.Unmarshal(line, &result); err != nil {
		t.Fatalf("%v in %s", err, line)
	}
	t.Logf("%.0f s\n%s", result.Seconds, result.Output)
	if !result.OK {
		t.Fail()
	}
}

// complaint is what virt-manager logs when something is wrong. What GTK says of
// itself is not about the daemon.
var complaint = regexp.MustCompile(`^\[.*?\] (WARNING|ERROR|CRITICAL) |^Traceback|libvirtError|Uncaught exception|^summary=`)

// expected is its message for what it does not change while something runs.
const expected = "summary=These changes will take effect after the next guest shutdown."

// gone is what it logs when it asks for the job of a domain that it has moved,
// with its definition, just before it hears that: of any driver's.
var gone = regexp.MustCompile(`(?m)^\[.*\] ERROR \(domain:\d+\) Error calling jobinfo\nTraceback .*\n(?: .*\n)*libvirt\.libvirtError: Domain not found: .* \(mover\)\n`)

// lived are lines of a log in which virt-manager did something: without them
// that nothing is wrong says nothing.
var lived = []*regexp.Regexp{
	regexp.MustCompile(`virt-manager version: 5\.0`),
	regexp.MustCompile(`conn=vz:///system changed to state=Active`),
}

// complaints fails for each complaint in virt-manager's log.
func complaints(t *testing.T, log string) {
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lived {
		if !line.Match(text) {
			t.Errorf("virt-manager's log has nothing like %q: is it the log?", line)
		}
	}
	for line := range strings.Lines(gone.ReplaceAllString(string(text), "")) {
		if complaint.MatchString(line) && strings.TrimSpace(line) != expected {
			t.Errorf("virt-manager's log: %s", line)
		}
	}
}
