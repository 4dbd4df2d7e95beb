//go:build vm

// The tests of this file need root on a host whose PID 1 is systemd, with cgroup v2 and the packages dbus and
// systemd-container; they make and remove units of their own. To run them in a virtual machine:
//
//	CGO_ENABLED=0 go test -tags vm -c -o systemd.test ./systemd
//	scp systemd.test root@VM: && ssh root@VM ./systemd.test -test.v -test.run VM -test.timeout 10m
//
// TestVMBusKilled kills the message bus, which a host with users on it does not like.

package systemd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func connect(t *testing.T) (*Conn, context.Context) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	c, err := Connect(ctx)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c, ctx
}

// process starts a child that the test ends.
func process(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func cgroupFile(t *testing.T, cgroup, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(cgroupMount, cgroup, file))
	must(t, err)
	return strings.TrimSpace(string(data))
}

// wantFiles compares files of a cgroup with "file=contents".
func wantFiles(t *testing.T, cgroup string, want ...string) {
	t.Helper()
	for _, w := range want {
		file, value, _ := strings.Cut(w, "=")
		if got := cgroupFile(t, cgroup, file); got != value {
			t.Errorf("%s is %q, want %q", file, got, value)
		}
	}
}

func TestVMScope(t *testing.T) {
	c, ctx := connect(t)
	unit := ScopeName("vm test-1.ä")
	init := process(t, "sleep", "1000")
	t.Cleanup(func() { c.Stop(context.Background(), unit) })
	begin := time.Now()
	must(t, c.StartScope(ctx, Scope{Name: unit, Slice: "machine.slice", Description: "a test", PIDs: []uint32{uint32(init.Process.Pid)}, Properties: []Property{
		Delegate(true), MemoryMax(256 << 20), MemoryHigh(200 << 20), MemoryLow(1 << 20), MemorySwapMax(64 << 20), CPUWeight(250), CPUQuota(1_500_000),
		CPUQuotaPeriod(50 * time.Millisecond), AllowedCPUs(1), TasksMax(100), DevicePolicy(DeviceClosed), DeviceAllow(Device{"/dev/fuse", "rw"}, Device{"char-pts", "rwm"}),
		CollectMode("inactive-or-failed"), TimeoutStop(5 * time.Second), OOMPolicy("continue"), IOWeight(50), KillMode("mixed"),
	}}))
	// Asking for the lost signal comes after jobPoll: the signal must have come although nobody called Subscribe for it.
	if d := time.Since(begin); d > jobPoll {
		t.Errorf("the start took %v", d)
	} else {
		t.Logf("started in %v", d)
	}
	cgroup, err := ControlGroupOf(init.Process.Pid, unit)
	must(t, err)
	if asked, err := c.ControlGroup(ctx, unit); asked != cgroup || cgroup != "/machine.slice/"+unit {
		t.Errorf("the kernel says %q, systemd %q, %v", cgroup, asked, err)
	}
	wantFiles(t, cgroup, "memory.max=268435456", "memory.high=209715200", "memory.low=1048576", "memory.swap.max=67108864", "cpu.weight=250", "cpu.max=75000 50000",
		"cpuset.cpus=1", "pids.max=100", "io.weight=default 50")

	must(t, c.SetProperties(ctx, unit, MemoryMax(512<<20), MemoryHigh(Infinity), CPUQuota(Infinity), AllowedCPUs(0, 1), TasksMax(Infinity), CPUWeight(33)))
	changed := []string{"memory.max=536870912", "memory.high=max", "cpuset.cpus=0-1", "pids.max=max", "cpu.weight=33", "memory.swap.max=67108864"}
	wantFiles(t, cgroup, changed...)
	if got := cgroupFile(t, cgroup, "cpu.max"); !strings.HasPrefix(got, "max ") {
		t.Errorf("cpu.max is %q", got)
	}
	run(t, "systemctl", "daemon-reload")
	wantFiles(t, cgroup, changed...)
	// All or nothing: a refused property leaves the others alone.
	if c.SetProperties(ctx, unit, TasksMax(7), property("Nonsense", true)) == nil {
		t.Error("nonsense was accepted")
	}
	wantFiles(t, cgroup, "pids.max=max")

	must(t, c.Freeze(ctx, unit))
	must(t, c.Freeze(ctx, unit))
	if got := cgroupFile(t, cgroup, "cgroup.events"); !strings.Contains(got, "frozen 1") {
		t.Errorf("not frozen: %s", got)
	}
	s, err := c.State(ctx, unit)
	must(t, err)
	if s.Active != "active" || s.Sub != "running" || s.Freezer != "frozen" || s.Result != "success" || s.ControlGroup != cgroup || s.InvocationID == [16]byte{} {
		t.Errorf("state %+v", s)
	}
	must(t, c.Thaw(ctx, unit))
	must(t, c.Thaw(ctx, unit))
	if got := cgroupFile(t, cgroup, "cgroup.events"); !strings.Contains(got, "frozen 0") {
		t.Errorf("frozen: %s", got)
	}

	units, err := c.ListUnits(ctx, ScopePattern)
	must(t, err)
	if len(units) != 1 || units[0] != (Unit{unit, "a test", "loaded", "active", "running"}) {
		t.Errorf("listed %+v", units)
	}
	if name, ok := DomainName(unit); name != "vm test-1.ä" || !ok {
		t.Errorf("came back as %q", name)
	}
	if err := c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(process(t, "sleep", "1000").Process.Pid)}}); !errors.Is(err, ErrUnitExists) {
		t.Errorf("a second scope of that name: %v", err)
	}
	must(t, c.Kill(ctx, unit, int(syscall.SIGKILL)))
	init.Wait()
	must(t, c.WaitGone(ctx, unit))
	if _, err := os.Stat(filepath.Join(cgroupMount, cgroup)); !os.IsNotExist(err) {
		t.Errorf("cgroup: %v", err)
	}
	for what, err := range map[string]error{"SetProperties": c.SetProperties(ctx, unit, TasksMax(1)), "Freeze": c.Freeze(ctx, unit), "Kill": c.Kill(ctx, unit, 9)} {
		if !errors.Is(err, ErrNoSuchUnit) {
			t.Errorf("%s of a scope that is gone: %v", what, err)
		}
	}
	if _, err := c.State(ctx, unit); !errors.Is(err, ErrNoSuchUnit) {
		t.Errorf("State of a scope that is gone: %v", err)
	}
	must(t, c.Stop(ctx, unit))
	must(t, c.ResetFailed(ctx, unit))
}

