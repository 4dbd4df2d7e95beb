package driver

import (
	"virtvzd/runtime"
	"virtvzd/xml"
)

// The view that OpenVZ's /proc/user_beancounters gave, as far as this kernel
// counts the same: below "vz.ubc.", with the beancounters' names and units
// (pages where the name says so, bytes, or counts) and their five columns. A
// column without an equivalent is left out, and so is a beancounter without
// any:
//
//	held     what is used       memory.current, pids.current …
//	maxheld  the most there was memory.peak, pids.peak …
//	barrier  throttled above    memory.high; of a guarantee, what is kept
//	limit    refused above      memory.max, pids.max …
//	failcnt  how often          memory.events, pids.events …
//
// Memory that is allocated and not touched is not counted by this kernel:
// privvmpages, too, holds what is used. numpty, numfile, lockedpages and
// numsiginfo are there when the definition limits them.
func addMemoryBeancounters(g *gathering, l *numberList, m runtime.MemoryStats) {
	used := runtime.Sum(m.Current, m.Swap)
	none := runtime.Unknown
	l.beancounter("physpages", inPages(m.Current), inPages(m.Peak), none, inPages(m.Max), m.Events.Max)
	l.beancounter("swappages", inPages(m.Swap), inPages(m.SwapPeak), none, inPages(m.SwapMax), m.SwapEvents.Max)
	l.beancounter("privvmpages", inPages(used), none, inPages(m.High), inPages(runtime.Sum(m.Max, m.SwapMax)), m.Events.High)
	l.beancounter("vmguarpages", none, none, inPages(m.Low), none, none)
	l.beancounter("oomguarpages", inPages(used), none, inPages(m.Min), none, m.Events.Killed)
	l.beancounter("kmemsize", m.Kernel, none, none, none, none)
	l.beancounter("dcachesize", m.SlabReclaimable, none, none, none, none)
	counts := g.counts()
	l.beancounter("shmpages", inPages(m.Shmem), none, given(counts.SharedPages), given(counts.SharedPages), none)
	if limit := given(counts.LockedPages); limit.Known() {
		l.beancounter("lockedpages", inPages(m.Unevictable), none, limit, limit, none)
	}
}

// addTaskBeancounters: a limit of tasks is both of numproc's, as it was in
// OpenVZ's own samples.
func addTaskBeancounters(g *gathering, l *numberList, t runtime.TaskStats) {
	l.beancounter("numproc", t.Current, t.Peak, t.Max, t.Max, t.Failed)
	l.beancounter("nummemorysubgroups", t.Cgroups, runtime.Unknown, t.MaxCgroups, t.MaxCgroups, runtime.Unknown)
	counts, none := g.counts(), runtime.Unknown
	for _, c := range []struct {
		name  string
		limit uint64
	}{{"numpty", counts.Terminals}, {"numfile", counts.Files}, {"numsiginfo", counts.Signals}} {
		limit := given(c.limit)
		l.beancounter(c.name, none, none, limit, limit, none)
	}
}

// counts are read once of the definition that is in force.
func (g *gathering) counts() xml.CountLimits {
	if g.limits == nil {
		counts := xml.Counts(g.v.definition(false))
		g.limits = &counts
	}
	return *g.limits
}

// given is Unknown where the definition gives no limit.
func given(n uint64) runtime.Number {
	if n >= uint64(runtime.Unlimited) {
		return runtime.Unknown
	}
	return runtime.Number(n)
}

// addSockets leaves out an environment that shares another's network: the
// sockets would be those of both.
func addSockets(g *gathering, l *numberList) {
	if ns := g.v.definition(false).LXCNamespace; ns != nil && ns.ShareNet != nil {
		return
	}
	sockets, none := g.v.instance.Sockets(), runtime.Unknown
	l.beancounter("numtcpsock", sockets.TCP, none, none, none, none)
	l.beancounter("numothersock", sockets.Other, none, none, none, none)
}

func (l *numberList) beancounter(name string, held, maxheld, barrier, limit, failcnt runtime.Number) {
	prefix := "vz.ubc." + name
	l.number(prefix+".held", held)
	l.number(prefix+".maxheld", maxheld)
	l.number(prefix+".barrier", barrier)
	l.number(prefix+".limit", limit)
	l.number(prefix+".failcnt", failcnt)
}

// beancounterPage is what a page of a beancounter is, in bytes, on every host.
const beancounterPage = 4096

// inPages makes pages of bytes; no limit stays none.
func inPages(n runtime.Number) runtime.Number {
	if !n.Known() || n == runtime.Unlimited {
		return n
	}
	return n / beancounterPage
}
