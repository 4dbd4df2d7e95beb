package driver

import (
	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var scheduling = table{
	get(protocol.DomainGetSchedulerType, func(d *domain, _ *protocol.DomainGetSchedulerTypeArgs) (protocol.DomainGetSchedulerTypeRet, error) {
		return protocol.DomainGetSchedulerTypeRet{Type: "posix", Nparams: int32(1 + 2*len(quotas))}, nil
	}),
	get(protocol.DomainGetSchedulerParameters, func(d *domain, a *protocol.DomainGetSchedulerParametersArgs) (ret protocol.DomainGetSchedulerParametersRet, err error) {
		ret.Params, err = schedulerParameters(d, a.Nparams, 0)
		return ret, err
	}),
	get(protocol.DomainGetSchedulerParametersFlags, func(d *domain, a *protocol.DomainGetSchedulerParametersFlagsArgs) (ret protocol.DomainGetSchedulerParametersFlagsRet, err error) {
		ret.Params, err = schedulerParameters(d, a.Nparams, a.Flags)
		return ret, err
	}),
	modify(protocol.DomainSetSchedulerParameters, func(c *change, a *protocol.DomainSetSchedulerParametersArgs) error {
		return setScheduler(c, a.Params, 0)
	}),
	modify(protocol.DomainSetSchedulerParametersFlags, func(c *change, a *protocol.DomainSetSchedulerParametersFlagsArgs) error {
		return setScheduler(c, a.Params, a.Flags)
	}),
	get(protocol.DomainGetNumaParameters, numaParameters),
	modify(protocol.DomainSetNumaParameters, setNuma),
}

// quotas are the three names <cputune> has for a share of time. Each limits
// the environment as a whole: see xml.CPULimits.
var quotas = []struct {
	periodName, quotaName string
	fields                func(*libvirtxml.DomainCPUTune) (**libvirtxml.DomainCPUTunePeriod, **libvirtxml.DomainCPUTuneQuota)
}{
	{protocol.DomainSchedulerVcpuPeriod, protocol.DomainSchedulerVcpuQuota,
		func(t *libvirtxml.DomainCPUTune) (**libvirtxml.DomainCPUTunePeriod, **libvirtxml.DomainCPUTuneQuota) {
			return &t.Period, &t.Quota
		}},
	{protocol.DomainSchedulerEmulatorPeriod, protocol.DomainSchedulerEmulatorQuota,
		func(t *libvirtxml.DomainCPUTune) (**libvirtxml.DomainCPUTunePeriod, **libvirtxml.DomainCPUTuneQuota) {
			return &t.EmulatorPeriod, &t.EmulatorQuota
		}},
	{protocol.DomainSchedulerGlobalPeriod, protocol.DomainSchedulerGlobalQuota,
		func(t *libvirtxml.DomainCPUTune) (**libvirtxml.DomainCPUTunePeriod, **libvirtxml.DomainCPUTuneQuota) {
			return &t.GlobalPeriod, &t.GlobalQuota
		}},
}

// defaultShares is the kernel's weight of a cgroup.
const defaultShares = 100

// schedulerParameters are the values in force, the kernel's where the
// definition has none; a quota of -1 is none.
func schedulerParameters(d *domain, room int32, flags uint32) ([]protocol.TypedParam, error) {
	def, _, err := d.view().affected(flags)
	if err != nil {
		return nil, err
	}
	t := def.CPUTune
	if t == nil {
		t = &libvirtxml.DomainCPUTune{}
	}
	shares := uint64(defaultShares)
	if t.Shares != nil {
		shares = uint64(t.Shares.Value)
	}
	params := []protocol.TypedParam{{Field: protocol.DomainSchedulerCPUShares, Value: protocol.UllongValue(shares)}}
	for _, q := range quotas {
		period, quota := uint64(xml.DefaultPeriod), int64(-1)
		p, v := q.fields(t)
		if *p != nil {
			period = (*p).Value
		}
		if *v != nil && (*v).Value > 0 {
			quota = (*v).Value
		}
		params = append(params, protocol.TypedParam{Field: q.periodName, Value: protocol.UllongValue(period)},
			protocol.TypedParam{Field: q.quotaName, Value: protocol.LlongValue(quota)})
	}
	if room < 0 {
		return nil, errorf(protocol.ErrInvalidArg, "nparams must not be negative")
	}
	return params[:min(len(params), int(room))], nil
}

func setScheduler(c *change, params []protocol.TypedParam, flags uint32) error {
	var shares uint64
	periods, values := make([]uint64, len(quotas)), make([]int64, len(quotas))
	into := map[string]any{protocol.DomainSchedulerCPUShares: &shares}
	for i, q := range quotas {
		into[q.periodName], into[q.quotaName] = &periods[i], &values[i]
	}
	given, err := readParams(params, into)
	if err != nil {
		return err
	}
	return c.tune(flags, func(def *libvirtxml.Domain) error {
		t := def.CPUTune
		if t == nil {
			t = &libvirtxml.DomainCPUTune{}
			def.CPUTune = t
		}
		if given[protocol.DomainSchedulerCPUShares] {
			if shares > 262144 {
				return errorf(protocol.ErrInvalidArg, "cpu_shares of %d: 1 to 10000 is accepted, or the 2 to 262144 of cgroup v1", shares)
			}
			t.Shares = &libvirtxml.DomainCPUTuneShares{Value: uint(shares)}
		}
		for i, q := range quotas {
			period, quota := q.fields(t)
			if given[q.periodName] {
				*period = &libvirtxml.DomainCPUTunePeriod{Value: periods[i]}
			}
			if given[q.quotaName] {
				*quota = &libvirtxml.DomainCPUTuneQuota{Value: values[i]}
				if values[i] <= 0 {
					*quota = nil
				}
			}
		}
		return nil
	}, tunableEvent(prefixed("cputune.", params)...))
}

// prefixed are the parameters of an event: a call's under longer names.
func prefixed(prefix string, params []protocol.TypedParam) []protocol.TypedParam {
	list := make([]protocol.TypedParam, len(params))
	for i, p := range params {
		list[i] = protocol.TypedParam{Field: prefix + p.Field, Value: p.Value}
	}
	return list
}

// numaModes are the numbers of virDomainNumatuneMemMode.
var numaModes = []string{"strict", "preferred", "interleave", "restrictive"}

func numaParameters(d *domain, a *protocol.DomainGetNumaParametersArgs) (ret protocol.DomainGetNumaParametersRet, err error) {
	def, _, err := d.view().affected(a.Flags)
	if err != nil {
		return ret, err
	}
	mode, nodes := int32(0), ""
	if n := def.NUMATune; n != nil && n.Memory != nil {
		nodes = n.Memory.Nodeset
		for i, name := range numaModes {
			if name == n.Memory.Mode {
				mode = int32(i)
			}
		}
	}
	ret.Params, ret.Nparams, err = limited([]protocol.TypedParam{
		{Field: protocol.DomainNumaNodeset, Value: protocol.StringValue(nodes)},
		{Field: protocol.DomainNumaMode, Value: protocol.IntValue(mode)},
	}, a.Nparams)
	return ret, err
}

// setNuma changes the nodes memory is taken from. The pages that a running
// environment has on other nodes the kernel moves there (cpuset.mems).
func setNuma(c *change, a *protocol.DomainSetNumaParametersArgs) error {
	var mode int32
	var nodes string
	given, err := readParams(a.Params, map[string]any{protocol.DomainNumaNodeset: &nodes, protocol.DomainNumaMode: &mode})
	if err != nil {
		return err
	}
	if mode < 0 || int(mode) >= len(numaModes) {
		return errorf(protocol.ErrInvalidArg, "numa_mode %d is unknown", mode)
	}
	if nodes != "" {
		if err := c.drv.host.checkNodes(nodes); err != nil {
			return err
		}
	}
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		m := &libvirtxml.DomainNUMATuneMemory{Mode: "strict"}
		if n := def.NUMATune; n != nil && n.Memory != nil {
			*m = *n.Memory
		}
		if given[protocol.DomainNumaMode] {
			m.Mode = numaModes[mode]
		}
		if given[protocol.DomainNumaNodeset] {
			m.Nodeset = nodes
		}
		def.NUMATune = &libvirtxml.DomainNUMATune{Memory: m}
		if m.Nodeset == "" {
			def.NUMATune = nil
		}
		return nil
	})
}
