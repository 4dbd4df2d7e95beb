//go:build vm

// Package migrate moves environments between two machines that are joined by a
// network, driven by stock virsh from this one, which is neither of them. The
// scripts below testdata/script read as a manual.
package migrate

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"virtvzd/integration/vm"
)

// hosts are the two machines, a and b. Environments have the addresses on their
// Ethernet that their definitions say.
type hosts struct {
	*vm.Pair
	ssh map[string]string // the client that libvirt runs, by host
	dir string            // of these

	mu     sync.Mutex
	client *exec.Cmd // virsh that asked for the last migration
}

var both *hosts

// addresses are those of the hosts (vm.Pair).
var addresses = map[string]string{"a": "10.99.0.1", "b": "10.99.0.2"}

func TestMain(m *testing.M) {
	code := m.Run()
	if both != nil {
		both.Close()
		os.RemoveAll(both.dir)
	}
	os.Exit(code)
}

// pair starts both machines once.
func pair(t testing.TB) *hosts {
	t.Helper()
	if both != nil {
		return both
	}
	// Not a test's context: the machines outlive the test that is first.
	p, err := vm.StartPair(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	h := &hosts{Pair: p, ssh: map[string]string{}}
	if h.dir, err = os.MkdirTemp("", "migrate"); err != nil {
		t.Fatal(err)
	}
	both = h
	for name, v := range h.all() {
		h.ssh[name] = filepath.Join(h.dir, "ssh-"+name)
		text := "#!/bin/sh\nexec '" + strings.Join(v.SSH(), "' '") + "' \"$@\"\n"
		if err := os.WriteFile(h.ssh[name], []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.A.Sh(t, "virtvzd template import busybox "+vm.Roots+"/busybox.tar.zst")
	return h
}

func (h *hosts) all() map[string]*vm.VM { return map[string]*vm.VM{"a": h.A, "b": h.B} }

// uri is how this machine reaches the daemon of one of them.
func (h *hosts) uri(name string) string {
	return fmt.Sprintf("vz+ssh://root@127.0.0.1:%d/system?command=%s&no_tty=1", h.all()[name].Port, h.ssh[name])
}

// long are scripts that are left out where time is short.
var long = []string{"live", "offline", "options", "shared", "tls"}

// TestScripts runs the scripts. After each nothing is left on either machine.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no scripts", err)
	}
	h := pair(t)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		if testing.Short() && slices.Contains(long, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Run("script", func(t *testing.T) {
				testscript.Run(t, testscript.Params{Files: []string{file}, Setup: h.setup, Cmds: h.commands()})
			})
			h.nothingLeft(t)
		})
	}
}

func (h *hosts) setup(env *testscript.Env) error {
	env.Setenv("A", h.uri("a"))
	env.Setenv("B", h.uri("b"))
	env.Setenv("SSH_A", h.ssh["a"]+" root@127.0.0.1")
	env.Setenv("SSH_B", h.ssh["b"]+" root@127.0.0.1")
	env.Setenv("LC_ALL", "C")
	env.Setenv("HOME", env.WorkDir) // of virsh's history
	return nil
}

func (h *hosts) commands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"a": h.on("a"), "b": h.on("b"), "push": h.push, "pull": h.pull, "until": until, "certify": certify,
	}
}

// push copies a file of the script's to a machine: push a web1.xml /root/web1.xml
func (h *hosts) push(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 || h.all()[args[0]] == nil {
		ts.Fatalf("usage: push HOST FILE PATH")
	}
	ts.Check(h.all()[args[0]].Push(context.Background(), ts.MkAbs(args[1]), args[2]))
}

// on runs a shell command on a machine: a 'virsh -c vz:///system list'
func (h *hosts) on(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		argv := append(h.all()[name].SSH("root@127.0.0.1"), "LIBVIRT_DEFAULT_URI=vz:///system; export LIBVIRT_DEFAULT_URI; "+strings.Join(args, " "))
		err := ts.Exec(argv[0], argv[1:]...)
		switch {
		case err != nil && !neg:
			ts.Fatalf("%v", err)
		case err == nil && neg:
			ts.Fatalf("it succeeded")
		}
	}
}

