package xml

import (
	"cmp"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Environment is what to run, in the kernel's terms: bytes, microseconds,
// absolute paths. Numbers that mean no limit are math.MaxUint64.
type Environment struct {
	Name, Type string // Type is "vz", "lxc" or "openvz", as it was defined
	UUID       [16]byte
	Hostname   string

	Nameservers, SearchDomains []string // for resolv.conf; none: leave it alone

	Init             []string // argv; empty: look for it in the root
	Env              []string // NAME=value
	Dir, User, Group string

	IDMap          IDMap
	Memory         MemoryLimits
	CPU            CPULimits
	Tasks          uint64
	Capabilities   CapabilityPolicy
	PrivateNetwork bool

	Filesystems []Filesystem // the root first, then by depth
	Consoles    []Console
	Devices     []Device

	Partition string // <resource><partition>, "/machine" when not given
	Runtime   string // <emulator>; empty: the host's default

	OnPoweroff, OnReboot, OnCrash string
}

// Mode is how the environment's user ids relate to the host's.
type Mode int

const (
	Auto       Mode = iota // a range of its own, chosen when it starts
	Explicit               // the ranges of <idmap>
	Privileged             // the host's: no user namespace
)

// IDMap maps ids inside to ids of the host.
type IDMap struct {
	Mode       Mode
	UIDs, GIDs []IDRange
}

// IDRange is Count ids from Inside on, which are Host and following outside.
type IDRange struct{ Inside, Host, Count uint32 }

// MemoryLimits are bytes: cgroup v2's memory.max, high, low and swap.max.
type MemoryLimits struct{ Max, High, Low, Swap uint64 }

// CPULimits are what cpu.weight, cpu.max and the cpuset are made of.
type CPULimits struct {
	Count, MaxCount uint   // CPUs to see inside now and at most
	Set             string // CPUs of the host to run on; empty: all
	Weight          uint64 // 1 to 10000; 0: not set
	QuotaUSec       int64  // per period; 0 or less: none
	PeriodUSec      uint64 // 0: the kernel's default
}

// CapabilityPolicy is <features><capabilities>.
type CapabilityPolicy struct {
	Policy string          // "default", "allow" or "deny"
	States map[string]bool // single capabilities on or off, "sys_time"
}

// Filesystem is one mount.
type Filesystem struct {
	Type     string // template, mount, bind, file, block, ram, volume
	Source   string
	Target   string // clean and absolute, inside
	ReadOnly bool
	Size     uint64 // bytes, of ram
}

// Console is a terminal of the environment.
type Console struct {
	LogFile   string // what is printed goes here too
	LogAppend bool
}

// Device is a node of the host that the environment may use.
type Device struct{ Source, Target string }

// NewEnvironment reads a checked definition.
func NewEnvironment(def *libvirtxml.Domain) (*Environment, error) {
	uuid, err := parseUUID(def.UUID)
	if err != nil {
		return nil, err
	}
	e := &Environment{
		Name: def.Name, Type: def.Type, UUID: uuid, Hostname: hostname(def.Name),
		Dir: def.OS.InitDir, User: def.OS.InitUser, Group: def.OS.InitGroup,
		Tasks: math.MaxUint64, PrivateNetwork: true, Partition: "/machine",
		OnPoweroff: def.OnPoweroff, OnReboot: def.OnReboot, OnCrash: def.OnCrash,
		Memory: memoryLimits(def), IDMap: idMap(def), Runtime: def.Devices.Emulator,
		Capabilities: CapabilityPolicy{Policy: "default"},
	}
	if def.OS.Init != "" {
		e.Init = append([]string{def.OS.Init}, def.OS.InitArgs...)
	}
	for _, v := range def.OS.InitEnv {
		e.Env = append(e.Env, v.Name+"="+v.Value)
	}
	if def.Resource != nil && def.Resource.Partition != "" {
		e.Partition = def.Resource.Partition
	}
	if f := def.Features; f != nil && f.Capabilities != nil {
		e.Capabilities = capabilityPolicy(f.Capabilities)
	}
	e.CPU = cpuLimits(def)
	for _, c := range def.Devices.Consoles {
		console := Console{}
		if c.Log != nil {
			console = Console{LogFile: c.Log.File, LogAppend: c.Log.Append == "on"}
		}
		e.Consoles = append(e.Consoles, console)
	}
	e.Filesystems = filesystems(def)
	e.Devices = devices(def)
	if ve, err := parseVE(def); err != nil {
		return nil, err
	} else if ve != nil {
		ve.apply(e)
	}
	return e, nil
}

// hostname is the name as far as a host may be called so.
func hostname(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, name)
	return cmp.Or(strings.Trim(clean[:min(len(clean), 64)], "-."), "localhost")
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
	c := CPULimits{Count: def.VCPU.Value, MaxCount: def.VCPU.Value, Set: def.VCPU.CPUSet}
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
	// As in libvirt's lxc driver <quota> is for the whole container; the
	// global one, where both are given, is the more specific word for it.
	period, quota := t.Period, t.Quota
	if t.GlobalQuota != nil {
		period, quota = t.GlobalPeriod, t.GlobalQuota
	}
	if quota != nil && quota.Value > 0 {
		c.QuotaUSec, c.PeriodUSec = quota.Value, 100_000
		if period != nil {
			c.PeriodUSec = uint64(period.Value)
		}
	}
	return c
}

