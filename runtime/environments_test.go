//go:build vm

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

func TestBusybox(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	env.CPU = xml.CPULimits{Count: 1, Weight: 50, QuotaUSec: 50000, PeriodUSec: 100000}
	env.Counts.Tasks = 77
	env.Env = []string{"HELLO=world"}
	i := vmStart(t, r, env, StartOptions{})
	if i.InitKind() != Busybox {
		t.Errorf("init is %s", i.InitKind())
	}
	for script, want := range map[string]string{
		"id -u":                         "0",
		"grep processes /proc/1/limits": "unlimited            unlimited",
		"grep open /proc/1/limits":      "1024                 524288",
		"grep MemTotal /proc/meminfo":   " 409600 kB",
		"hostname":                      "test-busybox",
		"grep -c processor /proc/cpuinfo; grep Cpus_allowed_list /proc/1/status": "Cpus_allowed_list:\t0",
		"cat /proc/1/comm":                           "init",
		"ls -ld /run":                                "drwxr-xr-x",
		"cat /proc/self/uid_map":                     fmt.Sprint(i.IDMap().UIDs[0].Host),
		"ls -ln /etc/passwd":                         " 0 ",
		"touch /new && ls -ln /new":                  " 0 ",
		"cat /sys/fs/cgroup/cgroup.controllers":      "memory",
		"tr '\\0' '\\n' </proc/1/environ":            "HELLO=world",
		"ip addr show lo 2>/dev/null || ifconfig lo": "UP",
	} {
		if out, err := inside(i, script); !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v, want %q", script, out, err, want)
		}
	}
	for file, want := range map[string]string{"memory.max": "419430400", "cpu.weight": "50", "cpu.max": "50000 100000", "pids.max": "77"} {
		if got, _ := os.ReadFile(i.CgroupPath() + "/" + file); strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, want %s", file, got, want)
		}
	}
	if out, err := inside(i, "echo max > /sys/fs/cgroup/memory.max"); err == nil {
		t.Errorf("root inside can raise its own limit: %s", out)
	}
	// On disk the ids are not shifted.
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(r.privateDir(env.UUID), "upper/new"), &st); err != nil || st.Uid != 0 {
		t.Errorf("on disk: %v, uid %d", err, st.Uid)
	}
	if _, err := r.Start(context.Background(), env, StartOptions{}); !errors.Is(err, ErrRunning) {
		t.Errorf("second start: %v", err)
	}
	if name, err := i.Hostname(); name != "test-busybox" || err != nil {
		t.Errorf("hostname %q, %v", name, err)
	}
	if n, err := i.CPUTime(); n == 0 || err != nil {
		t.Errorf("cpu time %d, %v", n, err)
	}
	if now, top, err := i.Memory(); now == 0 || top != 400<<20 || err != nil {
		t.Errorf("memory %d of %d, %v", now, top, err)
	}
	spaces, err := i.Namespaces()
	if err != nil || len(spaces) != 6 {
		t.Errorf("namespaces %v, %v", spaces, err)
	}
	closeAll(spaces)
	confined(t, i)
}

// confined checks that init may do nothing that only means something on the
// host, and what it may.
func confined(t *testing.T, i *Instance) (bounding uint64) {
	t.Helper()
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.Init()))
	if !strings.Contains(string(text), "Seccomp:\t2") {
		t.Errorf("no seccomp filter:\n%s", text)
	}
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "CapBnd: %x", &bounding)
	}
	for name, bit := range map[string]int{"sys_module": 16, "sys_rawio": 17, "sys_time": 25, "audit_control": 30, "mac_admin": 33, "bpf": 39} {
		if bounding&(1<<bit) != 0 {
			t.Errorf("CAP %s is given", name)
		}
	}
	if bounding&(1<<22) == 0 || bounding&(1<<21) == 0 {
		t.Errorf("sys_boot or sys_admin is missing: %#x", bounding)
	}
	return bounding
}