func TestVMDevices(t *testing.T) {
	c, ctx := connect(t)
	const unit = "vm-test-devices.scope"
	// The file is opened only after a line on stdin: then the process is in the scope.
	try := func(unit string, props ...Property) map[string]bool {
		cmd := exec.Command("sh", "-c", `read x; for d in /dev/null /dev/fuse /dev/kmsg; do true <$d && echo $d; done 2>/dev/null`)
		in, err := cmd.StdinPipe()
		must(t, err)
		var out bytes.Buffer
		cmd.Stdout = &out
		must(t, cmd.Start())
		must(t, c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(cmd.Process.Pid)}, Properties: append(props, CollectMode("inactive-or-failed"))}))
		in.Write([]byte("go\n"))
		cmd.Wait()
		must(t, c.WaitGone(ctx, unit))
		opened := map[string]bool{}
		for d := range strings.FieldsSeq(out.String()) {
			opened[d] = true
		}
		return opened
	}
	if all := try(unit); !all["/dev/null"] || !all["/dev/kmsg"] {
		t.Errorf("without a policy: %v", all)
	}
	if got := try(unit, DevicePolicy(DeviceClosed), DeviceAllow(Device{"/dev/fuse", "rw"})); !got["/dev/null"] || got["/dev/kmsg"] || !got["/dev/fuse"] {
		t.Errorf("closed and /dev/fuse: %v", got)
	}
	if got := try(unit, DevicePolicy(DeviceClosed), DeviceAllow(Device{"/dev/kmsg", "r"}), DeviceAllow(), DeviceAllow(Device{"/dev/fuse", ""})); got["/dev/kmsg"] || !got["/dev/fuse"] {
		t.Errorf("entry taken back: %v", got)
	}
}

// The name is free for the next scope however soon it comes.
func TestVMScopeAgainAndAgain(t *testing.T) {
	c, ctx := connect(t)
	unit := ScopeName("again")
	var longest time.Duration
	for range 20 {
		p := process(t, "sleep", "1000")
		begin := time.Now()
		must(t, c.StartScope(ctx, Scope{Name: unit, Slice: "machine.slice", PIDs: []uint32{uint32(p.Process.Pid)}, Properties: []Property{CollectMode("inactive-or-failed")}}))
		longest = max(longest, time.Since(begin))
		cgroup, err := ControlGroupOf(p.Process.Pid, unit)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(cgroupMount, cgroup, "cgroup.kill"), []byte("1"), 0))
		p.Wait()
	}
	t.Logf("longest start: %v", longest)
	must(t, c.WaitGone(ctx, unit))
}

