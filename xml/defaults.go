package xml

import (
	"math"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// normalise drops what virtual machines have and tools send for containers
// too, where it means nothing: virt-manager's wizard adds graphics, libosinfo
// based tools a display that belongs to it, and virt-install ACPI features. A
// screen that no tool can have meant (a <video> alone) is refused with the
// other devices in validateDevices.
func normalise(def *libvirtxml.Domain, host HostFacts) {
	if def.Devices == nil {
		def.Devices = &libvirtxml.DomainDeviceList{}
	}
	d := def.Devices
	if len(d.Graphics) > 0 {
		d.Videos = nil
	}
	d.Graphics = slices.DeleteFunc(d.Graphics, func(g libvirtxml.DomainGraphic) bool { return g.VNC != nil || g.Spice != nil })
	d.Audios, d.Inputs, d.MemBalloon, d.Controllers = nil, nil, nil, nil
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
		if def.OS.Type != nil {
			def.OS.Type.Machine = ""
		}
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
	if n := len(def.Devices.Consoles); n > maxConsoles {
		return invalid("<console>", "is there %d times, the limit is %d", n, maxConsoles)
	}
	completeDevices(def.Devices)
	return nil
}

// consoleType is the target that libvirt's lxc driver gives a console.
const consoleType = "lxc"

// completeDevices: consoles get the next free port.
func completeDevices(d *libvirtxml.DomainDeviceList) {
	for i := range d.Interfaces {
		completeMAC(&d.Interfaces[i])
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
			c.Target.Type = consoleType
		}
		if c.Target.Port == nil {
			c.Target.Port = freePort(d.Consoles, c.Target.Type)
		}
	}
	for i := range d.Filesystems {
		if f := &d.Filesystems[i]; f.AccessMode == "" {
			f.AccessMode = "passthrough"
		}
	}
}

func completeMAC(n *libvirtxml.DomainInterface) {
	if n.MAC == nil {
		n.MAC = &libvirtxml.DomainInterfaceMAC{}
	}
	if n.MAC.Address == "" {
		n.MAC.Address = newMAC()
	}
	n.MAC.Address = strings.ToLower(n.MAC.Address)
}

func freePort(consoles []libvirtxml.DomainConsole, kind string) *uint {
	taken := func(port uint) bool {
		return slices.ContainsFunc(consoles, func(c libvirtxml.DomainConsole) bool {
			return c.Target != nil && c.Target.Type == kind && c.Target.Port != nil && *c.Target.Port == port
		})
	}
	port := uint(0)
	for taken(port) {
		port++
	}
	return &port
}

// completeMemory brings all sizes to KiB. There is no default for <memory>,
// as in libvirt: without it an environment could use all of the host's.
func completeMemory(def *libvirtxml.Domain) error {
	if def.Memory == nil {
		return invalid("<memory>", "is missing: it is the most memory the environment may use")
	}
	most, err := size("<memory>", uint64(def.Memory.Value), def.Memory.Unit)
	if err != nil {
		return err
	}
	def.Memory.Value, def.Memory.Unit = uint(most), "KiB"
	current := most
	if def.CurrentMemory != nil {
		current, err = size("<currentMemory>", uint64(def.CurrentMemory.Value), def.CurrentMemory.Unit)
		if err != nil {
			return err
		}
		if current == 0 || current > most { // as virDomainDefPostParseMemory
			current = most
		}
	}
	def.CurrentMemory = &libvirtxml.DomainCurrentMemory{Value: uint(current), Unit: "KiB"}
	return completeMemoryTune(def.MemoryTune)
}

func completeMemoryTune(t *libvirtxml.DomainMemoryTune) error {
	if t == nil {
		return nil
	}
	for _, l := range []struct {
		name  string
		limit *libvirtxml.DomainMemoryTuneLimit
	}{
		{"<hard_limit>", t.HardLimit}, {"<soft_limit>", t.SoftLimit},
		{"<min_guarantee>", t.MinGuarantee}, {"<swap_hard_limit>", t.SwapHardLimit},
	} {
		if l.limit == nil {
			continue
		}
		kib, err := toKiB(l.name, l.limit.Value, l.limit.Unit)
		if err != nil {
			return err
		}
		l.limit.Value, l.limit.Unit = kib, "KiB"
	}
	return nil
}

// Unlimited is libvirt's number for no limit, in KiB
// (VIR_DOMAIN_MEMORY_PARAM_UNLIMITED).
const Unlimited = 9007199254740991

// size is toKiB for what is an amount and not a limit: more than can be said
// is a mistake there.
func size(element string, value uint64, unit string) (uint64, error) {
	kib, err := toKiB(element, value, unit)
	if err == nil && kib == Unlimited && !(value == Unlimited && scales[strings.ToLower(unit)] == 1<<10) {
		return 0, invalid(element, "is too large: %d %s", value, shorten(unit))
	}
	return kib, err
}

// scales are libvirt's units, upper and lower case alike (virScaleInteger):
// powers of 1000 end in a lone b.
var scales = map[string]uint64{
	"b": 1, "byte": 1, "bytes": 1, "": 1 << 10,
	"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15, "eb": 1e18,
	"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50, "eib": 1 << 60,
}

// toKiB rounds up, as libvirt does; what is more than Unlimited is Unlimited.
func toKiB(element string, value uint64, unit string) (uint64, error) {
	scale, ok := scales[strings.ToLower(unit)]
	if !ok {
		return 0, invalid(element, "has the unit %q: b, bytes, KB, KiB, MB, MiB and so on up to EiB are accepted", shorten(unit))
	}
	if scale >= 1<<10 && scale%1024 == 0 {
		if scale /= 1024; value > Unlimited/scale {
			return Unlimited, nil
		}
		return value * scale, nil
	}
	if value > (math.MaxUint64-1023)/scale {
		return Unlimited, nil
	}
	return min(Unlimited, (value*scale+1023)/1024), nil
}
