package xml

import (
	"libvirt.org/go/libvirtxml"
)

// normalise drops what virtual machines have and tools send for containers
// too, where it means nothing: virt-manager's wizard adds graphics, and
// virt-install ACPI features.
func normalise(def *libvirtxml.Domain, host HostFacts) {
	if def.Devices == nil {
		def.Devices = &libvirtxml.DomainDeviceList{}
	}
	d := def.Devices
	d.Graphics, d.Videos, d.Audios, d.Inputs, d.MemBalloon, d.Controllers = nil, nil, nil, nil, nil, nil
	if d.Emulator == host.Emulator {
		d.Emulator = ""
	}
	if f := def.Features; f != nil {
		f.ACPI, f.APIC, f.PAE = nil, nil, nil
		if *f == (libvirtxml.DomainFeatureList{}) {
			def.Features = nil
		}
	}
	if def.OS != nil {
		def.OS.BootDevices = nil
	}
}

// complete fills in libvirt's defaults.
func complete(def *libvirtxml.Domain, host HostFacts) error {
	if def.Type == "" {
		def.Type = "vz"
	}
	if def.UUID == "" {
		def.UUID = newUUID()
	}
	id, err := parseUUID(def.UUID)
	if err != nil {
		return err
	}
	def.UUID = formatUUID(id)
	if err := completeMemory(def); err != nil {
		return err
	}
	if def.VCPU == nil {
		def.VCPU = &libvirtxml.DomainVCPU{Value: 1}
	}
	if def.VCPU.Placement == "" {
		def.VCPU.Placement = "static"
	}
	if def.OS == nil {
		def.OS = &libvirtxml.DomainOS{}
	}
	if def.OS.Type == nil {
		def.OS.Type = &libvirtxml.DomainOSType{Type: "exe"}
	}
	if def.OS.Type.Arch == "" {
		def.OS.Type.Arch = host.Arch
	}
	if def.Clock == nil {
		def.Clock = &libvirtxml.DomainClock{Offset: "utc"}
	}
	for _, action := range []struct {
		value     *string
		otherwise string
	}{{&def.OnPoweroff, "destroy"}, {&def.OnReboot, "restart"}, {&def.OnCrash, "destroy"}} {
		if *action.value == "" {
			*action.value = action.otherwise
		}
	}
	completeDevices(def.Devices)
	return nil
}

func completeDevices(d *libvirtxml.DomainDeviceList) {
	for i := range d.Interfaces {
		if n := &d.Interfaces[i]; n.MAC == nil || n.MAC.Address == "" {
			n.MAC = &libvirtxml.DomainInterfaceMAC{Address: newMAC()}
		}
	}
	if len(d.Consoles) == 0 {
		d.Consoles = []libvirtxml.DomainConsole{{}}
	}
	for i := range d.Consoles {
		c := &d.Consoles[i]
		if c.Source == nil {
			c.Source = &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}
		}
		if c.Target == nil {
			c.Target = &libvirtxml.DomainConsoleTarget{}
		}
		if c.Target.Type == "" {
			c.Target.Type = "lxc"
		}
		if c.Target.Port == nil {
			port := uint(i)
			c.Target.Port = &port
		}
	}
	for i := range d.Filesystems {
		if f := &d.Filesystems[i]; f.AccessMode == "" {
			f.AccessMode = "passthrough"
		}
	}
}

// completeMemory brings both sizes to KiB. Without <memory> an environment
// may use all of the host's, as any of its processes may.
func completeMemory(def *libvirtxml.Domain) error {
	if def.Memory == nil {
		return invalid("<memory>", "is missing: it is the most memory the environment may use")
	}
	value, err := toKiB("<memory>", uint64(def.Memory.Value), def.Memory.Unit)
	if err != nil {
		return err
	}
	def.Memory.Value, def.Memory.Unit = uint(value), "KiB"
	if def.CurrentMemory == nil {
		def.CurrentMemory = &libvirtxml.DomainCurrentMemory{Value: def.Memory.Value}
	} else {
		current, err := toKiB("<currentMemory>", uint64(def.CurrentMemory.Value), def.CurrentMemory.Unit)
		if err != nil {
			return err
		}
		def.CurrentMemory.Value = uint(min(current, value))
		if current == 0 {
			def.CurrentMemory.Value = def.Memory.Value
		}
	}
	def.CurrentMemory.Unit = "KiB"
	if def.MemoryTune == nil {
		return nil
	}
	for name, limit := range map[string]*libvirtxml.DomainMemoryTuneLimit{
		"<hard_limit>": def.MemoryTune.HardLimit, "<soft_limit>": def.MemoryTune.SoftLimit,
		"<swap_hard_limit>": def.MemoryTune.SwapHardLimit, "<min_guarantee>": def.MemoryTune.MinGuarantee,
	} {
		if limit == nil {
			continue
		}
		if limit.Value, err = toKiB(name, limit.Value, limit.Unit); err != nil {
			return err
		}
		limit.Unit = "KiB"
	}
	return nil
}

// units are libvirt's (virScaleInteger): powers of 1000 end in B alone.
var units = map[string]uint64{
	"b": 1, "byte": 1, "bytes": 1,
	"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"K": 1 << 10, "k": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20,
	"G": 1 << 30, "GiB": 1 << 30, "T": 1 << 40, "TiB": 1 << 40, "": 1 << 10,
}

// Unlimited is libvirt's number for no limit, in KiB
// (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED).
const Unlimited = 9007199254740991

func toKiB(element string, value uint64, unit string) (uint64, error) {
	scale, ok := units[unit]
	if !ok {
		return 0, invalid(element, "has the unit %q: use bytes, KB, MB, GB, TB, KiB, MiB, GiB or TiB", shorten(unit))
	}
	if value > Unlimited || value > ^uint64(0)/scale {
		return Unlimited, nil
	}
	return (value*scale + 1023) / 1024, nil // rounded up, as libvirt does
}
