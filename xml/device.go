package xml

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// validateDevices refuses what only a virtual machine can have. Virt-manager
// offers most of these for containers too and shows the sentence.
func validateDevices(def *libvirtxml.Domain, _ HostFacts) error {
	d := def.Devices
	for _, c := range []struct {
		element string
		count   int
	}{
		{"<graphics>", len(d.Graphics)}, {"<video>", len(d.Videos)}, {"<tpm>", len(d.TPMs)}, {"<rng>", len(d.RNGs)},
		{"<smartcard>", len(d.Smartcards)}, {"<panic>", len(d.Panics)}, {"<sound>", len(d.Sounds)}, {"<watchdog>", len(d.Watchdogs)},
		{"<redirdev>", len(d.RedirDevs)}, {"<redirfilter>", len(d.RedirFilters)}, {"<hub>", len(d.Hubs)}, {"<parallel>", len(d.Parallels)},
		{"<serial>", len(d.Serials)}, {"<channel>", len(d.Channels)}, {"<shmem>", len(d.Shmems)}, {"<memory model=…>", len(d.Memorydevs)},
		{"<iommu>", len(d.IOMMUs)}, {"<lease>", len(d.Leases)}, {"<crypto>", len(d.Crypto)},
		{"<nvram>", present(d.NVRAM)}, {"<vsock>", present(d.VSock)}, {"<pstore>", present(d.PStore)},
	} {
		if c.count > 0 {
			return unsupported(c.element, "cannot be given to an environment: it is a container and has no such device")
		}
	}
	if def.Bootloader != "" {
		return unsupported("<bootloader>", "cannot be used: environments run on the host's kernel")
	}
	if def.QEMUCommandline != nil || def.QEMUCapabilities != nil || def.QEMUOverride != nil || def.QEMUDeprecation != nil ||
		def.BHyveCommandline != nil || def.VMWareDataCenterPath != nil || def.XenCommandline != nil {
		return unsupported("<domain>", "has an element of another hypervisor's namespace: only lxc:namespace is accepted")
	}
	return nil
}

func present[T any](p *T) int {
	if p == nil {
		return 0
	}
	return 1
}

// maxConsoles bounds the descriptors an environment has the daemon hold.
const maxConsoles = 16

// ConsoleID tells a console of a completed definition apart from the others:
// its target's type and port, "lxc 0".
func ConsoleID(c *libvirtxml.DomainConsole) string {
	return fmt.Sprintf("%s %d", cmp.Or(c.Target.Type, consoleType), *c.Target.Port)
}

// validateConsoles: each is a terminal of its own.
func validateConsoles(def *libvirtxml.Domain, _ HostFacts) error {
	used := map[string]bool{}
	for _, c := range def.Devices.Consoles {
		if c.Source == nil || c.Source.Pty == nil {
			return unsupported("<console>", "has another type than 'pty', the one an environment can have")
		}
		id := ConsoleID(&c)
		if used[id] {
			return invalid("<console>", "has the target type='%s' port='%d' twice", shorten(c.Target.Type), *c.Target.Port)
		}
		used[id] = true
		if c.Log != nil && !strings.HasPrefix(c.Log.File, "/") {
			return invalid("<console><log>", "has file='%s': an absolute path on the host is needed", shorten(c.Log.File))
		}
	}
	return nil
}

