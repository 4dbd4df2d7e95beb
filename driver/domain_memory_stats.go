package driver

import (
	"os"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

var memoryStatistics = table{
	query(protocol.DomainMemoryStats, domainMemoryStats),
}

// memoryStatNames are libvirt's tags with their names in domstats, in the
// order in which virsh dommemstat prints what QEMU tells.
var memoryStatNames = []struct {
	tag  int32
	name string
}{
	{protocol.DomainMemoryStatSwapIn, protocol.DomainStatsBalloonSwapIn},
	{protocol.DomainMemoryStatSwapOut, protocol.DomainStatsBalloonSwapOut},
	{protocol.DomainMemoryStatMajorFault, protocol.DomainStatsBalloonMajorFault},
	{protocol.DomainMemoryStatMinorFault, protocol.DomainStatsBalloonMinorFault},
	{protocol.DomainMemoryStatUnused, protocol.DomainStatsBalloonUnused},
	{protocol.DomainMemoryStatAvailable, protocol.DomainStatsBalloonAvailable},
	{protocol.DomainMemoryStatUsable, protocol.DomainStatsBalloonUsable},
	{protocol.DomainMemoryStatLastUpdate, protocol.DomainStatsBalloonLastUpdate},
	{protocol.DomainMemoryStatDiskCaches, protocol.DomainStatsBalloonDiskCaches},
	{protocol.DomainMemoryStatRss, protocol.DomainStatsBalloonRss},
}

func domainMemoryStats(r *request, d *domain, a *protocol.DomainMemoryStatsArgs) (ret protocol.DomainMemoryStatsRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if a.MaxStats > protocol.DomainMemoryStatsMax {
		return ret, errorf(protocol.ErrInternalError, "maxStats > %d", protocol.DomainMemoryStatsMax)
	}
	cgroup, err := d.cgroup()
	if err != nil {
		return ret, err
	}
	defer cgroup.Close()
	ret.Stats = append(ret.Stats, protocol.DomainMemoryStat{Tag: protocol.DomainMemoryStatActualBalloon, Val: currentMemory(d.view())})
	values := memoryValues(cgroup.Memory(), time.Now())
	for _, s := range memoryStatNames {
		if n := values[s.tag]; n.Known() {
			ret.Stats = append(ret.Stats, protocol.DomainMemoryStat{Tag: s.tag, Val: uint64(n)})
		}
	}
	ret.Stats = ret.Stats[:min(len(ret.Stats), int(a.MaxStats))]
	return ret, nil
}

// memoryValues are libvirt's numbers by tag: KiB, counts of faults, and the
// time in seconds since 1970, which is now. As in libvirt's lxc driver the
// resident set is all that is charged to the environment.
func memoryValues(m runtime.MemoryStats, now time.Time) map[int32]runtime.Number {
	limit := m.Max
	if limit == runtime.Unlimited {
		limit = runtime.Unknown
	}
	minor := runtime.Unknown
	if m.Faults.Known() && m.MajorFaults.Known() {
		minor = max(0, m.Faults-m.MajorFaults)
	}
	return map[int32]runtime.Number{
		protocol.DomainMemoryStatSwapIn:     kibPages(m.SwappedIn),
		protocol.DomainMemoryStatSwapOut:    kibPages(m.SwappedOut),
		protocol.DomainMemoryStatMajorFault: m.MajorFaults,
		protocol.DomainMemoryStatMinorFault: minor,
		protocol.DomainMemoryStatUnused:     kib(m.Unused()),
		protocol.DomainMemoryStatAvailable:  kib(limit),
		protocol.DomainMemoryStatUsable:     kib(m.Usable()),
		protocol.DomainMemoryStatLastUpdate: runtime.Number(now.Unix()),
		protocol.DomainMemoryStatDiskCaches: kib(m.Caches()),
		protocol.DomainMemoryStatRss:        kib(m.Current),
	}
}

func addMemory(g *gathering, l *numberList) {
	l.ullong(protocol.DomainStatsBalloonCurrent, currentMemory(g.v))
	l.ullong(protocol.DomainStatsBalloonMaximum, maxMemory(g.v))
	if g.cgroup == nil {
		return
	}
	m := g.cgroup.Memory()
	values := memoryValues(m, time.Now())
	for _, s := range memoryStatNames {
		l.number(s.name, values[s.tag])
	}
	addMemoryExtra(g, l, m)
}

// kib makes KiB of bytes.
func kib(n runtime.Number) runtime.Number {
	if !n.Known() {
		return n
	}
	return n >> 10
}

// kibPages makes KiB of the host's pages.
func kibPages(n runtime.Number) runtime.Number {
	if !n.Known() {
		return n
	}
	return n * runtime.Number(os.Getpagesize()>>10)
}