func TestVMStopIgnoredTerm(t *testing.T) {
	c, ctx := connect(t)
	const unit = "vm-test-stubborn.scope"
	ready := filepath.Join(t.TempDir(), "ready")
	p := process(t, "sh", "-c", "trap '' TERM; echo >"+ready+"; while :; do sleep 1; done")
	for range 1200 { // before that it would end like any other
		if _, err := os.Stat(ready); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	must(t, c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(p.Process.Pid)}, Properties: []Property{TimeoutStop(time.Second), CollectMode("inactive")}}))
	go p.Wait()
	if err := c.Stop(ctx, unit); err != nil && !errors.Is(err, ErrJobFailed) {
		t.Error(err)
	}
	s, err := c.State(ctx, unit)
	if err != nil || s.Active != "failed" || s.Result != "timeout" {
		t.Errorf("got %+v, %v", s, err)
	}
	must(t, c.ResetFailed(ctx, unit))
	must(t, c.WaitGone(ctx, unit))
}

func TestVMOutOfMemory(t *testing.T) {
	c, ctx := connect(t)
	const unit = "vm-test-oom.scope"
	cmd := exec.Command("sh", "-c", "read x; tail /dev/zero")
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(cmd.Process.Pid)}, Properties: []Property{
		MemoryMax(32 << 20), MemorySwapMax(0), OOMPolicy("kill"), CollectMode("inactive"),
	}}))
	in.Write([]byte("go\n"))
	cmd.Wait()
	var s State
	for range 1200 {
		if s, err = c.State(ctx, unit); err != nil || s.Active == "failed" {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil || s.Result != "oom-kill" {
		t.Errorf("got %+v, %v", s, err)
	}
	must(t, c.WaitGone(ctx, unit)) // resets it
}

func TestVMStartFails(t *testing.T) {
	c, ctx := connect(t)
	const unit = "vm-test-dead.scope"
	dead := exec.Command("true")
	must(t, dead.Run())
	if err := c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(dead.Process.Pid)}}); err == nil {
		t.Error("a scope for a dead process")
	} else {
		t.Log(err)
	}
	must(t, c.WaitGone(ctx, unit))
	p := process(t, "sleep", "1000")
	err := c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(p.Process.Pid)}, Properties: []Property{property("MemoryMax", "much")}})
	if err == nil || !strings.Contains(err.Error(), unit) {
		t.Errorf("got %v", err)
	}
	t.Log(err)
	must(t, c.WaitGone(ctx, unit))
}

func TestVMVersion(t *testing.T) {
	c, ctx := connect(t)
	v, err := c.Version(ctx)
	if out := run(t, "systemctl", "--version"); err != nil || !strings.HasPrefix(out, fmt.Sprintf("systemd %d ", v)) {
		t.Errorf("%d, %v, systemctl says %s", v, err, out)
	}
}

func TestVMMachine(t *testing.T) {
	c, ctx := connect(t)
	unit := ScopeName("machined")
	for _, domain := range []string{"machined", "odd_näme", strings.Repeat("x", 235)} {
		p := process(t, "sleep", "1000")
		must(t, c.ForgetMachine(ctx, unit))
		must(t, c.StartScope(ctx, Scope{Name: unit, Slice: "machine.slice", PIDs: []uint32{uint32(p.Process.Pid)}, Properties: []Property{CollectMode("inactive-or-failed")}}))
		m := Machine{Name: MachineName(domain, [16]byte{1, 2, 3}), UUID: [16]byte{1, 2, 3}, Service: "virtvzd", Class: "container", Leader: uint32(p.Process.Pid)}
		must(t, c.RegisterMachine(ctx, m))
		if out := run(t, "machinectl", "list", "--no-legend", "--full"); !strings.Contains(out, m.Name+" container virtvzd") {
			t.Errorf("machinectl lists %q, not %s", out, m.Name)
		}
		if out := run(t, "machinectl", "show", m.Name); !strings.Contains(out, "Unit="+unit) || !strings.Contains(out, "Id=010203") {
			t.Errorf("machinectl shows %s", out)
		}
		if err := c.RegisterMachine(ctx, m); !errors.Is(err, ErrMachineExists) {
			t.Errorf("registered twice: %v", err)
		}
		must(t, c.UnregisterMachine(ctx, m.Name))
		must(t, c.UnregisterMachine(ctx, m.Name))
		if s, err := c.State(ctx, unit); err != nil || s.Active != "active" {
			t.Errorf("unregistering touched the scope: %+v %v", s, err)
		}
		must(t, c.RegisterMachine(ctx, m))
		go p.Wait()
		must(t, c.TerminateMachine(ctx, m.Name))
		must(t, c.WaitGone(ctx, unit))
		must(t, c.TerminateMachine(ctx, m.Name))
	}
}

