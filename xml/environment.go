package xml

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Environment is what to run, in the kernel's terms: bytes, microseconds,
// absolute paths. Numbers that mean no limit are math.MaxUint64.
type Environment struct {
	Name, Type string // Type is "vz", "lxc" or "openvz", as it was defined
	UUID       [16]byte
	Hostname   string
	CloneOf    [16]byte // on whose disk it starts the first time; zero: on the template

	Nameservers, SearchDomains []string // for resolv.conf; none: leave it alone

	Init             []string // argv; empty: look for it in the root
	Env              []string // NAME=value
	Dir, User, Group string

	IDMap          IDMap
	Memory         MemoryLimits
	CPU            CPULimits
	IO             IOLimits
	Counts         CountLimits
	Capabilities   CapabilityPolicy
	PrivateNetwork bool

	Filesystems []Filesystem // the root first, then by depth
	Consoles    []Console
	Devices     []Device
	Interfaces  []Interface

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

// CapabilityPolicy is <features><capabilities>.
type CapabilityPolicy struct {
	Policy string          // "default", "allow" or "deny"
	States map[string]bool // single capabilities on or off, "sys_time"
}

// Filesystem is one mount.
type Filesystem struct {
	Type     string // template, mount, bind, file, block, ram, volume; host and tmp where there is no root
	Source   string
	Target   string // clean and absolute, inside
	ReadOnly bool
	Size     uint64 // bytes, of ram
	Format   string // of a file or volume that is an image: qcow2, …; "": raw

	HardLimit, SoftLimit uint64 // bytes, of a root: its own layer's, a directory's or an image's; 0: none
}

// Console is a terminal of the environment, by its ConsoleID.
type Console struct {
	ID        string
	LogFile   string // what is printed goes here too
	LogAppend bool
}

// Device is a node of the host that the environment may use. Target is below
// /dev. With an Image, Source is no node but what a block device is made of: a
// file, or with Volume "POOL/VOLUME", which may be a device, too.
type Device struct {
	Source, Target  string
	Block, ReadOnly bool

	Image  string `json:",omitempty"` // its format: raw, qcow2, …
	Volume bool   `json:",omitempty"`
}

// NewEnvironment reads a checked definition.
func NewEnvironment(def *libvirtxml.Domain) (*Environment, error) {
	uuid, err := parseUUID(def.UUID)
	if err != nil {
		return nil, err
	}
	e := &Environment{
		Name: def.Name, Type: def.Type, UUID: uuid, Hostname: hostname(def.Name),
		Dir: def.OS.InitDir, User: def.OS.InitUser, Group: def.OS.InitGroup,
		PrivateNetwork: true, Partition: "/machine",
		OnPoweroff: def.OnPoweroff, OnReboot: def.OnReboot, OnCrash: def.OnCrash,
		Memory: memoryLimits(def), Counts: NoCounts(), IDMap: idMap(def), Runtime: def.Devices.Emulator,
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
	e.CPU, e.IO = cpuLimits(def), ioLimits(def)
	for _, c := range def.Devices.Consoles {
		console := Console{ID: ConsoleID(&c)}
		if c.Log != nil {
			console.LogFile, console.LogAppend = c.Log.File, c.Log.Append == "on"
		}
		e.Consoles = append(e.Consoles, console)
	}
	e.Filesystems = withHostRoot(filesystems(def))
	e.Devices, e.Interfaces = devices(def), interfaces(def)
	if of, _, err := diskOf(def); err != nil {
		return nil, err
	} else if of != uuid {
		e.CloneOf = of
	}
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
		fs.HardLimit, fs.SoftLimit = spaceLimits(f)
		if f.Driver != nil && f.Driver.Format != "raw" {
			fs.Format = f.Driver.Format
		}
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

// devices are the nodes of <hostdev mode='capabilities'> and of disks.
func devices(def *libvirtxml.Domain) (list []Device) {
	for _, h := range def.Devices.Hostdevs {
		switch {
		case h.CapsMisc != nil && h.CapsMisc.Source != nil:
			list = append(list, Device{Source: h.CapsMisc.Source.Char, Target: path.Clean(h.CapsMisc.Source.Char)})
		case h.CapsStorage != nil && h.CapsStorage.Source != nil:
			list = append(list, Device{Source: h.CapsStorage.Source.Block, Target: path.Clean(h.CapsStorage.Source.Block), Block: true})
		}
	}
	for _, d := range def.Devices.Disks {
		list = append(list, DiskDevice(&d))
	}
	return list
}

// DiskDevice is the device that a <disk> is.
func DiskDevice(d *libvirtxml.DomainDisk) Device {
	dev := Device{Source: DiskSource(d), Target: path.Join("/dev", d.Target.Dev), Block: true, ReadOnly: d.ReadOnly != nil}
	if d.Source.Block == nil {
		dev.Image, dev.Volume = "raw", d.Source.Volume != nil
		if d.Driver != nil {
			dev.Image = cmp.Or(d.Driver.Type, dev.Image)
		}
	}
	return dev
}
