//go:build vm

package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Two copies of one frozen machine, joined by a wire, are two machines.
func TestMachines(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	if err := Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	wire := t.TempDir()
	start := time.Now()
	a, err := Start(ctx, "a", Options{OwnID: true, Wire: &WireEnd{wire, 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	t.Logf("resumed, with an own machine id, in %.1f s", time.Since(start).Seconds())
	start = time.Now()
	b, err := Start(ctx, "b", Options{Wire: &WireEnd{wire, 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	t.Logf("resumed in %.1f s", time.Since(start).Seconds())

	sh := func(v *VM, command string) string {
		t.Helper()
		out, err := v.Run(ctx, command)
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(out)
	}
	t.Run("system", func(t *testing.T) {
		start := time.Now()
		for what, want := range map[string]string{
			"systemctl is-system-running":                                       "running",
			"findmnt -no fstype /sys/fs/cgroup":                                 "cgroup2",
			"findmnt -no fstype,options /var/lib/libvirt/vz | grep -c prjquota": "1",
			"systemctl is-active lxcfs":                                         "active",
			"systemctl is-active libvirtd.socket":                               "active",
			"systemctl is-active libvirtd.service || :":                         "inactive",
			"ls /srv/roots | xargs":                                             "busybox.tar.zst debian13-server.tar.zst debian13-systemd.tar.zst debian13-sysvinit.tar.zst",
			"systemctl show -p DefaultMemoryAccounting --value":                 "yes",
			"hostname": "b",
			"nproc":    strconv.Itoa(cpus),
		} {
			if got := sh(b, what); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		t.Logf("%.2f s a command", time.Since(start).Seconds()/10)
		if out := sh(b, "virsh -c lxc:///system version"); !strings.Contains(out, "11.") {
			t.Errorf("no libvirtd to compare with: %q", out)
		}
	})
	t.Run("own", func(t *testing.T) {
		if sh(a, "hostname") != "a" {
			t.Error("a does not have its name")
		}
		if sh(a, "cat /etc/machine-id") == sh(b, "cat /etc/machine-id") {
			t.Error("a has the machine id of b in spite of OwnID")
		}
		if sh(a, "journalctl -n 1 -q --no-pager") == "" {
			t.Error("a has no journal after its change of machine id")
		}
		if sh(a, "cat /proc/sys/kernel/random/uuid") == sh(b, "cat /proc/sys/kernel/random/uuid") {
			t.Error("both draw the same random numbers")
		}
		sh(a, "echo a >/root/mine; echo a >/var/lib/libvirt/vz/mine")
		if out := sh(b, "ls /root/mine /var/lib/libvirt/vz/mine 2>&1 || :"); strings.Count(out, "No such file") != 2 {
			t.Errorf("b sees what a wrote: %s", out)
		}
	})
	t.Run("clock", func(t *testing.T) {
		before := time.Now()
		there, err := strconv.ParseFloat(sh(b, "date +%s.%N"), 64)
		took := time.Since(before).Seconds()
		off := there - float64(before.UnixNano())/1e9
		if err != nil || off < -3 || off > took+3 {
			t.Errorf("the clock is %.1f s off (%v)", math.Abs(off), err)
		}
	})
	t.Run("wire", func(t *testing.T) {
		sh(a, "ping -c 3 -W 5 10.99.0.2")
		if sh(a, "cat /sys/class/net/eth1/address") == sh(b, "cat /sys/class/net/eth1/address") {
			t.Error("both ends have one MAC address")
		}
	})
	t.Run("copy", func(t *testing.T) { testCopy(ctx, t, a) })
	t.Run("errors", func(t *testing.T) {
		_, err := a.Run(ctx, "echo reason >&2; exit 7")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(err.Error(), "reason") {
			t.Errorf("exit 7 with a reason is %v", err)
		}
		if _, err := Start(ctx, "a/b", Options{}); err == nil {
			t.Error("a/b was accepted as a name")
		}
	})
	t.Run("forward", func(t *testing.T) {
		sh(b, "systemd-run -q sh -c 'echo hello | nc -N -lU /run/echo.sock'; until test -S /run/echo.sock; do sleep .1; done")
		socket, err := b.Forward(ctx, "/run/echo.sock")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if said, err := io.ReadAll(conn); string(said) != "hello\n" {
			t.Errorf("the socket says %q, %v", said, err)
		}
	})
	t.Run("panic", func(t *testing.T) {
		a.Command(ctx, "echo c >/proc/sysrq-trigger").Start()
		select {
		case <-a.qemu.exited:
		case <-time.After(time.Minute):
			t.Error("the machine goes on after a kernel panic")
		}
		if _, err := a.Run(ctx, "true"); err == nil || !strings.Contains(err.Error(), "sysrq") {
			t.Errorf("the error does not show the console: %v", err)
		}
	})
	b.Close()
	for _, gone := range []string{b.Dir, b.sockets} {
		if exists(gone) {
			t.Errorf("Close left %s", gone)
		}
	}
	if startTime(b.pid) != 0 {
		t.Error("Close left QEMU running")
	}
}

func testCopy(ctx context.Context, t *testing.T, v *VM) {
	dir := t.TempDir()
	file := filepath.Join(dir, "it's a file")
	content := make([]byte, 10<<20)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	if err := os.WriteFile(file, content, 0o750); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := v.Push(ctx, file, "/root/new dir/it's"); err != nil {
		t.Fatal(err)
	}
	t.Logf("10 MiB pushed in %.1f s", time.Since(start).Seconds())
	back := filepath.Join(dir, "back")
	if err := v.Pull(ctx, "/root/new dir/it's", back); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(back); string(got) != string(content) {
		t.Errorf("%d bytes came back other than %d went", len(got), len(content))
	}
	if mode, _ := v.Run(ctx, "stat -c %a '/root/new dir/it'\\''s'"); mode != "750\n" {
		t.Errorf("mode is %q", mode)
	}
	if err := v.Pull(ctx, "/nonexistent", back); err == nil || exists(back) {
		t.Errorf("a file that is not there was pulled: %v", err)
	}
	tree := filepath.Join(dir, "tree")
	os.MkdirAll(filepath.Join(tree, "sub"), 0o700)
	os.Chmod(tree, 0o700)
	for n := range 3 {
		os.WriteFile(filepath.Join(tree, "sub", fmt.Sprint(n)), []byte{byte('0' + n)}, 0o644)
	}
	if err := v.Push(ctx, tree, "/"); err != nil {
		t.Fatal(err)
	}
	if out, err := v.Run(ctx, "cat /sub/*; stat -c ' %a' /"); out != "012 755\n" {
		t.Errorf("directory pushed over /: %q %v", out, err)
	}
}
