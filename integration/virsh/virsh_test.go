//go:build vm

// Package virsh drives the daemon the way its users do: with stock virsh, on
// a real kernel. The scripts below testdata/script read as a manual.
//
// `go test -tags vm ./integration/virsh` starts a machine and runs this same
// package in it.
package virsh

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"virtvzd/integration/vm"
)

// inMachine tells which of the two runs this is.
func inMachine() bool { return os.Getenv("VIRTVZD_TEST_ROOTS") != "" }

func TestMain(m *testing.M) {
	if inMachine() {
		os.Exit(m.Run())
	}
	os.Exit(vm.Main(m))
}

// machines is how many run scripts at once. An emulated one is busy with about
// one CPU.
const machines = 2

// TestVirsh runs the scripts in machines, each the next one that no other has
// begun, and reports each.
func TestVirsh(t *testing.T) {
	if inMachine() {
		t.Skip("this is the machine")
	}
	names := scripts(t)
	next := make(chan string, len(names))
	for _, name := range names {
		next <- name
	}
	close(next)
	for n := range machines {
		t.Run(fmt.Sprint("machine", n+1), func(t *testing.T) {
			t.Parallel()
			runScripts(t, next)
		})
	}
}

// scripts are the names of all.
func scripts(t *testing.T) (names []string) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) < machines {
		t.Fatal("there are no scripts", err)
	}
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), ".txtar"))
	}
	return names
}

func runScripts(t *testing.T, names <-chan string) {
	v := vm.Own(t)
	tests, err := v.PackageTests(t.Context(), "./integration/virsh")
	if err != nil {
		t.Fatal(err)
	}
	for name := range names {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 21*time.Minute)
			defer cancel()
			began := time.Now()
			results, err := tests.Results(ctx, "-test.run", "TestScripts/^("+name+")$", "-test.timeout", "20m")
			passed := false
			for _, r := range results {
				t.Log(r.Output)
				passed = passed || r.Name == "TestScripts/"+name && r.Action == "pass"
			}
			t.Logf("%.0f s in the machine", time.Since(began).Seconds())
			if err != nil || !passed {
				t.Error(err)
			}
		})
	}
}