// pull copies one to the script: pull a /root/web1.xml web1.xml
func (h *hosts) pull(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 || h.all()[args[0]] == nil {
		ts.Fatalf("usage: pull HOST PATH FILE")
	}
	ts.Check(h.all()[args[0]].Pull(context.Background(), args[1], ts.MkAbs(args[2])))
}

// until repeats a command of the script's until it succeeds and prints what is
// expected:
// until 60s 'running' virsh -c $A domstate web1
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: until DURATION TEXT COMMAND…")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	for end := time.Now().Add(limit); ; time.Sleep(time.Second) {
		cmd := exec.Command(args[2], args[3:]...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		for _, name := range []string{"A", "B", "SSH_A", "SSH_B"} {
			cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
		}
		out, err := cmd.CombinedOutput()
		if err == nil && strings.Contains(string(out), args[1]) { // an error may repeat the command
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s did not print %q within %s:\n%s", strings.Join(args[2:], " "), args[1], limit, out)
		}
	}
}

// leftovers is what an environment that moved, or did not, leaves on a host.
const leftovers = `
systemctl list-units --all --plain --no-legend 'machine-vz*' 'virtvzd-*' | grep -v -e '^virtvzd[.-]*\(ro\|admin\)*\.\(socket\|service\)' | awk '{print "unit", $1}'
ls /run/libvirt/vz | grep -E '^[0-9a-f]{8}-' | sed 's/^/state /'
ls /run/libvirt/vz/status | sed 's/^/status /'
ls /run/libvirt/vz/crun 2>/dev/null | grep -E '^[0-9a-f]{8}-' | sed 's/^/crun /'
ls /etc/libvirt/vz/*.xml 2>/dev/null
ls -A /var/lib/libvirt/vz/private /var/lib/libvirt/vz/save /var/lib/libvirt/vz/layers 2>/dev/null | grep -v -e : -e '^$' -e '^\.lock$' | sed 's/^/disk /'
ls -A /var/lib/libvirt/vz/migration/* 2>/dev/null | grep -v -e : -e '^$' -e '^session\.json$' | sed 's/^/migration /'
ls -A /var/lib/libvirt/vz/leaving 2>/dev/null | sed 's/^/leaving /'
ip -o link | grep -oE ' (vnet|vz)[0-9-]+' | sed 's/^/link/'
ls -d /sys/fs/cgroup/system.slice/virtvzd.service/virtvzd-restore-* 2>/dev/null
pgrep -a criu
find /srv -name '.virtvzd-*'
cat /run/virtvzd-fault 2>/dev/null
true`

// left waits until nothing is left on a host, and tells what is then. What ends
// there, and is removed, is not waited for by whoever asked for it.
func left(t *testing.T, v *vm.VM) string {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Second) {
		if left := v.Sh(t, leftovers); left == "" || time.Now().After(end) {
			return left
		}
	}
}

// nothingLeft ends what a script left, after saying so.
func (h *hosts) nothingLeft(t *testing.T) {
	t.Helper()
	for name, v := range h.all() {
		if left := left(t, v); left != "" {
			t.Errorf("left on %s:\n%s\n%s", name, left, v.Sh(t, "journalctl -u virtvzd -n 40 -o cat --no-pager"))
		}
		v.Sh(t, `rm -f /run/virtvzd-fault; systemctl start virtvzd.service
for d in $(virsh -c vz:///system list --all --name); do
	virsh -c vz:///system destroy $d; virsh -c vz:///system undefine --snapshots-metadata $d
done >/dev/null 2>&1
for r in $(virtvzd root list 2>/dev/null | awk 'NR>1 {print $1}'); do virtvzd root rm $r; done >/dev/null 2>&1
true`)
	}
}