// validateHostdevs: what the kernel lets a container have, by node or by
// network interface.
func validateHostdevs(def *libvirtxml.Domain, _ HostFacts) error {
	used := map[string]bool{}
	for _, h := range def.Devices.Hostdevs {
		var name string
		switch {
		case h.SubsysUSB != nil:
			continue
		case h.CapsMisc != nil && h.CapsMisc.Source != nil:
			name = h.CapsMisc.Source.Char
		case h.CapsStorage != nil && h.CapsStorage.Source != nil:
			name = h.CapsStorage.Source.Block
		case h.CapsNet != nil && h.CapsNet.Source != nil:
			if name = h.CapsNet.Source.Interface; !interfaceName(name) {
				return invalid("<hostdev>", "of type 'net' needs <source><interface> with the name of a network interface, not '%s'", shorten(name))
			}
			if err := validateAddresses(movedAddresses(h.CapsNet), movedRoutes(h.CapsNet), map[netip.Addr]bool{}); err != nil {
				return err
			}
		default:
			return unsupported("<hostdev>", "has a mode and type an environment cannot have: mode='capabilities' with type misc, storage or net and a <source>, or an usb subsystem, are accepted")
		}
		if h.CapsNet == nil && !strings.HasPrefix(name, "/dev/") {
			return invalid("<hostdev>", "has the source '%s': the path of a device node in /dev is needed", shorten(name))
		}
		if used[name] {
			return invalid("<hostdev>", "has the source '%s' twice", shorten(name))
		}
		used[name] = true
	}
	return nil
}

// validateDisks: a disk is a block device's node inside. What it takes to make
// one of an image is looked at when it starts.
func validateDisks(def *libvirtxml.Domain, _ HostFacts) error {
	used := map[string]bool{}
	for _, d := range def.Devices.Disks {
		if d.Device != "" && d.Device != "disk" {
			return unsupported("<disk>", "has device='%s': only 'disk' is accepted", shorten(d.Device))
		}
		source := DiskSource(&d)
		if source == "" {
			return unsupported("<disk>", "has no type and <source> an environment can have: block, file and volume are accepted")
		}
		if d.Source.Volume == nil && !strings.HasPrefix(source, "/") {
			return invalid("<disk>", "has the source '%s': an absolute path on the host is needed", shorten(source))
		}
		if d.Target == nil || d.Target.Dev == "" || strings.Contains(d.Target.Dev, "..") {
			return invalid("<disk>", "needs a <target dev=…/>, the node's name inside such as 'sda'")
		}
		if used[d.Target.Dev] {
			return invalid("<disk>", "has the target '%s' twice", shorten(d.Target.Dev))
		}
		used[d.Target.Dev] = true
		if err := validateDiskDriver(&d); err != nil {
			return err
		}
		if err := validateIOTune(d.IOTune); err != nil {
			return err
		}
	}
	return nil
}

// validateDiskDriver: as libvirt's container driver has it, which tells the
// format of an image by type; 'loop' can be of a raw one only.
func validateDiskDriver(d *libvirtxml.DomainDisk) error {
	if d.Driver == nil || d.Source.Block != nil {
		return nil
	}
	switch name, format := d.Driver.Name, d.Driver.Type; {
	case name != "" && name != "loop" && name != "nbd":
		return unsupported("<disk>", "has the driver '%s', which a virtual machine has: loop and nbd are accepted", shorten(name))
	case name == "loop" && format != "" && format != "raw":
		return invalid("<disk>", "has the driver 'loop' with type='%s': a loop device has raw images only, leave the name out or make it 'nbd'", shorten(format))
	}
	return nil
}

// validateNamespaces checks <lxc:namespace>.
func validateNamespaces(def *libvirtxml.Domain, _ HostFacts) error {
	n := def.LXCNamespace
	if n == nil {
		return nil
	}
	for _, s := range []struct {
		element string
		share   *libvirtxml.DomainLXCNamespaceMap
	}{{"<lxc:sharenet>", n.ShareNet}, {"<lxc:shareipc>", n.ShareIPC}, {"<lxc:shareuts>", n.ShareUTS}} {
		switch {
		case s.share == nil:
		case s.share.Value == "":
			return invalid(s.element, "needs a value: a domain's name, a process id or the name of a network namespace")
		case s.share.Type == "netns" && s.element != "<lxc:sharenet>":
			return invalid(s.element, "has type='netns', which only <lxc:sharenet> can have: name and pid are accepted")
		case s.share.Type != "name" && s.share.Type != "pid" && s.share.Type != "netns":
			return invalid(s.element, "has type='%s': name, pid and netns are accepted", shorten(s.share.Type))
		}
	}
	return nil
}