// TestVMSlowMachined: a unit's next machine is registered also when machined has not noticed the end of the last one.
func TestVMSlowMachined(t *testing.T) {
	c, ctx := connect(t)
	unit := ScopeName("slow")
	start := func(name string) (*exec.Cmd, Machine) {
		p := process(t, "sleep", "1000")
		must(t, c.ForgetMachine(ctx, unit))
		must(t, c.StartScope(ctx, Scope{Name: unit, Slice: "machine.slice", PIDs: []uint32{uint32(p.Process.Pid)}, Properties: []Property{CollectMode("inactive-or-failed")}}))
		return p, Machine{Name: name, UUID: [16]byte{1}, Service: "virtvzd", Class: "container", Leader: uint32(p.Process.Pid)}
	}
	first, m := start("vz-first")
	must(t, c.RegisterMachine(ctx, m))
	pid, err := strconv.Atoi(strings.TrimSpace(run(t, "systemctl", "show", "--value", "--property=MainPID", "systemd-machined")))
	must(t, err)
	machined, err := os.FindProcess(pid)
	must(t, err)
	must(t, machined.Signal(syscall.SIGSTOP))
	time.AfterFunc(2*time.Second, func() { machined.Signal(syscall.SIGCONT) })
	must(t, first.Process.Kill())
	first.Wait()
	must(t, c.WaitGone(ctx, unit))
	second, m := start("vz-second")
	must(t, c.RegisterMachine(ctx, m))
	must(t, c.UnregisterMachine(ctx, m.Name))
	second.Process.Kill()
	second.Wait()
	must(t, c.WaitGone(ctx, unit))
}

func TestVMWithoutMachined(t *testing.T) {
	c, ctx := connect(t)
	run(t, "systemctl", "stop", "systemd-machined")
	run(t, "systemctl", "mask", "--runtime", "systemd-machined")
	defer run(t, "systemctl", "unmask", "--runtime", "systemd-machined")
	begin := time.Now()
	err := c.RegisterMachine(ctx, Machine{Name: "vz-a", Service: "virtvzd", Class: "container", Leader: uint32(os.Getpid())})
	if !errors.Is(err, ErrNoMachined) || time.Since(begin) > callTimeout/2 {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
}

const (
	storeService = "vm-test-store.service"
	storeSocket  = "vm-test-store.socket"
	storeReport  = "/run/vm-test-store.report"
)

// A pty master whose slave is closed and a pidfd stay with systemd over restarts and over kill -9, the activation socket is
// told apart from them, and what is removed is gone.
func TestVMStore(t *testing.T) {
	if os.Getenv("STORE_HELPER") != "" {
		storeHelper()
	}
	sleeper := process(t, "sleep", "1000")
	write := func(name, text string) {
		path := filepath.Join("/run/systemd/system", name)
		must(t, os.WriteFile(path, []byte(text), 0o644))
		t.Cleanup(func() { os.Remove(path) })
	}
	write(storeSocket, "[Socket]\nListenStream=/run/vm-test-store.sock\n")
	write(storeService, fmt.Sprintf("[Unit]\nStartLimitIntervalSec=0\nRequires=%s\nAfter=%s\n[Service]\nType=notify\nNotifyAccess=main\nFileDescriptorStoreMax=16\nWatchdogSec=60\nRestart=on-failure\nRestartSec=0\nFileDescriptorStorePreserve=yes\n"+
		"Environment=STORE_HELPER=%d\nExecStart=%s -test.run=^TestVMStore$\nTimeoutStartSec=60\n", storeSocket, storeSocket, sleeper.Process.Pid, must2(filepath.Abs(os.Args[0]))))
	t.Cleanup(func() {
		exec.Command("systemctl", "stop", storeService, storeSocket).Run()
		exec.Command("systemctl", "reset-failed", storeService, storeSocket).Run()
		os.Remove(storeReport)
		exec.Command("systemctl", "daemon-reload").Run()
	})
	run(t, "systemctl", "daemon-reload")
	step := func(want string, command ...string) {
		t.Helper()
		os.Remove(storeReport)
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s\n%s", command, err, out, run(t, "journalctl", "-n", "30", "--no-pager", "-u", storeService))
		}
		data, _ := os.ReadFile(storeReport)
		if string(data) != want {
			t.Errorf("%v: got\n%s\nwant\n%s", command, data, want)
		}
	}
	step("watchdog 1m0s\nsocket "+storeSocket+"\nstored both\n", "systemctl", "start", storeService)
	full := "watchdog 1m0s\nsocket " + storeSocket + "\nconsole-a: hello from the slave\ninit-a: alive\n"
	step(full, "systemctl", "restart", storeService)
	step(full, "sh", "-c", `systemctl kill --signal=KILL "$0"; until [ -s "$1" ] && systemctl is-active -q "$0"; do sleep 0.1; done`, storeService, storeReport)
	step("", "systemctl", "stop", storeService)
	step(full, "systemctl", "start", storeService)
	sleeper.Process.Kill()
	sleeper.Wait() // a pidfd of a dead process polls as ready, and must stay
	step(strings.Replace(full, "alive", "dead", 1), "systemctl", "restart", storeService)
	// init-a was removed by the run that found it dead.
	step(strings.Replace(full, "init-a: alive\n", "", 1), "systemctl", "restart", storeService)
}

