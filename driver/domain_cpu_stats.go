package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

var cpuStatistics = table{
	query(protocol.DomainGetCPUStats, domainCPUStats),
}

// domainCPUStats has the total only, in nanoseconds. cgroup v2 adds processor
// time up over all CPUs and keeps none by CPU, and a total spread over CPUs
// would be invented. So the number of parameters for each CPU is none, which
// clients understand: virsh says so and goes on to the total. What the
// arguments mean is libvirt's (virCgroupGetPercpuStats,
// virCgroupGetDomainTotalCpuStats).
func domainCPUStats(r *request, d *domain, a *protocol.DomainGetCPUStatsArgs) (ret protocol.DomainGetCPUStatsRet, err error) {
	switch {
	case a.Nparams > protocol.NodeCPUStatsMax:
		return ret, errorf(protocol.ErrInternalError, "nparams too large")
	case a.Ncpus > protocol.DomainGetCPUStatsNcpusMax:
		return ret, errorf(protocol.ErrInternalError, "ncpus too large")
	case a.StartCPU == -1 && a.Ncpus != 1:
		return ret, errorf(protocol.ErrInvalidArg, "start_cpu in virDomainGetCPUStats must be non-negative unless ncpus is 1")
	case a.StartCPU < -1:
		return ret, errorf(protocol.ErrInvalidArg, "start_cpu in virDomainGetCPUStats must be zero or greater")
	}
	if err := checkFlags(a.Flags, protocol.TypedParamStringOkay); err != nil {
		return ret, err
	}
	if a.StartCPU >= 0 {
		ret.Nparams, err = perCPU(d, a)
		return ret, err
	}
	cgroup, err := d.cgroup()
	if err != nil {
		return ret, err
	}
	defer cgroup.Close()
	list := cpuParameters(cgroup.CPU())
	ret.Nparams = int32(len(list))
	if a.Nparams > 0 {
		ret.Params = list[:min(len(list), int(a.Nparams))]
		ret.Nparams = int32(len(ret.Params))
	}
	return ret, nil
}

// perCPU is how many CPUs there are, or that nothing is known of each.
// Asking for it all the same is an error: an empty answer makes libvirt's
// client divide by its length.
func perCPU(d *domain, a *protocol.DomainGetCPUStatsArgs) (int32, error) {
	switch {
	case !d.view().state.active():
		return 0, errNotRunning()
	case a.Nparams > 0:
		return 0, errorf(protocol.ErrOperationUnsupported, "the kernel does not count an environment's processor time by CPU: ask for the total")
	case a.Ncpus > 0:
		return 0, nil
	}
	present, err := cpuList(sysCPU + "/present")
	if err != nil {
		return 0, err
	}
	return int32(present[len(present)-1] + 1), nil
}

func cpuParameters(cpu runtime.CPUStats) []protocol.TypedParam {
	var list numberList
	list.number(protocol.DomainCPUStatsCputime, cpu.Usage)
	list.number(protocol.DomainCPUStatsUsertime, cpu.User)
	list.number(protocol.DomainCPUStatsSystemtime, cpu.System)
	return list
}

// cgroup opens the numbers of a running domain. The caller closes it.
func (d *domain) cgroup() (*runtime.Cgroup, error) {
	inst := d.view().instance
	if inst == nil {
		return nil, errNotRunning()
	}
	cgroup, err := inst.Cgroup()
	if err != nil {
		return nil, errNotRunning() // it has just ended
	}
	return cgroup, nil
}

func errNotRunning() error { return errorf(protocol.ErrOperationInvalid, "domain is not running") }
