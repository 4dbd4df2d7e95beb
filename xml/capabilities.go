package xml

import (
	"encoding/xml"
	"slices"

	"libvirt.org/go/libvirtxml"
)

// domainTypes are what <domain type=…> may be, the usual one first.
var domainTypes = []string{"vz", "lxc", "openvz"}

// Capabilities describes the host and that it runs containers ("exe"
// guests) and nothing else, so that tools do not offer virtual machines.
func Capabilities(host HostFacts) (string, error) {
	caps := libvirtxml.Caps{
		Host: libvirtxml.CapsHost{
			UUID: host.UUID,
			CPU:  &libvirtxml.CapsHostCPU{Arch: host.Arch},
			NUMA: &libvirtxml.CapsHostNUMATopology{Cells: &libvirtxml.CapsHostNUMACells{Num: uint(len(host.Cells))}},
		},
		Guests: []libvirtxml.CapsGuest{{
			OSType: "exe",
			Arch:   libvirtxml.CapsGuestArch{Name: host.Arch, WordSize: wordSize(host.Arch), Emulator: host.Emulator},
		}},
	}
	for _, m := range host.SecModels {
		caps.Host.SecModel = append(caps.Host.SecModel, libvirtxml.CapsHostSecModel{Name: m.Model, DOI: m.DOI})
	}
	if len(host.Transports) > 0 {
		caps.Host.MigrationFeatures = &libvirtxml.CapsHostMigrationFeatures{
			Live:          &libvirtxml.CapsHostMigrationLive{},
			URITransports: &libvirtxml.CapsHostMigrationURITransports{URI: host.Transports},
		}
	}
	for _, cell := range host.Cells {
		caps.Host.NUMA.Cells.Cells = append(caps.Host.NUMA.Cells.Cells, numaCell(cell, host.Cells))
	}
	for _, size := range pageSizes(host.Cells) {
		caps.Host.CPU.PageSizes = append(caps.Host.CPU.PageSizes, libvirtxml.CapsHostCPUPageSize{Size: size, Unit: "KiB"})
	}
	// The usual one last: that is the one virt-manager and virt-install take.
	for _, kind := range slices.Backward(domainTypes) {
		caps.Guests[0].Arch.Domains = append(caps.Guests[0].Arch.Domains, libvirtxml.CapsGuestDomain{Type: kind})
	}
	return document(caps)
}

func numaCell(cell Cell, all []Cell) libvirtxml.CapsHostNUMACell {
	out := libvirtxml.CapsHostNUMACell{
		ID: cell.ID, Memory: &libvirtxml.CapsHostNUMAMemory{Size: cell.MemoryKiB, Unit: "KiB"},
		CPUS: &libvirtxml.CapsHostNUMACPUs{Num: uint(len(cell.CPUs))},
	}
	for _, p := range cell.Pages {
		out.PageInfo = append(out.PageInfo, libvirtxml.CapsHostNUMAPageInfo{Size: p.KiB, Unit: "KiB", Count: p.Count})
	}
	if len(cell.Distances) == len(all) && len(all) > 0 {
		out.Distances = &libvirtxml.CapsHostNUMADistances{}
		for n, value := range cell.Distances {
			out.Distances.Siblings = append(out.Distances.Siblings, libvirtxml.CapsHostNUMASibling{ID: all[n].ID, Value: value})
		}
	}
	none := 0 // the schema wants die and cluster; the kernel tells them for few machines
	for _, c := range cell.CPUs {
		out.CPUS.CPUs = append(out.CPUS.CPUs, libvirtxml.CapsHostNUMACPU{
			ID: c.ID, SocketID: &c.Socket, DieID: &none, ClusterID: &none, CoreID: &c.Core, Siblings: c.Siblings})
	}
	return out
}

// pageSizes are those of any cell, in KiB.
func pageSizes(cells []Cell) (sizes []int) {
	for _, cell := range cells {
		for _, p := range cell.Pages {
			sizes = append(sizes, p.KiB)
		}
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

func wordSize(arch string) string {
	if slices.Contains([]string{"i686", "armv7l", "armv6l"}, arch) {
		return "32"
	}
	return "64"
}

// DomainCapabilities describes what a domain can have. The arguments narrow
// it down and must name what there is.
func DomainCapabilities(host HostFacts, emulator, arch, machine, virttype string) (string, error) {
	if virttype == "" {
		virttype = domainTypes[0]
	}
	if !slices.Contains(domainTypes, virttype) {
		return "", invalid("virttype", "'%s' is not known: vz, lxc and openvz are accepted", shorten(virttype))
	}
	if arch != "" && arch != host.Arch {
		return "", invalid("arch", "'%s' cannot be run: this host is %s", shorten(arch), host.Arch)
	}
	if emulator == "" {
		emulator = host.Emulator
	}
	no := &libvirtxml.DomainCapsDevice{Supported: "no"}
	caps := libvirtxml.DomainCaps{
		Path: emulator, Domain: virttype, Arch: host.Arch,
		VCPU: &libvirtxml.DomainCapsVCPU{Max: uint(host.MaxVCPUs)},
		OS: &libvirtxml.DomainCapsOS{
			Supported: "yes", Loader: &libvirtxml.DomainCapsOSLoader{Supported: "no"},
		},
		Devices: &libvirtxml.DomainCapsDevices{
			Disk: &libvirtxml.DomainCapsDevice{Supported: "yes", Enums: []libvirtxml.DomainCapsEnum{
				{Name: "diskDevice", Values: []string{"disk"}}, {Name: "bus", Values: []string{"lxc"}},
			}},
			Graphics: no, Video: no,
			HostDev: &libvirtxml.DomainCapsDevice{Supported: "yes", Enums: []libvirtxml.DomainCapsEnum{
				{Name: "mode", Values: []string{"capabilities"}}, {Name: "capsType", Values: []string{"storage", "misc", "net"}},
			}},
		},
	}
	return document(caps)
}

func document(v any) (string, error) {
	doc, err := xml.MarshalIndent(v, "", "  ")
	if err != nil {
		return "", err
	}
	return selfClose(string(doc)) + "\n", nil
}

// selfClose writes empty elements as libvirt does: <a></a> becomes <a/>. No
// value here can contain markup, nor an element be nested in its own kind.
func selfClose(doc string) string {
	return emptyElement().ReplaceAllString(doc, "<$1$2/>")
}

var emptyElement = pattern(`<([a-zA-Z_]+)([^<>]*)></[a-zA-Z_]+>`)
