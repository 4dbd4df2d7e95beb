package driver

import (
	"strings"
	"testing"

	"virtvzd/runtime"
)

// TestBlockIOTune: one limit takes the place of all of its kind.
func TestBlockIOTune(t *testing.T) {
	h := newTestHost(t)
	h.set(func(drv *Driver) { drv.rt = &runtime.Runtime{} })
	disk := "<devices><disk type='block' device='disk'><source dev='/dev/loop0'/><target dev='vda'/></disk>"
	h.virsh(true, "define", h.file(strings.Replace(domainXML("web1", ""), "<devices>", disk, 1)))
	shown := func() string { return strings.Join(strings.Fields(h.virsh(true, "blkdeviotune", "web1", "vda")), "") }
	for _, c := range []struct{ args, want string }{
		{"--write-bytes-sec 2000 --total-iops-sec 7", "total_bytes_sec:0read_bytes_sec:0write_bytes_sec:2000total_iops_sec:7read_iops_sec:0"},
		{"--read-bytes-sec 1000", "total_bytes_sec:0read_bytes_sec:1000write_bytes_sec:0total_iops_sec:7read_iops_sec:0"},
		{"--write-iops-sec 5", "read_bytes_sec:1000write_bytes_sec:0total_iops_sec:0read_iops_sec:0write_iops_sec:5"},
		{"--total-bytes-sec 0", "total_bytes_sec:0read_bytes_sec:0write_bytes_sec:0total_iops_sec:0read_iops_sec:0write_iops_sec:5"},
	} {
		h.virsh(true, append([]string{"blkdeviotune", "web1", "vda", "--config"}, strings.Fields(c.args)...)...)
		h.want(shown(), c.want)
	}
}