func must2(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

func storeHelper() {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	s, err := Inherit()
	fail(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var report strings.Builder
	fmt.Fprintf(&report, "watchdog %v\n", s.Watchdog())
	for _, f := range s.Sockets() {
		fmt.Fprintf(&report, "socket %s\n", f.Name)
	}
	found := map[string]*os.File{}
	for _, f := range s.Stored() {
		found[f.Name] = f.File
	}
	if len(found) == 0 {
		master, slave := pty(fail)
		slave.Close() // from now on the master polls as hung up
		var pid int
		fmt.Sscan(os.Getenv("STORE_HELPER"), &pid)
		pidfd, err := unix.PidfdOpen(pid, 0)
		fail(err)
		fail(s.Store("console-a", master))
		fail(s.Store("init-a", os.NewFile(uintptr(pidfd), "pidfd")))
		fail(s.Barrier(ctx))
		fmt.Fprintln(&report, "stored both")
	}
	if master := found["console-a"]; master != nil {
		n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
		fail(err)
		slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		fail(err)
		slave.WriteString("hello from the slave\n")
		line, err := bufio.NewReader(master).ReadString('\n') // a terminal gives its end apart, at times
		fail(err)
		fmt.Fprintf(&report, "console-a: %s\n", strings.TrimSpace(line))
		slave.Close()
	}
	if pidfd := found["init-a"]; pidfd != nil {
		if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err == nil {
			fmt.Fprintln(&report, "init-a: alive")
		} else {
			fmt.Fprintln(&report, "init-a: dead")
			fail(s.Remove("init-a"))
			fail(s.Barrier(ctx))
		}
	}
	fail(os.WriteFile(storeReport, []byte(report.String()), 0o644))
	fail(s.Status("ready for the test"))
	fail(s.Ready())
	select {}
}

func pty(fail func(error)) (master, slave *os.File) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	fail(err)
	fail(unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	fail(err)
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	fail(err)
	return master, slave
}

// The bus dies under us. Its socket is systemd's, so the next connection starts a new one, and systemd returns to it.
func TestVMBusKilled(t *testing.T) {
	c, ctx := connect(t)
	unit := ScopeName("bus")
	p := process(t, "sleep", "1000")
	must(t, c.StartScope(ctx, Scope{Name: unit, PIDs: []uint32{uint32(p.Process.Pid)}, Properties: []Property{CollectMode("inactive-or-failed")}}))
	run(t, "systemctl", "kill", "--signal=KILL", "dbus.service")
	var err error
	begin := time.Now()
	for range 60 {
		var s State
		if s, err = c.State(ctx, unit); err == nil && s.Active == "active" {
			break
		}
		var gone *UnavailableError
		if err != nil && !errors.As(err, &gone) {
			t.Errorf("got %v", err)
		}
		time.Sleep(500 * time.Millisecond)
	}
	must(t, err)
	t.Logf("back after %v", time.Since(begin))
	must(t, c.SetProperties(ctx, unit, TasksMax(9)))
	go p.Wait()
	must(t, c.Stop(ctx, unit))
	must(t, c.WaitGone(ctx, unit))
}
