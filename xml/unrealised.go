package xml

import (
	"fmt"
	"slices"

	"libvirt.org/go/libvirtxml"
)

// Unrealised names what a definition asks for and an environment does not
// get in this version, or on this host. It is kept in the definition, so that
// nothing a user wrote is lost, and told to whoever asks (virsh dominfo).
func Unrealised(def *libvirtxml.Domain, host HostFacts) (list []string) {
	d := def.Devices
	for _, c := range []struct {
		asked   bool
		element string
	}{
		{some(d.Interfaces, func(n libvirtxml.DomainInterface) bool { return n.Source.Hostdev != nil }), "<interface> of type 'hostdev' (use <hostdev mode='capabilities' type='net'>)"},
		{some(d.Interfaces, func(n libvirtxml.DomainInterface) bool { return n.VirtualPort != nil }), "<virtualport>"},
		{def.NUMATune != nil && memoryNodes(def) == "", "<numatune> of a mode that is not strict"},
		{len(def.SecLabel) > 0, "<seclabel>"},
		{def.LXCNamespace != nil, "<lxc:namespace>"},
	} {
		if c.asked {
			list = append(list, c.element+" is not in force: this version does not realise it")
		}
	}
	for _, on := range []struct{ event, action string }{
		{"on_poweroff", def.OnPoweroff}, {"on_reboot", def.OnReboot}, {"on_crash", def.OnCrash},
	} {
		if what := approximations[on.action]; what != "" {
			list = append(list, "<"+on.event+">"+on.action+" is not in force: "+what)
		}
	}
	if n := cpuLimits(def).Count; host.MaxVCPUs > 0 && n > uint(host.MaxVCPUs) {
		list = append(list, fmt.Sprintf("<vcpu> of %d is not in force: the host has %d CPUs", n, host.MaxVCPUs))
	}
	for _, f := range d.Filesystems {
		if hard, soft := spaceLimits(f); hard|soft != 0 && !limitable(f) {
			return append(list, "<space_hard_limit> of a filesystem that is not a template, a directory or an image (this without a soft limit) as the root cannot be held, it does not start with that")
		}
	}
	return list
}

// approximations say what is done instead of an action that is not realised.
var approximations = map[string]string{
	"preserve":         "nothing of an environment that has ended can be kept for a look, it is shut off",
	"rename-restart":   "it restarts under the name it has",
	"coredump-destroy": "the kernel dumps cores where the host's core_pattern says, and it is shut off",
	"coredump-restart": "the kernel dumps cores where the host's core_pattern says, and it restarts",
}

func some[T any](list []T, is func(T) bool) bool { return slices.ContainsFunc(list, is) }
