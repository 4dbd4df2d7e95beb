package driver

import (
	"strconv"

	"virtvzd/runtime"
)

// What the kernel tells of an environment and libvirt has no name for: below
// "vz.", named after the files of its cgroup, in their units. Memory is in
// bytes, times are in nanoseconds, pressure totals in microseconds, averages
// in percent. Stock clients print them as they print any other.

func addCPUExtra(g *gathering, l *numberList, cpu runtime.CPUStats) {
	l.number("vz.cpu.nr_periods", cpu.Periods)
	l.number("vz.cpu.nr_throttled", cpu.Throttled)
	l.number("vz.cpu.throttled", cpu.ThrottledTime)
	l.pressure("cpu", g.cgroup.Pressure("cpu"))
	tasks := g.cgroup.Tasks()
	l.number("vz.pids.current", tasks.Current)
	l.number("vz.pids.peak", tasks.Peak)
	l.number("vz.pids.max", tasks.Max)
	l.number("vz.pids.events.max", tasks.Failed)
	addTaskBeancounters(g, l, tasks)
}

func addMemoryExtra(g *gathering, l *numberList, m runtime.MemoryStats) {
	for _, f := range []struct {
		name  string
		value runtime.Number
	}{
		{"current", m.Current}, {"peak", m.Peak},
		{"min", m.Min}, {"low", m.Low}, {"high", m.High}, {"max", m.Max},
		{"swap.current", m.Swap}, {"swap.peak", m.SwapPeak}, {"swap.max", m.SwapMax},
		{"stat.anon", m.Anon}, {"stat.file", m.File}, {"stat.shmem", m.Shmem},
		{"stat.kernel", m.Kernel}, {"stat.sock", m.Sock}, {"stat.slab_reclaimable", m.SlabReclaimable}, {"stat.unevictable", m.Unevictable},
		{"events.low", m.Events.Low}, {"events.high", m.Events.High}, {"events.max", m.Events.Max},
		{"events.oom", m.Events.OOM}, {"events.oom_kill", m.Events.Killed}, {"events.oom_group_kill", m.Events.GroupKilled},
		{"swap.events.max", m.SwapEvents.Max}, {"swap.events.fail", m.SwapEvents.Failed},
	} {
		l.number("vz.memory."+f.name, f.value)
	}
	l.pressure("memory", g.cgroup.Pressure("memory"))
	addMemoryBeancounters(g, l, m)
}

// addIOExtra has every device the environment used, whatever it is for.
func addIOExtra(g *gathering, l *numberList, devices []runtime.IOStats) {
	if g.cgroup == nil {
		return
	}
	l.uint("vz.io.count", len(devices))
	for n, s := range devices {
		prefix := "vz.io." + strconv.Itoa(n)
		l.text(prefix+".device", s.Device.String())
		l.number(prefix+".rbytes", s.ReadBytes)
		l.number(prefix+".wbytes", s.WriteBytes)
		l.number(prefix+".rios", s.Reads)
		l.number(prefix+".wios", s.Writes)
		l.number(prefix+".dbytes", s.Discarded)
		l.number(prefix+".dios", s.Discards)
	}
	l.pressure("io", g.cgroup.Pressure("io"))
}

func (l *numberList) pressure(resource string, p runtime.Pressure) {
	for _, k := range []struct {
		kind  string
		stall runtime.Stall
	}{{"some", p.Some}, {"full", p.Full}} {
		if !k.stall.Total.Known() {
			continue
		}
		prefix := "vz.psi." + resource + "." + k.kind
		l.double(prefix+".avg10", k.stall.Avg10)
		l.double(prefix+".avg60", k.stall.Avg60)
		l.double(prefix+".avg300", k.stall.Avg300)
		l.number(prefix+".total", k.stall.Total)
	}
}
