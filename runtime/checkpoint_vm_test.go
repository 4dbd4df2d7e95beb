//go:build vm

package runtime

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"virtvzd/xml"
)

func vmExec(t *testing.T, i *Instance, script string) string {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	status, err := i.Exec(ctx, Command{Args: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &errs})
	if err != nil || status != 0 {
		t.Fatalf("%s: status %d, %v: %s", script, status, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// vmCheckpoint has an environment checkpointed and ended; the directory is for
// StartOptions.
func vmCheckpoint(t *testing.T, r *Runtime, i *Instance, interfaces []xml.Interface) string {
	t.Helper()
	dir, err := os.MkdirTemp(vmData, "checkpoint-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.RemoveAll(dir + "-kept")
		}
	})
	if err := i.Checkpoint(t.Context(), dir, interfaces, true); err != nil {
		log, _ := exec.Command("sh", "-c", "grep -hE 'Error|Warn' "+dir+"/work/*.log").Output()
		t.Fatalf("%v\n%s", err, log)
	}
	if frozen, err := i.Frozen(); !frozen || err != nil {
		t.Errorf("frozen %v, %v", frozen, err)
	}
	// What belongs to the environment goes with it.
	kept := dir + "-kept"
	if err := os.Rename(dir, kept); err != nil {
		t.Fatal(err)
	}
	vmGone(t, i)
	return kept
}

// vmGone ends an environment and keeps its disk.
func vmGone(t *testing.T, i *Instance) {
	t.Helper()
	if err := i.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := i.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

func vmRestore(t *testing.T, r *Runtime, env *xml.Environment, o StartOptions) *Instance {
	t.Helper()
	i, err := r.Start(t.Context(), env, o)
	if err != nil {
		log, _ := exec.Command("sh", "-c", "tail -n 40 "+o.Checkpoint+"/work/restore.log").Output()
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() { vmEnd(t, r, i) })
	return i
}

// counting begins a process inside that counts in its own memory, and says how
// far it is when it is asked to.
const counting = `mkdir -p /run/counter; cd /run/counter; cat > count <<'END'
n=0
trap 'echo $n > asked' USR1
while :; do n=$((n+1)); [ $n != 1 ] || echo > ready; sleep 0.05; done
END
setsid sh count </dev/null >/dev/null 2>&1 & echo $! > pid; until [ -e ready ]; do sleep 0.1; done`

const counted = `cd /run/counter; rm -f asked; kill -USR1 $(cat pid); until [ -s asked ]; do sleep 0.1; done; cat asked`

// TestCheckpoint: processes go on where they were, with their memory and in
// their cgroups, and so does the connection of one.
func TestCheckpoint(t *testing.T) {
	r := vmRuntime(t)
	for _, template := range []string{"busybox", "debian13-systemd"} {
		t.Run(template, func(t *testing.T) {
			env := vmEnvironment(t, template)
			env.Interfaces = vmInterfaces()[:2]
			env.Interfaces[0].Routes = []xml.Route{{To: netip.MustParsePrefix("203.0.113.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}}
			i := vmStart(t, r, env, StartOptions{})
			next := func(*Instance, int) {}
			if template == "debian13-systemd" {
				eventually(t, i, 240*time.Second, "systemctl is-system-running", "running")
				next = keptTalk(t, i)
			}
			vmExec(t, i, counting)
			next(i, 5)
			before, _ := strconv.Atoi(vmExec(t, i, counted))
			groups := vmExec(t, i, "find /sys/fs/cgroup -type d | sort; cat $(find /sys/fs/cgroup -name cgroup.subtree_control | sort)")
			wires := vmExec(t, i, "ip addr; ip route; ip -6 route | sort")

			var dir string
			for range 2 { // once more from what was restored
				dir = vmCheckpoint(t, r, i, env.Interfaces)
				early := ""
				atStep = func(step string) error {
					if step == "run" {
						early = vmPlugged()
					}
					return nil
				}
				i = vmRestore(t, r, env, StartOptions{Checkpoint: dir})
				atStep = func(string) error { return nil }
				if early != "" || vmPlugged() == "" {
					t.Errorf("connected before its processes are there:\n%s\nand after:\n%s", early, vmPlugged())
				}
				next(i, 5)
			}
			after, _ := strconv.Atoi(vmExec(t, i, counted))
			if before == 0 || after <= before {
				t.Errorf("the counter was %d and is %d", before, after)
			}
			if now := vmExec(t, i, "find /sys/fs/cgroup -type d | sort; cat $(find /sys/fs/cgroup -name cgroup.subtree_control | sort)"); now != groups {
				t.Errorf("cgroups were\n%s\nand are\n%s", groups, now)
			}
			if now := vmExec(t, i, "ip addr; ip route; ip -6 route | sort"); plainLinks(now) != plainLinks(wires) {
				t.Errorf("the network was\n%s\nand is\n%s", plainLinks(wires), plainLinks(now))
			}
			if exists(filepath.Join(i.CgroupPath(), restoreLeaf)) {
				t.Error("the leaf is still there")
			}
			if has, _ := cgroupOptions(readText("/proc/self/mountinfo")); !has {
				t.Error("cgroup2 has lost its options")
			}
			if template == "debian13-systemd" {
				if state := vmExec(t, i, "systemctl is-system-running; systemctl --failed --no-legend"); state != "running" {
					t.Errorf("systemd says %s", state)
				}
				vmExec(t, i, "systemctl restart systemd-journald && systemd-run --wait -q true")
				leadsAside(t, r, i)
			}
		})
	}
}

// TestRestorePaused: what is restored paused runs no instruction before it is
// resumed.
func TestRestorePaused(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	i := vmStart(t, r, env, StartOptions{})
	vmExec(t, i, `cat > /run/busy <<'END'
n=0
while :; do n=$((n+1)); echo $n > /run/now; done
END
setsid sh /run/busy </dev/null >/dev/null 2>&1 & until [ -s /run/now ]; do sleep 0.1; done`)
	now := func() string {
		body, err := i.ReadFile(t.Context(), Owner{}, "/run/now", 64)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	if err := i.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	saved := now()
	dir := vmCheckpoint(t, r, i, env.Interfaces)
	i = vmRestore(t, r, env, StartOptions{Checkpoint: dir, Paused: true})
	if frozen, err := i.Frozen(); !frozen || err != nil {
		t.Errorf("frozen %v, %v", frozen, err)
	}
	time.Sleep(time.Second)
	if n := now(); n != saved {
		t.Errorf("it counted from %s to %s", saved, n)
	}
	if err := i.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); now() == saved; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not go on")
		}
	}
}

// vmPlugged tells which of the tests' links something may pass.
func vmPlugged() string {
	out, _ := exec.Command("sh", "-c", "ip -o link show master "+vmBridge+"; ip route show dev vztest-venet").Output()
	return string(out)
}

// keptTalk has bash inside say numbers to this process, each once the one
// before was answered. What it returns hears some more of them.
func keptTalk(t *testing.T, i *Instance) func(now *Instance, count int) {
	exec.Command("ip", "addr", "add", "192.0.2.1/24", "dev", vmBridge).Run()
	listener, err := net.Listen("tcp", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	vmExec(t, i, "setsid bash -c 'exec 3<>/dev/tcp/192.0.2.1/"+port+"; n=0; while read -r answer <&3; do n=$((n+1)); echo $n >&3; done' </dev/null >/run/talk.log 2>&1 &")
	listener.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute))
	conn, err := listener.Accept()
	if err != nil {
		t.Fatalf("%v: %s", err, vmExec(t, i, "cat /run/talk.log"))
	}
	t.Cleanup(func() { conn.Close() })
	// The peer also says something by itself while the socket is not there.
	err = conn.(*net.TCPConn).SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 120})
	if err != nil {
		t.Fatal(err)
	}
	lines, said := bufio.NewReader(conn), 0
	return func(i *Instance, count int) {
		t.Helper()
		for range count {
			said++
			conn.SetDeadline(time.Now().Add(time.Minute))
			conn.Write([]byte("go on\n"))
			line, err := lines.ReadString('\n')
			if err != nil || line != strconv.Itoa(said)+"\n" {
				t.Fatalf("line %d of the connection: %q, %v: %s", said, line, err, vmExec(t, i, "cat /run/talk.log; ps ax"))
			}
		}
	}
}

