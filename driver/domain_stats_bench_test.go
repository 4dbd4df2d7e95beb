package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

// cgroupFiles are what all of domstats reads of an environment's cgroup.
var cgroupFiles = []string{
	"cpu.stat", "cpu.pressure", "pids.current", "pids.peak", "pids.max", "pids.events", "cgroup.stat", "cgroup.max.descendants",
	"memory.current", "memory.peak", "memory.min", "memory.low", "memory.high", "memory.max", "memory.stat", "memory.events",
	"memory.swap.current", "memory.swap.peak", "memory.swap.max", "memory.swap.events", "memory.pressure", "io.stat", "io.pressure",
}

// BenchmarkDomainStats is domstats of 100 running environments, from reading
// to the encoded answer, beside reading the same files with os.ReadFile and
// doing nothing with them. The cgroups are the kernel's own where it lets us
// make some, else copies of the files.
func BenchmarkDomainStats(b *testing.B) {
	dirs, kind := benchCgroups(b, 100)
	drv := statsDriver(b)
	d := addDomain(b, drv, "web1", "")
	setView(d, func(v *view) { v.state, v.live = Running, v.config })
	groups, err := chooseGroups(0, false)
	if err != nil {
		b.Fatal(err)
	}
	b.Run(kind+"/domstats", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			shared, ret := newSharedStats(), protocol.ConnectGetAllDomainStatsRet{}
			for _, dir := range dirs {
				cgroup, err := runtime.OpenCgroup(dir)
				if err != nil {
					b.Fatal(err)
				}
				g := &gathering{drv: drv, d: d, v: d.view(), cgroup: cgroup, shared: shared}
				ret.RetStats = append(ret.RetStats, protocol.DomainStatsRecord{Dom: d.ref(g.v), Params: g.collect(groups &^ protocol.DomainStatsInterface)})
				cgroup.Close()
			}
			if err := ret.EncodeXDR(xdr.NewEncoder(nil)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(kind+"/by-hand", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, dir := range dirs {
				for _, name := range cgroupFiles {
					if _, err := os.ReadFile(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
						b.Fatal(err)
					}
				}
			}
		}
	})
}

func benchCgroups(b *testing.B, count int) (dirs []string, kind string) {
	kind = "kernel"
	for n := range count {
		dir := fmt.Sprintf("/sys/fs/cgroup/virtvzd-bench-%d", n)
		if os.Mkdir(dir, 0o755) != nil {
			kind = "copies"
			break
		}
		b.Cleanup(func() { os.Remove(dir) })
		if _, err := os.Stat(dir + "/memory.stat"); err != nil {
			kind = "copies" // not a cgroup
			break
		}
		dirs = append(dirs, dir)
	}
	if kind == "kernel" {
		return dirs, kind
	}
	dirs = nil
	for n := range count {
		dir := filepath.Join(b.TempDir(), fmt.Sprint(n))
		if err := os.CopyFS(dir, os.DirFS("../runtime/testdata/cgroup")); err != nil {
			b.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, kind
}
