package xml

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// MemoryLimits are bytes: cgroup v2's memory.max, high, low, min and swap.max.
type MemoryLimits struct{ Max, High, Low, Min, Swap uint64 }

// CPULimits are what cpu.weight, cpu.max and the cpuset are made of.
type CPULimits struct {
	Count, MaxCount uint   // CPUs to see inside now and at most
	Set             string // CPUs of the host to run on; empty: all
	Pins            []Pin  // of single CPUs inside
	Emulator        string // once more CPUs of the host to run on, <emulatorpin>
	MemoryNodes     string // NUMA nodes to take memory from; empty: all
	Weight          uint64 // 1 to 10000; 0: not set
	QuotaUSec       int64  // per period; 0 or less: none
	PeriodUSec      uint64 // 0: the kernel's default
}

// Pin says on which CPUs of the host a CPU inside may be.
type Pin struct {
	CPU uint
	Set string
}

// IOLimits are io.weight and, by block device, io.max.
type IOLimits struct {
	Weight  uint64 // 1 to 10000; 0: not set
	Devices []DeviceIO
}

// DeviceIO are the limits of one block device of the host; 0: none.
type DeviceIO struct {
	Path                  string
	Disk                  string // in place of it, the Target of a Device that is an image
	Weight                uint64 // 1 to 10000
	ReadBytes, WriteBytes uint64 // a second
	ReadIOPS, WriteIOPS   uint64 // a second
}

// CountLimits are numbers of things, from <ve:tasks> and <ve:ubc>;
// math.MaxUint64 is none. LockedPages and Signals hold for each user inside.
type CountLimits struct {
	Tasks       uint64 // processes and threads: pids.max
	Terminals   uint64 // pseudo terminals of /dev/pts
	SharedPages uint64 // System V shared memory, in pages: kernel.shmall
	Cgroups     uint64 // below the environment's own: cgroup.max.descendants
	Files       uint64 // open files of a process: RLIMIT_NOFILE
	LockedPages uint64 // mlock(2), in pages: RLIMIT_MEMLOCK
	Signals     uint64 // queued: RLIMIT_SIGPENDING
}

// NoCounts limits nothing.
func NoCounts() CountLimits {
	const none = math.MaxUint64
	return CountLimits{none, none, none, none, none, none, none}
}

// Counts are those that a definition has.
func Counts(def *libvirtxml.Domain) CountLimits {
	e := &Environment{Counts: NoCounts()}
	if ve, err := parseVE(def); err == nil && ve != nil {
		ve.apply(e)
	}
	return e.Counts
}

// memoryLimits: <currentMemory> is what may be used now, a <hard_limit>
// overrides it, and libvirt's swap_hard_limit counts memory and swap.
func memoryLimits(def *libvirtxml.Domain) MemoryLimits {
	m := MemoryLimits{Max: bytes(uint64(def.CurrentMemory.Value)), High: math.MaxUint64, Swap: math.MaxUint64}
	t := def.MemoryTune
	if t == nil {
		return m
	}
	if t.HardLimit != nil {
		m.Max = bytes(t.HardLimit.Value)
	}
	if t.SoftLimit != nil {
		m.High = bytes(t.SoftLimit.Value)
	}
	if t.MinGuarantee != nil {
		m.Low = bytes(t.MinGuarantee.Value)
	}
	if t.SwapHardLimit != nil && t.SwapHardLimit.Value < Unlimited && m.Max != math.MaxUint64 {
		m.Swap = max(bytes(t.SwapHardLimit.Value), m.Max) - m.Max
	}
	return m
}

func bytes(kib uint64) uint64 {
	if kib >= Unlimited {
		return math.MaxUint64
	}
	return kib << 10
}

func cpuLimits(def *libvirtxml.Domain) CPULimits {
	c := CPULimits{Count: def.VCPU.Value, MaxCount: def.VCPU.Value, Set: def.VCPU.CPUSet, MemoryNodes: memoryNodes(def)}
	if def.VCPU.Current != 0 {
		c.Count = def.VCPU.Current
	}
	t := def.CPUTune
	if t == nil {
		return c
	}
	if t.Shares != nil {
		c.Weight = Weight(uint64(t.Shares.Value))
	}
	for _, p := range t.VCPUPin {
		c.Pins = append(c.Pins, Pin{p.VCPU, p.CPUSet})
	}
	if t.EmulatorPin != nil {
		c.Emulator = t.EmulatorPin.CPUSet
	}
	c.QuotaUSec, c.PeriodUSec = tightest(t)
	return c
}

// DefaultPeriod of a quota, the kernel's, in microseconds.
const DefaultPeriod = 100_000