// plainLinks leaves out what the host's side decides anew.
func plainLinks(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if before, _, ok := strings.Cut(line, "@if"); ok {
			line = before + "\n"
		}
		if !strings.Contains(line, "valid_lft") {
			b.WriteString(strings.ReplaceAll(line, " tentative", ""))
		}
	}
	return b.String()
}

func readText(name string) string {
	body, _ := os.ReadFile(name)
	return string(body)
}

// leadsAside: what is held while init goes on first is let go by the next daemon
// if this one is killed, and an init that does not take its signal holds it once.
func leadsAside(t *testing.T, r *Runtime, i *Instance) {
	t.Helper()
	state := func() string {
		return strings.TrimSpace(readWhole(filepath.Join(i.CgroupPath(), "system.slice", "cgroup.freeze")))
	}
	if err := i.holdAside(); err != nil || state() != "1" {
		t.Fatalf("%v, system.slice is frozen: %s", err, state())
	}
	rec, err := loadRecord(i.dir)
	if err != nil || len(rec.Aside) == 0 {
		t.Fatalf("recorded is %v, %v", rec.Aside, err)
	}
	later := newInstance(r, rec, i.pidfd)
	if err := later.releaseAside(); err != nil || state() != "0" {
		t.Errorf("%v, system.slice is frozen: %s", err, state())
	}
	if rec, err = loadRecord(i.dir); err != nil || len(rec.Aside) > 0 {
		t.Errorf("recorded is %v, %v", rec.Aside, err)
	}
	i.rec.Aside = nil

	if i.deaf.Load() {
		t.Fatalf("after a restore its init did not take the signal in %v", leadPatience)
	}
	if err := i.signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// It may be at reading its signals, and would take one that comes before it stops.
	for end := time.Now().Add(time.Minute); !strings.HasPrefix(statusField(i.rec.Init, "State"), "T"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its init does not stop")
		}
	}
	if err := i.signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	defer func(d time.Duration) { leadPatience = d }(leadPatience)
	leadPatience = 5 * time.Second // for the one that is stopped
	during := ""
	for _, want := range []string{"1", "0"} {
		if err := i.initFirst(t.Context(), func(context.Context) error { during = state(); return nil }); err != nil {
			t.Error(err)
		}
		if during != want || state() != "0" {
			t.Errorf("system.slice is frozen: %s, then %s", during, state())
		}
	}
	if err := i.signal(syscall.SIGCONT); err != nil {
		t.Error(err)
	}
	eventually(t, i, 240*time.Second, "systemctl is-system-running", "running")
}