// Weight brings <shares> to cpu.weight: up to 10000 it is the weight, as
// libvirt has it on cgroup v2, more is cgroup v1's scale of 2 to 262144.
func Weight(shares uint64) uint64 {
	if shares <= 10000 {
		return max(1, shares)
	}
	return min(10000, 1+(shares-2)*9999/262142)
}

// idMap: a container of type vz or openvz has ids of its own unless told
// otherwise. target='0' for root is the way to say: none.
func idMap(def *libvirtxml.Domain) IDMap {
	if def.IDMap == nil {
		return IDMap{Mode: Auto}
	}
	m := IDMap{Mode: Explicit, UIDs: ranges(def.IDMap.UIDs), GIDs: ranges(def.IDMap.GIDs)}
	if m.UIDs[0] == (IDRange{0, 0, m.UIDs[0].Count}) && m.GIDs[0] == (IDRange{0, 0, m.GIDs[0].Count}) {
		return IDMap{Mode: Privileged}
	}
	return m
}

func ranges(list []libvirtxml.DomainIDMapRange) (out []IDRange) {
	for _, r := range list {
		out = append(out, IDRange{uint32(r.Start), uint32(r.Target), uint32(r.Count)})
	}
	slices.SortFunc(out, func(a, b IDRange) int { return cmp.Compare(a.Inside, b.Inside) })
	return out
}

// filesystems sorts mounts so that each comes after those it lies in.
func filesystems(def *libvirtxml.Domain) (list []Filesystem) {
	for _, f := range def.Devices.Filesystems {
		kind, source := filesystemSource(f)
		fs := Filesystem{Type: kind, Source: source, Target: path.Clean(f.Target.Dir), ReadOnly: f.ReadOnly != nil}
		if f.Source.RAM != nil {
			kib, _ := toKiB("<source>", uint64(f.Source.RAM.Usage), f.Source.RAM.Units)
			fs.Size = bytes(kib)
		}
		list = append(list, fs)
	}
	depth := func(f Filesystem) int { return strings.Count(strings.TrimSuffix(f.Target, "/"), "/") }
	slices.SortStableFunc(list, func(a, b Filesystem) int { return cmp.Compare(depth(a), depth(b)) })
	return list
}

// devices are the nodes of <hostdev mode='capabilities'>.
func devices(def *libvirtxml.Domain) (list []Device) {
	for _, h := range def.Devices.Hostdevs {
		switch {
		case h.CapsMisc != nil && h.CapsMisc.Source != nil:
			list = append(list, Device{h.CapsMisc.Source.Char, h.CapsMisc.Source.Char})
		case h.CapsStorage != nil && h.CapsStorage.Source != nil:
			list = append(list, Device{h.CapsStorage.Source.Block, h.CapsStorage.Source.Block})
		}
	}
	return list
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