// <initdir>, <inituser>, <initgroup> and <initenv> are of the program that is run
// as init.
func TestInitAs(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	env.Init = []string{"/bin/sh", "-c", "echo $(id -u) $(id -g) $(pwd) $GREETING; exec sleep 1000"}
	env.Dir, env.User, env.Group, env.Env = "/etc", "33", "44", []string{"GREETING=hello"}
	i := vmStart(t, r, env, StartOptions{})
	c, err := i.Console("")
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Attach(false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	readUntil(t, a, "33 44 /etc hello")
}

func TestBusyboxSuspendShutdownReboot(t *testing.T) {
	r := vmRuntime(t)
	ctx := context.Background()
	i := vmStart(t, r, vmEnvironment(t, "busybox"), StartOptions{Paused: true})
	if i.Started() {
		t.Error("runs though paused")
	}
	if out, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", i.Init())); strings.TrimSpace(string(out)) == "init" {
		t.Error("init runs though paused")
	}
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, i, time.Minute, "cat /proc/1/comm", "init")
	if err := i.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	if frozen, err := i.Frozen(); !frozen || err != nil {
		t.Errorf("frozen: %v, %v", frozen, err)
	}
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := i.Shutdown(ctx, ShutdownParavirt, false); !errors.Is(err, ErrUnsupported) {
		t.Errorf("agent: %v", err)
	}
	listens(t, i)
	if err := i.Shutdown(ctx, ShutdownDefault, true); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, i, time.Minute, ExitReboot)
}

func TestBusyboxPoweroff(t *testing.T) {
	r := vmRuntime(t)
	i := vmStart(t, r, vmEnvironment(t, "busybox"), StartOptions{})
	eventually(t, i, time.Minute, "cat /proc/1/comm", "init")
	listens(t, i)
	if err := i.Shutdown(context.Background(), ShutdownDefault, false); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, i, time.Minute, ExitPoweroff)
}

// listens waits until busybox's init waits for the signals that end it: until
// then the kernel drops them.
func listens(t *testing.T, i *Instance) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		blocked, _ := strconv.ParseUint(statusField(i.Init(), "SigBlk"), 16, 64)
		if blocked&(1<<(syscall.SIGTERM-1)) != 0 {
			return
		}
		// What sigtimedwait(2) waits for is not blocked meanwhile.
		if call := readText(fmt.Sprintf("/proc/%d/syscall", i.Init())); strings.HasPrefix(call, fmt.Sprint(unix.SYS_RT_SIGTIMEDWAIT, " ")) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the init of %s waits for no signal", i.Name())
		}
	}
}

