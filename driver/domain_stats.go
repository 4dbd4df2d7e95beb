package driver

import (
	"context"
	goruntime "runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

var statistics = table{
	call(protocol.ConnectGetAllDomainStats, allDomainStats),
}

// statsGroups are the groups of numbers a client can ask for, in libvirt's
// order (qemu_driver.c, qemuDomainGetStatsWorkers), with what this daemon
// adds below the prefix "vz." in the group it belongs to. The monitors of
// the last two do not exist for environments: none is their number. Groups
// that are not here have no meaning for one: performance events, the rate of
// dirty pages, what QEMU tells of a virtual machine.
var statsGroups = []struct {
	bit uint32
	add func(*gathering, *numberList)
}{
	{protocol.DomainStatsState, addState},
	{protocol.DomainStatsCPUTotal, addCPU},
	{protocol.DomainStatsBalloon, addMemory},
	{protocol.DomainStatsVcpu, addVCPUs},
	{protocol.DomainStatsInterface, addInterfaces},
	{protocol.DomainStatsBlock, addBlocks},
	{protocol.DomainStatsIothread, func(_ *gathering, l *numberList) { l.uint(protocol.DomainStatsIothreadCount, 0) }},
	{protocol.DomainStatsMemory, func(_ *gathering, l *numberList) { l.uint(protocol.DomainStatsMemoryBandwidthMonitorCount, 0) }},
}

// gathering is a domain whose numbers are collected.
type gathering struct {
	drv    *Driver
	d      *domain
	v      *view
	cgroup *runtime.Cgroup // nil when shut off
	inside []runtime.InsideLink
	links  []runtime.Link
	shared *sharedStats
	limits *xml.CountLimits // see counts
}

// sharedStats is what all domains of a call have in common: what of the host
// is read once, and how much the answer has.
type sharedStats struct {
	interfaces func() map[string]runtime.InterfaceStats
	numbers    atomic.Int64
}

func newSharedStats() *sharedStats {
	return &sharedStats{interfaces: sync.OnceValue(func() map[string]runtime.InterfaceStats {
		list, _ := runtime.HostInterfaces() // without /proc there is nothing at all
		return list
	})}
}

// maxNumbers bounds an answer: about as many fit into a message of libvirt's.
const maxNumbers = 1 << 20

// allDomainStats is one call of one worker however much is asked for. No group
// waits for a domain's job: NOWAIT changes nothing. Nor does BACKING: an
// environment's root has no chain of images.
func allDomainStats(r *request, a *protocol.ConnectGetAllDomainStatsArgs) (ret protocol.ConnectGetAllDomainStatsRet, err error) {
	const choice = protocol.ConnectGetAllDomainsStatsActive | protocol.ConnectGetAllDomainsStatsInactive |
		protocol.ConnectGetAllDomainsStatsPersistent | protocol.ConnectGetAllDomainsStatsTransient |
		protocol.ConnectGetAllDomainsStatsRunning | protocol.ConnectGetAllDomainsStatsPaused |
		protocol.ConnectGetAllDomainsStatsShutoff | protocol.ConnectGetAllDomainsStatsOther
	err = checkFlags(a.Flags, choice, protocol.ConnectGetAllDomainsStatsNowait,
		protocol.ConnectGetAllDomainsStatsBacking, protocol.ConnectGetAllDomainsStatsEnforceStats)
	if err != nil {
		return ret, err
	}
	groups, err := chooseGroups(a.Stats, a.Flags&protocol.ConnectGetAllDomainsStatsEnforceStats != 0)
	if err != nil {
		return ret, err
	}
	var list []*gathering
	shared := newSharedStats()
	for _, d := range r.chosen(a.Doms) {
		if err := r.ctx.Err(); err != nil {
			return ret, err // nobody waits for the answer any more
		}
		v := d.view()
		if v.undefined() {
			continue // it went away since
		}
		if matches(v, a.Flags&choice) && r.passes(d) { // the flags are those of a list of domains, bit for bit
			list = append(list, &gathering{drv: r.drv, d: d, v: v, shared: shared})
		}
	}
	ret.RetStats = make([]protocol.DomainStatsRecord, len(list))
	return ret, onAllCPUs(r.ctx, len(list), func(n int) error {
		g := list[n]
		record := protocol.DomainStatsRecord{Dom: g.d.ref(g.v), Params: g.read(groups)}
		if shared.numbers.Add(int64(len(record.Params))) > maxNumbers {
			return errorf(protocol.ErrRpc, "the answer has more than %d numbers: ask for fewer domains or groups at a time", maxNumbers)
		}
		ret.RetStats[n] = record
		return nil
	})
}

// onAllCPUs does something for each of many, some at a time, until one of them
// fails or nobody waits any more.
func onAllCPUs(ctx context.Context, count int, do func(n int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(goruntime.GOMAXPROCS(0), count) {
		workers.Go(func() {
			for n := int(next.Add(1)) - 1; n < count && ctx.Err() == nil; n = int(next.Add(1)) - 1 {
				if err := do(n); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// chooseGroups makes "none" all there are; with enforce it refuses what there
// is not (qemuDomainGetStatsCheckSupport).
func chooseGroups(asked uint32, enforce bool) (uint32, error) {
	supported := uint32(0)
	for _, g := range statsGroups {
		supported |= g.bit
	}
	if asked == 0 {
		return supported, nil
	}
	if missing := asked &^ supported; enforce && missing != 0 {
		return 0, errorf(protocol.ErrArgumentUnsupported, "Stats types bits 0x%x are not supported by this daemon", missing)
	}
	return asked & supported, nil
}

// chosen are the domains named, or all. One that is gone meanwhile is left
// out, as in libvirt (virDomainObjListConvert); one that is named twice is
// reported once.
func (r *request) chosen(refs []protocol.NonnullDomain) []*domain {
	if len(refs) == 0 {
		return r.drv.domains.all()
	}
	var list []*domain
	seen := map[protocol.UUID]bool{}
	for _, ref := range refs {
		if d := r.drv.domains.lookup(ref.UUID); d != nil && !seen[ref.UUID] {
			seen[ref.UUID] = true
			list = append(list, d)
		}
	}
	return list
}

func (g *gathering) read(groups uint32) []protocol.TypedParam {
	if g.v.instance != nil {
		// One that ends just now tells no numbers any more.
		if cgroup, err := g.v.instance.Cgroup(); err == nil {
			defer cgroup.Close()
			g.cgroup = cgroup
		}
	}
	return g.collect(groups)
}

func (g *gathering) collect(groups uint32) []protocol.TypedParam {
	list := make(numberList, 0, 160) // about what there is of a running environment
	for _, group := range statsGroups {
		if groups&group.bit != 0 {
			group.add(g, &list)
		}
	}
	return list
}

func addState(g *gathering, l *numberList) {
	l.int(protocol.DomainStatsStateState, int(g.v.state))
	l.int(protocol.DomainStatsStateReason, int(g.v.reason))
}

func addCPU(g *gathering, l *numberList) {
	if g.cgroup == nil {
		return
	}
	cpu := g.cgroup.CPU()
	l.number(protocol.DomainStatsCPUTime, cpu.Usage)
	l.number(protocol.DomainStatsCPUUser, cpu.User)
	l.number(protocol.DomainStatsCPUSystem, cpu.System)
	addCPUExtra(g, l, cpu)
}

// addVCPUs has no times: cgroup v2 does not count by CPU.
func addVCPUs(g *gathering, l *numberList) {
	def := g.v.definition(false)
	if def.VCPU == nil {
		return
	}
	count := int(def.VCPU.Value)
	if def.VCPU.Current != 0 {
		count = int(def.VCPU.Current)
	}
	l.uint(protocol.DomainStatsVcpuCurrent, count)
	l.uint(protocol.DomainStatsVcpuMaximum, int(def.VCPU.Value))
	state := protocol.VcpuOffline
	if g.v.state.active() {
		state = protocol.VcpuRunning
	}
	for n := range count {
		l.int(protocol.DomainStatsVcpuPrefix+strconv.Itoa(n)+protocol.DomainStatsVcpuSuffixState, state)
	}
}

// numberList is a domain's numbers on their way into an answer.
type numberList []protocol.TypedParam

func (l *numberList) add(name string, value protocol.TypedParamValue) {
	*l = append(*l, protocol.TypedParam{Field: name, Value: value})
}

// number leaves out what the kernel does not tell. No limit is
// runtime.Unlimited, 9223372036854775807, as in /proc/user_beancounters.
func (l *numberList) number(name string, n runtime.Number) {
	if n.Known() {
		l.add(name, protocol.UllongValue(n))
	}
}

func (l *numberList) ullong(name string, n uint64)      { l.add(name, protocol.UllongValue(n)) }
func (l *numberList) uint(name string, n int)           { l.add(name, protocol.UintValue(n)) }
func (l *numberList) int(name string, n int)            { l.add(name, protocol.IntValue(n)) }
func (l *numberList) double(name string, value float64) { l.add(name, protocol.DoubleValue(value)) }
func (l *numberList) text(name, value string)           { l.add(name, protocol.StringValue(value)) }
