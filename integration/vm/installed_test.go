//go:build vm

package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// TestInstalled holds what tests with Test rely on: stock virsh reaches this
// tree's daemon, libvirtd is there as the peer, the roots and the disk with
// project quota are there, and nothing failed.
func TestInstalled(t *testing.T) {
	v := Test(t)
	for _, c := range []struct{ command, want string }{
		{"virsh -c vz:///system uri", "vz:///system"},
		{"virsh -c lxc:///system uri", "lxc:///system"},
		{"pidof virtvzd | wc -w", "1"},
		{"ls " + Roots, "busybox.tar.zst\ndebian13-server.tar.zst\ndebian13-systemd.tar.zst\ndebian13-sysvinit.tar.zst"},
		{"findmnt -rno FSTYPE,OPTIONS /var/lib/libvirt/vz", "ext4 rw,noatime,prjquota"},
		{"cat /sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc"},
		{"stat -c %a / /usr /etc /usr/sbin/virtvzd", "755\n755\n755\n755"}, // and not those of the directory that was pushed
		{"systemctl --failed --no-legend; systemctl is-system-running", "running"},
	} {
		if got := strings.TrimSpace(v.Sh(t, c.command)); got != c.want {
			t.Errorf("%s\ngot  %q\nwant %q", c.command, got, c.want)
		}
	}

	before := v.Sh(t, "systemctl show -P MainPID virtvzd")
	if err := v.Install(t.Context()); err != nil {
		t.Fatal("again, over a daemon that runs:", err)
	}
	if after := v.Sh(t, "systemctl show -P MainPID virtvzd"); after == before {
		t.Errorf("the old daemon, pid %s, still runs", strings.TrimSpace(after))
	}
}

// A daemon of the tests can be told to fail, one that is shipped cannot.
func TestFaultsAreNotShipped(t *testing.T) {
	const file = "/run/virtvzd-fault"
	if v := Test(t); strings.TrimSpace(v.Sh(t, "grep -c "+file+" /usr/sbin/virtvzd")) == "0" {
		t.Error("a machine's daemon does not know", file)
	}
	shipped := filepath.Join(t.TempDir(), "virtvzd")
	if out, err := exec.Command("make", "-C", "../..", "BIN="+filepath.Dir(shipped), shipped).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if program, err := os.ReadFile(shipped); err != nil || bytes.Contains(program, []byte(file)) {
		t.Errorf("what is built without tags knows %s, or %v", file, err)
	}
}