// A kill works on frozen processes, too, and tells that it was one.
func TestKillFrozen(t *testing.T) {
	r := vmRuntime(t)
	i := vmStart(t, r, vmEnvironment(t, "busybox"), StartOptions{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := i.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	if err := i.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if i.Exit().Cause != ExitKilled {
		t.Errorf("ended with %v", i.Exit())
	}
}

func TestConsoleOfBusybox(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	env.Init = []string{"/bin/sh", "-c", "echo printed before; exec sh -i"}
	i := vmStart(t, r, env, StartOptions{})
	c, err := i.Console("")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	a, err := c.Attach(false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	readUntil(t, a, "printed before")
	a.Write([]byte("echo $((6*7)) && tty\r"))
	readUntil(t, a, "42\r\n/dev/") // at once: it may come in one piece
	a.Write([]byte("exit 3\r"))
	awaitEnd(t, i, time.Minute, ExitCrash)
	if i.Exit().Status != 3 {
		t.Errorf("exit %v", i.Exit())
	}
	io.Copy(io.Discard, a) // ends
}

func readUntil(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got, found := "", make(chan bool, 1)
	go func() {
		buf := make([]byte, 1024)
		for !strings.Contains(got, want) {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			got += string(buf[:n])
		}
		found <- true
	}()
	select {
	case <-found:
	case <-time.After(time.Minute):
		t.Fatalf("%q did not come", want)
	}
}

func TestRefusals(t *testing.T) {
	r := vmRuntime(t)
	root := t.TempDir()
	os.Chmod(filepath.Dir(root), 0o755)
	os.Chmod(root, 0o755)
	for _, dir := range []string{"bin", "proc", "sys", "run"} {
		os.Mkdir(filepath.Join(root, dir), 0o755)
	}
	os.WriteFile(root+"/bin/bad", []byte("no program"), 0o755)
	outside := t.TempDir()
	tests := []struct {
		name   string
		change func(*xml.Environment)
		want   string
	}{
		{"no init", func(e *xml.Environment) { e.Init = []string{"/bin/none"} }, "init /bin/none cannot be run in the root"},
		{"no program", func(e *xml.Environment) {
			e.Init = []string{"/bin/bad"}
			e.Filesystems[0] = xml.Filesystem{Type: "mount", Source: root, Target: "/"}
		}, "init /bin/bad is neither a program nor a script"},
		{"unknown template", func(e *xml.Environment) { e.Filesystems[0].Source = "none" }, "there is no such template: none (there are "},
		{"no directory", func(e *xml.Environment) {
			e.Filesystems[0] = xml.Filesystem{Type: "mount", Source: "/nowhere", Target: "/"}
		}, "/nowhere: no such file"},
		{"dev is a link", func(e *xml.Environment) {
			os.Remove(root + "/dev")
			os.Symlink(outside, root+"/dev")
			e.Init = []string{"/bin/bad"}
			e.Filesystems[0] = xml.Filesystem{Type: "mount", Source: root, Target: "/"}
		}, "/dev of the root is a symbolic link"},
		{"bad user", func(e *xml.Environment) { e.User = "nobody-such" }, "inituser nobody-such is not in"},
		{"mount missing", func(e *xml.Environment) {
			e.Filesystems = append(e.Filesystems, xml.Filesystem{Type: "mount", Source: "/nowhere", Target: "/srv"})
		}, "/nowhere"},
	}
	for _, test := range tests {
		env := vmEnvironment(t, "busybox")
		env.Filesystems = slices.Clone(env.Filesystems)
		test.change(env)
		i, err := r.Start(context.Background(), env, StartOptions{})
		if err == nil {
			t.Errorf("%s: started", test.name)
			vmEnd(t, r, i)
			continue
		}
		if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
		t.Logf("%s: %v", test.name, err)
		nothingLeft(t)
		r.RemovePrivate(env.UUID)
	}
	if names, _ := os.ReadDir(outside); len(names) > 0 {
		t.Errorf("something was made outside the root: %v", names)
	}
}

// The whole of Debian, as its packages are, reaches its aim without an edit.
func TestSystemd(t *testing.T) {
	r := vmRuntime(t)
	i := vmStart(t, r, vmEnvironment(t, "debian13-systemd"), StartOptions{})
	if i.InitKind() != Systemd {
		t.Errorf("init is %s", i.InitKind())
	}
	eventually(t, i, 240*time.Second, "systemctl is-system-running; systemctl --failed --no-legend", "running")
	if failed, _ := inside(i, "systemctl --failed --no-legend"); failed != "" {
		t.Errorf("failed units:\n%s", failed)
	}
	for script, want := range map[string]string{
		"systemd-detect-virt":                      "lxc-libvirt",
		"systemctl daemon-reload && echo reloaded": "reloaded",
		"cat /proc/1/cgroup":                       "0::/init.scope",
		"printf '[Service]\\nType=oneshot\\nExecStart=/bin/true\\nProtectSystem=strict\\nPrivateTmp=yes\\nProtectHome=yes\\nProtectProc=invisible\\nProtectKernelTunables=yes\\nPrivateDevices=yes\\n' > /run/systemd/system/sandbox.service; systemctl daemon-reload; systemctl start sandbox && echo sandboxed || systemctl status sandbox": "sandboxed",
	} {
		if out, err := inside(i, script); !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v, want %q", script, out, err, want)
		}
	}
	ctx := context.Background()
	if err := i.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if err := i.Shutdown(ctx, ShutdownDefault, true); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, i, 120*time.Second, ExitReboot)
}

func TestSysvinit(t *testing.T) {
	r := vmRuntime(t)
	i := vmStart(t, r, vmEnvironment(t, "debian13-sysvinit"), StartOptions{})
	if i.InitKind() != Sysvinit {
		t.Errorf("init is %s", i.InitKind())
	}
	eventually(t, i, 180*time.Second, "runlevel", "N 2")
	if err := i.Shutdown(context.Background(), ShutdownDefault, false); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, i, 120*time.Second, ExitPoweroff)
}

