//go:build vm

package vm

import (
	"os"
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
		{"ls " + Roots, "busybox.tar.zst\ndebian13-systemd.tar.zst\ndebian13-sysvinit.tar.zst"},
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