// tightest of the quotas given, because each is a limit. All three are for
// the environment as a whole, as <quota> is in libvirt's lxc driver: its
// CPUs are no threads of their own, and there is no emulator beside it.
func tightest(t *libvirtxml.DomainCPUTune) (quota int64, period uint64) {
	for _, q := range []struct {
		quota  *libvirtxml.DomainCPUTuneQuota
		period *libvirtxml.DomainCPUTunePeriod
	}{{t.Quota, t.Period}, {t.GlobalQuota, t.GlobalPeriod}, {t.EmulatorQuota, t.EmulatorPeriod}} {
		if q.quota == nil || q.quota.Value <= 0 {
			continue
		}
		p := uint64(DefaultPeriod)
		if q.period != nil {
			p = q.period.Value
		}
		if quota <= 0 || float64(q.quota.Value)/float64(p) < float64(quota)/float64(period) {
			quota, period = q.quota.Value, p
		}
	}
	return quota, period
}

// Weight brings <shares> to cpu.weight: up to 10000 it is the weight, as
// libvirt has it on cgroup v2, more is cgroup v1's scale of 2 to 262144.
func Weight(shares uint64) uint64 {
	if shares <= 10000 {
		return max(1, shares)
	}
	return min(10000, 1+(shares-2)*9999/262142)
}

// memoryNodes: a cpuset holds memory to nodes strictly; the other modes are
// for each process to choose (set_mempolicy(2)).
func memoryNodes(def *libvirtxml.Domain) string {
	if def.NUMATune == nil || def.NUMATune.Memory == nil {
		return ""
	}
	switch m := def.NUMATune.Memory; m.Mode {
	case "", "strict", "restrictive":
		return m.Nodeset
	}
	return ""
}

// ioLimits joins <blkiotune> and the <iotune> of each disk; the smaller of two
// limits for one device holds.
func ioLimits(def *libvirtxml.Domain) IOLimits {
	l := IOLimits{}
	if t := def.BlockIOTune; t != nil {
		l.Weight = uint64(t.Weight)
		for _, d := range t.Device {
			l.Devices = append(l.Devices, DeviceIO{Path: d.Path, Weight: uint64(d.Weight),
				ReadBytes: uint64(d.ReadBytesSec), WriteBytes: uint64(d.WriteBytesSec), ReadIOPS: uint64(d.ReadIopsSec), WriteIOPS: uint64(d.WriteIopsSec)})
		}
	}
	for _, d := range def.Devices.Disks {
		if t := d.IOTune; t != nil {
			limited := DeviceIO{
				ReadBytes: least(t.ReadBytesSec, t.TotalBytesSec), WriteBytes: least(t.WriteBytesSec, t.TotalBytesSec),
				ReadIOPS: least(t.ReadIopsSec, t.TotalIopsSec), WriteIOPS: least(t.WriteIopsSec, t.TotalIopsSec)}
			if dev := DiskDevice(&d); dev.Image != "" {
				limited.Disk = dev.Target
			} else {
				limited.Path = dev.Source
			}
			l.add(limited)
		}
	}
	return l
}

func (l *IOLimits) add(d DeviceIO) {
	for i := range l.Devices {
		if o := &l.Devices[i]; o.Path == d.Path && o.Disk == d.Disk {
			o.ReadBytes, o.WriteBytes = least(o.ReadBytes, d.ReadBytes), least(o.WriteBytes, d.WriteBytes)
			o.ReadIOPS, o.WriteIOPS = least(o.ReadIOPS, d.ReadIOPS), least(o.WriteIOPS, d.WriteIOPS)
			return
		}
	}
	l.Devices = append(l.Devices, d)
}

// least is the smaller of two limits of which 0 is none.
func least(a, b uint64) uint64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// DiskSource is the path of a disk on the host; of a volume, "POOL/VOLUME".
func DiskSource(d *libvirtxml.DomainDisk) string {
	switch {
	case d.Source == nil:
		return ""
	case d.Source.Block != nil:
		return d.Source.Block.Dev
	case d.Source.File != nil:
		return d.Source.File.File
	case d.Source.Volume != nil && d.Source.Volume.Pool != "" && d.Source.Volume.Volume != "":
		return d.Source.Volume.Pool + "/" + d.Source.Volume.Volume
	}
	return ""
}

// ParseCPUSet reads libvirt's list: numbers, ranges, and ^N to take one out.
func ParseCPUSet(text string) ([]int, error) {
	set := map[int]bool{}
	for part := range strings.SplitSeq(text, ",") {
		part, remove := strings.CutPrefix(strings.TrimSpace(part), "^")
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || from < 0 || to < from || to >= 16384 {
			return nil, invalid("cpuset", "'%s' is not a list of CPUs", shorten(text))
		}
		for n := from; n <= to; n++ {
			if remove {
				delete(set, n)
			} else {
				set[n] = true
			}
		}
	}
	if len(set) == 0 {
		return nil, invalid("cpuset", "'%s' names no CPU", shorten(text))
	}
	list := make([]int, 0, len(set))
	for n := range set {
		list = append(list, n)
	}
	slices.Sort(list)
	return list, nil
}

// FormatCPUSet writes such a list, ascending numbers as ranges.
func FormatCPUSet(cpus []int) string {
	var b strings.Builder
	for i := 0; i < len(cpus); {
		last := i
		for last+1 < len(cpus) && cpus[last+1] == cpus[last]+1 {
			last++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(cpus[i]))
		if last > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(cpus[last]))
		}
		i = last + 1
	}
	return b.String()
}