// brokenBus is systemd while D-Bus is gone.
type brokenBus struct{ Scopes }

func (brokenBus) StartScope(context.Context, systemd.Scope) error {
	return &systemd.UnavailableError{Service: "systemd", Err: io.EOF}
}

func (brokenBus) Stop(context.Context, string) error {
	return &systemd.UnavailableError{Service: "systemd", Err: io.EOF}
}

// A start without D-Bus fails and leaves nothing, so none stands in the way once
// D-Bus is back.
func TestBusGone(t *testing.T) {
	r := vmRuntime(t)
	good := r.config.Scopes
	r.config.Scopes = brokenBus{good}
	_, err := r.Start(context.Background(), vmEnvironment(t, "busybox"), StartOptions{})
	var gone *systemd.UnavailableError
	if !errors.As(err, &gone) {
		t.Errorf("without D-Bus: %v", err)
	}
	if exists(r.dir(testUUID)) {
		t.Error("the failed start left its state directory")
	}
	r.config.Scopes = good
	vmStart(t, r, vmEnvironment(t, "busybox"), StartOptions{})
}

func TestDirectoryRootAndMounts(t *testing.T) {
	r := vmRuntime(t)
	template, err := r.Templates().Lookup(vmTemplate(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	base := vmData + "/dir"
	os.MkdirAll(base, 0o755)
	t.Cleanup(func() { os.RemoveAll(base) })
	if out, err := exec.Command("cp", "-a", template.Path, base+"/root").CombinedOutput(); err != nil {
		t.Fatal(string(out))
	}
	os.MkdirAll(base+"/data", 0o755)
	os.WriteFile(base+"/data/file", []byte("x"), 0o644)
	env := vmEnvironment(t, "")
	env.Filesystems = []xml.Filesystem{
		{Type: "mount", Source: base + "/root", Target: "/"},
		{Type: "mount", Source: base + "/data", Target: "/srv/data"},
		{Type: "mount", Source: base + "/data", Target: "/srv/ro", ReadOnly: true},
		{Type: "ram", Target: "/srv/ram"},
		{Type: "mount", Source: base + "/data/file", Target: "/srv/file"},
	}
	i := vmStart(t, r, env, StartOptions{})
	for script, want := range map[string]string{
		"ls -ln /srv/data/file":                          " 0 ",
		"touch /srv/data/new && echo made":               "made",
		"touch /srv/ro/new || echo refused":              "refused",
		"cat /srv/file":                                  "x",
		"touch /srv/ram/x && grep /srv/ram /proc/mounts": "tmpfs",
		"touch /fresh; ls -ln /fresh":                    " 0 ",
	} {
		if out, err := inside(i, script); !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v, want %q", script, out, err, want)
		}
	}
	var st syscall.Stat_t
	if syscall.Stat(base+"/root/fresh", &st) != nil || st.Uid != 0 {
		t.Errorf("a new file belongs to %d", st.Uid)
	}
}

func TestPrivileged(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	env.IDMap.Mode = xml.Privileged
	i := vmStart(t, r, env, StartOptions{})
	if out, _ := inside(i, "cat /proc/self/uid_map"); !strings.Contains(out, "4294967295") {
		t.Errorf("a user namespace: %s", out)
	}
	if mounts, _ := inside(i, "grep ' /proc/sys ' /proc/self/mounts"); !strings.Contains(mounts, "ro,") {
		t.Errorf("/proc/sys can be written: %s", mounts)
	}
	if bounding := confined(t, i); bounding&(1<<27) != 0 {
		t.Error("CAP mknod is given")
	}
}
