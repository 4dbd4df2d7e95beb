package xml

import (
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// validateCPUTune has the ranges of libvirt's lxc driver and of the kernel.
func validateCPUTune(def *libvirtxml.Domain, _ HostFacts) error {
	t := def.CPUTune
	if t == nil {
		return nil
	}
	if t.Shares != nil && (t.Shares.Value < 1 || t.Shares.Value > 262144) {
		return invalid("<shares>", "is %d: 1 to 10000 is accepted, or the 2 to 262144 of cgroup v1", t.Shares.Value)
	}
	for _, p := range []struct {
		element string
		period  *libvirtxml.DomainCPUTunePeriod
	}{{"<period>", t.Period}, {"<global_period>", t.GlobalPeriod}, {"<emulator_period>", t.EmulatorPeriod}} {
		if p.period != nil && (p.period.Value < 1000 || p.period.Value > 1_000_000) {
			return invalid(p.element, "is %d µs: 1000 to 1000000 are accepted", p.period.Value)
		}
	}
	for _, q := range []struct {
		element string
		quota   *libvirtxml.DomainCPUTuneQuota
	}{{"<quota>", t.Quota}, {"<global_quota>", t.GlobalQuota}, {"<emulator_quota>", t.EmulatorQuota}} {
		if q.quota != nil && (q.quota.Value > 0 && q.quota.Value < 1000 || q.quota.Value > 17592186044415) {
			return invalid(q.element, "is %d µs: 1000 to 17592186044415 are accepted, or a negative number for none", q.quota.Value)
		}
	}
	return validatePins(def)
}

func validatePins(def *libvirtxml.Domain) error {
	t := def.CPUTune
	pinned := map[uint]bool{}
	for _, p := range t.VCPUPin {
		if p.VCPU >= def.VCPU.Value {
			return invalid("<vcpupin>", "has vcpu='%d': there are only 0 to %d", p.VCPU, def.VCPU.Value-1)
		}
		if pinned[p.VCPU] {
			return invalid("<vcpupin>", "has vcpu='%d' twice", p.VCPU)
		}
		pinned[p.VCPU] = true
		if _, err := ParseCPUSet(p.CPUSet); err != nil {
			return invalid("<vcpupin>", "has cpuset='%s': a list such as 0-3,^2,8 is accepted", shorten(p.CPUSet))
		}
	}
	if t.EmulatorPin != nil {
		if _, err := ParseCPUSet(t.EmulatorPin.CPUSet); err != nil {
			return invalid("<emulatorpin>", "has cpuset='%s': a list such as 0-3,^2,8 is accepted", shorten(t.EmulatorPin.CPUSet))
		}
	}
	if len(t.IOThreadPin)+len(t.VCPUSched)+len(t.IOThreadSched)+len(t.CacheTune)+len(t.MemoryTune) > 0 ||
		t.EmulatorSched != nil || t.IOThreadPeriod != nil || t.IOThreadQuota != nil {
		return unsupported("<cputune>", "can have shares, vcpupin, emulatorpin, and period and quota, also as global_ and emulator_")
	}
	return nil
}

// validateBlockTune: a weight is libvirt's 10 to 1000 of cgroup v1 or the 1
// to 10000 of cgroup v2.
func validateBlockTune(def *libvirtxml.Domain, _ HostFacts) error {
	t := def.BlockIOTune
	if t == nil {
		return nil
	}
	if t.Weight > 10000 {
		return invalid("<weight>", "is %d: 1 to 10000 are accepted", t.Weight)
	}
	used := map[string]bool{}
	for _, d := range t.Device {
		if !strings.HasPrefix(d.Path, "/") {
			return invalid("<blkiotune><device>", "has the path '%s': that of a block device on the host is needed", shorten(d.Path))
		}
		if used[d.Path] {
			return invalid("<blkiotune><device>", "has the path '%s' twice", shorten(d.Path))
		}
		used[d.Path] = true
		if d.Weight > 10000 {
			return invalid("<weight>", "is %d: 1 to 10000 are accepted", d.Weight)
		}
	}
	return nil
}

// validateIOTune: the kernel limits bytes and operations a second, and has no
// bursts and no groups of disks.
func validateIOTune(t *libvirtxml.DomainDiskIOTune) error {
	if t == nil {
		return nil
	}
	known := libvirtxml.DomainDiskIOTune{
		TotalBytesSec: t.TotalBytesSec, ReadBytesSec: t.ReadBytesSec, WriteBytesSec: t.WriteBytesSec,
		TotalIopsSec: t.TotalIopsSec, ReadIopsSec: t.ReadIopsSec, WriteIopsSec: t.WriteIopsSec,
	}
	if *t != known {
		return unsupported("<iotune>", "can have total, read and write _bytes_sec and _iops_sec: the kernel has no bursts and no groups")
	}
	if t.TotalBytesSec > 0 && t.ReadBytesSec+t.WriteBytesSec > 0 || t.TotalIopsSec > 0 && t.ReadIopsSec+t.WriteIopsSec > 0 {
		return invalid("<iotune>", "has both a total and a limit for reading or writing: give one")
	}
	return nil
}

func validateNUMA(def *libvirtxml.Domain, _ HostFacts) error {
	if def.NUMATune == nil {
		return nil
	}
	if len(def.NUMATune.MemNodes) > 0 {
		return unsupported("<memnode>", "cannot be used: an environment has the host's NUMA nodes, <numatune><memory nodeset=…/> limits them")
	}
	m := def.NUMATune.Memory
	if m == nil {
		return nil
	}
	if !slices.Contains([]string{"", "strict", "preferred", "interleave", "restrictive"}, m.Mode) {
		return invalid("<numatune><memory>", "has mode='%s': strict, preferred, interleave and restrictive are accepted", shorten(m.Mode))
	}
	switch m.Placement {
	case "", "static":
		if _, err := ParseCPUSet(m.Nodeset); err != nil {
			return invalid("<numatune><memory>", "has nodeset='%s': a list such as 0-1 is needed", shorten(m.Nodeset))
		}
	case "auto":
	default:
		return invalid("<numatune><memory>", "has placement='%s': static and auto are accepted", shorten(m.Placement))
	}
	return nil
}

// partition is what systemd makes a slice's name of, one level an element.
var partition = pattern(`^(/[a-zA-Z0-9:_.\\-]+)+$`)

func validatePartition(def *libvirtxml.Domain, _ HostFacts) error {
	if def.Resource == nil || def.Resource.Partition == "" {
		return nil
	}
	p := def.Resource.Partition
	if !partition().MatchString(p) || len(p) > 200 || strings.Contains(p+"/", "/../") || strings.Contains(p+"/", "/./") {
		return invalid("<partition>", "is '%s': an absolute path such as /machine/web is needed, in which names are letters, digits and ':', '_', '.', '-'", shorten(p))
	}
	return nil
}
