package xml

import (
	"slices"

	"libvirt.org/go/libvirtxml"
)

// Unrealised names what a definition asks for and an environment does not
// get in this version. It is kept in the definition, so that nothing a user
// wrote is lost, and told to whoever asks (virsh dominfo).
func Unrealised(def *libvirtxml.Domain) (list []string) {
	d := def.Devices
	for _, c := range []struct {
		asked   bool
		element string
	}{
		{some(d.Interfaces, func(n libvirtxml.DomainInterface) bool { return n.Source.Hostdev != nil }), "<interface> of type 'hostdev' (use <hostdev mode='capabilities' type='net'>)"},
		{some(d.Interfaces, func(n libvirtxml.DomainInterface) bool { return n.VirtualPort != nil }), "<virtualport>"},
		{some(d.Disks, func(d libvirtxml.DomainDisk) bool { return d.Source == nil || d.Source.Block == nil }), "<disk> that is a file"},
		{def.NUMATune != nil && memoryNodes(def) == "", "<numatune> of a mode that is not strict"},
		{len(def.SecLabel) > 0, "<seclabel>"},
		{def.LXCNamespace != nil, "<lxc:namespace>"},
	} {
		if c.asked {
			list = append(list, c.element+" is not in force: this version does not realise it")
		}
	}
	for _, f := range d.Filesystems {
		if kind, _ := filesystemSource(f); kind != "template" && (f.SpaceHardLimit != nil || f.SpaceSoftLimit != nil) {
			return append(list, "<space_hard_limit> of a filesystem that is not a template is not in force: it has the size that its source has")
		}
	}
	return list
}

func some[T any](list []T, is func(T) bool) bool { return slices.ContainsFunc(list, is) }