// TestScripts runs in the machine. After each script nothing may be left.
func TestScripts(t *testing.T) {
	if !inMachine() {
		t.Skip("this is not the machine: TestVirsh runs it there")
	}
	roots, have := os.Getenv("VIRTVZD_TEST_ROOTS"), sh(t, "virtvzd template list")
	for _, name := range []string{"busybox", "debian13-systemd", "debian13-sysvinit"} {
		if !strings.Contains(have, name) {
			sh(t, "virtvzd template import "+name+" "+filepath.Join(roots, name+".tar.zst"))
		}
	}
	sh(t, watchCloses)
	for _, name := range scripts(t) {
		script := filepath.Join("testdata/script", name+".txtar")
		t.Run(name, func(t *testing.T) {
			before, began := attached(t), time.Now()
			defer func() { daemonSaid(t, began) }()
			// A test of its own, so that the check comes after the script's end.
			passed := t.Run("script", func(t *testing.T) {
				testscript.Run(t, testscript.Params{Files: []string{script}, Setup: setup, Cmds: commands})
			})
			if running := strings.Fields(sh(t, "virsh -c vz:///system list --name || true")); passed && len(running) > 0 {
				t.Errorf("the script leaves running: %v", running)
			}
			removeAll(t)
			var left string
			for range 300 {
				if left = leftovers(t) + added(before, attached(t)); left == "" {
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
			t.Error("left behind:\n" + left)
		})
	}
}

func setup(env *testscript.Env) error {
	tools, err := filepath.Abs("testdata/bin")
	if err != nil {
		return err
	}
	env.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin:"+tools)
	env.Setenv("LIBVIRT_DEFAULT_URI", "vz:///system")
	env.Setenv("LC_ALL", "C")
	env.Setenv("VIRTVZD_TEST_ROOTS", os.Getenv("VIRTVZD_TEST_ROOTS"))
	demo, err := filepath.Abs("../demo.sh")
	env.Setenv("DEMO", demo)
	return err
}

// crashed matches what the daemon, or systemd of it, says when it ends by a
// defect of its own. Scripts kill it, which is none.
var crashed = regexp.MustCompile(`(?m)(panic: |fatal error: |SIG(SEGV|BUS|ABRT)|[Ww]atchdog timeout|status=2/).*$`)

// watchCloses has the kernel note each descriptor that a thread of the daemon
// closes and that is not open. The number may be another client's by then, who
// would be cut off without a word.
const watchCloses = `mkdir -p /sys/kernel/tracing/instances/closes && cd /sys/kernel/tracing/instances/closes
echo 'ret == -9 && COMM == "virtvzd"' >events/syscalls/sys_exit_close/filter
echo 1 >events/syscalls/sys_exit_close/enable
echo >trace`

// daemonSaid fails a script during which the daemon crashed: systemd starts it
// again, and the clients that come after would notice nothing. Of a script that
// failed it shows what the daemon said.
func daemonSaid(t *testing.T, since time.Time) {
	said := sh(t, fmt.Sprintf("journalctl -u virtvzd --since=@%d -o short --no-hostname --no-pager -q", since.Unix()))
	tail := max(0, len(said)-8000)
	if at := crashed.FindStringIndex(said); at != nil {
		t.Error("the daemon crashed:", said[at[0]:at[1]])
		tail = min(tail, at[0])
	}
	if closed := sh(t, "grep -v '^#' /sys/kernel/tracing/instances/closes/trace || true"); closed != "" {
		t.Errorf("the daemon closed what was not open:\n%s", closed)
		sh(t, watchCloses)
	}
	if t.Failed() {
		t.Logf("the daemon's journal:\n%s", said[tail:])
	}
}

// leftovers is what environments leave on a host when something goes wrong.
func leftovers(t *testing.T) string {
	t.Helper()
	return sh(t, `
systemctl list-units --all --plain --no-legend 'machine-vz*' | awk '{print "unit", $1}'
grep -E 'libvirt/vz/' /proc/self/mountinfo | grep -v ' /var/lib/libvirt/vz ' | awk '{print "mount", $5}'
ls /run/libvirt/vz | grep -E '^[0-9a-f]{8}-' | sed 's/^/state /'
ls /run/libvirt/vz/status | sed 's/^/status /'
ls /run/libvirt/vz/crun /run/crun 2>/dev/null | grep -E '^[0-9a-f]{8}-' | sed 's/^/crun /'
ls /etc/libvirt/vz/*.xml /etc/libvirt/vz/autostart/* 2>/dev/null
machinectl list --no-legend | grep '^vz-'
ip -o link | grep -oE ' (vnet|macvlan)[0-9]+' | sed 's/^/link/'
ip neigh show proxy; ip -6 neigh show proxy
ls -d /run/libvirt/vz/ports 2>/dev/null
lsns -n -o TYPE,NS,PID | while read type ns pid; do grep -q machine-vz /proc/$pid/cgroup 2>/dev/null && echo "namespace $type $ns"; done
systemctl list-units --all --plain --no-legend 'virtvzd-*.service' | awk '{print "unit", $1}'
daemon=$(systemctl show -P MainPID virtvzd)
find /proc/$daemon/fd -printf '%l\n' 2>/dev/null | grep -E 'ptmx|/dev/pts|pidfd|^(net|mnt|user|pid|uts|ipc|cgroup):|/dev/(nbd|loop)|/libvirt/vz/.' | sed 's/^/the daemon holds /'
systemctl show -P NFileDescriptorStore virtvzd | sed '/^0$/d; s/$/ descriptors in the store/'
true`)
}

// attached is what a host may have of its own as well: block devices with
// something behind them, namespaces that are kept without a process.
func attached(t *testing.T) []string {
	t.Helper()
	return strings.Split(sh(t, `
losetup -n -O NAME,BACK-FILE | sed 's/^/loop device /'
for pid in /sys/block/nbd*/pid; do [ ! -e $pid ] || echo "nbd device $pid"; done
grep ' - nsfs ' /proc/self/mountinfo | awk '{print "namespace", $4, $5}'
true`), "\n")
}

// added are the lines of after that are not in before.
func added(before, after []string) string {
	return strings.Join(slices.DeleteFunc(after, func(line string) bool { return slices.Contains(before, line) }), "\n")
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// removeAll ends what a failed script left running, and puts back what it had
// taken from the host, so that one failure is not many.
func removeAll(t *testing.T) {
	sh(t, `! mountpoint -q /etc/libvirt/vz || umount /etc/libvirt/vz
! findmnt -n -o SOURCE -M /var/lib/libvirt/vz | tail -1 | grep -q loop || umount -l /var/lib/libvirt/vz
[ ! -e /usr/bin/crun.away ] || mv /usr/bin/crun.away /usr/bin/crun
systemctl start dbus.socket; systemctl reset-failed virtvzd.service; systemctl start virtvzd.service`)
	defer exec.Command("sh", "-c", `for n in $(virsh -c network:///system net-list --all --name); do
	virsh -c network:///system net-destroy $n; [ $n = default ] || virsh -c network:///system net-undefine $n
done
for p in $(virsh -c storage:///system pool-list --all --name); do virsh -c storage:///system "pool-destroy $p; pool-undefine $p"; done
for n in lan0 out0 br-churn br-rate; do ip link del $n; done; ip netns del far`).Run()
	for _, name := range strings.Fields(sh(t, "virsh -c vz:///system list --all --name")) {
		exec.Command("virsh", "-c", "vz:///system", "destroy", name).Run()
		exec.Command("virsh", "-c", "vz:///system", "undefine", "--snapshots-metadata", "--managed-save", name).Run()
	}
}

// commands are what the scripts can do besides exec.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"until": until, "domain": domain,
}

// until repeats a command until it succeeds and prints what is expected:
// until 60s 'running' virsh domstate web1
// With ! the command fails when what is expected has come; without, an error
// that repeats it does not count.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: [!] until DURATION TEXT COMMAND…")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Millisecond) {
		cmd := exec.Command("env", args[2:]...) // finds it in the PATH of the script
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = append(os.Environ(), "LIBVIRT_DEFAULT_URI=vz:///system", "LC_ALL=C", "PATH="+ts.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if (err != nil) == neg && strings.Contains(string(out), args[1]) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s did not print %q within %s: %v\n%s", strings.Join(args[2:], " "), args[1], limit, err, out)
		}
	}
}

// domain defines a plain domain from a template:
// domain web1 busybox MEMORY_MIB [ELEMENT…]
func domain(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: domain NAME TEMPLATE MIB [ELEMENT…]")
	}
	doc := fmt.Sprintf(`<domain type='vz'><name>%s</name><memory unit='MiB'>%s</memory>%s
<devices><filesystem type='template'><source name='%s'/><target dir='/'/></filesystem></devices></domain>`,
		args[0], args[2], strings.Join(args[3:], ""), args[1])
	path := ts.MkAbs(args[0] + ".xml")
	ts.Check(os.WriteFile(path, []byte(doc), 0o600))
	ts.Check(ts.Exec("virsh", "define", path))
}
