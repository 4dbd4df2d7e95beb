package xml

import (
	"net/netip"
	"strings"

	"libvirt.org/go/libvirtxml"
)

var macPattern = pattern(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`)

// validateInterfaces checks what is kept of each network interface.
func validateInterfaces(def *libvirtxml.Domain, _ HostFacts) error {
	macs, names := map[string]bool{}, map[string]bool{}
	for _, n := range def.Devices.Interfaces {
		if err := validateMAC(n.MAC.Address, macs); err != nil {
			return err
		}
		if err := validateInterfaceSource(n.Source); err != nil {
			return err
		}
		if err := validateAddresses(n); err != nil {
			return err
		}
		if n.Target != nil && n.Target.Dev != "" && !interfaceName(n.Target.Dev) {
			return invalid("<interface><target>", "has dev='%s': a name of up to 15 letters, digits and punctuation is accepted", shorten(n.Target.Dev))
		}
		if n.Guest == nil || n.Guest.Dev == "" {
			continue
		}
		if !interfaceName(n.Guest.Dev) {
			return invalid("<interface><guest>", "has dev='%s': a name of up to 15 letters, digits and punctuation is accepted", shorten(n.Guest.Dev))
		}
		if names[n.Guest.Dev] {
			return invalid("<interface><guest>", "has dev='%s' twice", n.Guest.Dev)
		}
		names[n.Guest.Dev] = true
	}
	return nil
}

func validateMAC(mac string, used map[string]bool) error {
	if !macPattern().MatchString(mac) {
		return invalid("<mac>", "has address='%s': six hexadecimal bytes such as 52:54:00:12:34:56 are accepted", shorten(mac))
	}
	if strings.IndexByte("13579bdf", mac[1]) >= 0 {
		return invalid("<mac>", "has address='%s', a multicast address: the second digit must be even", mac)
	}
	if used[mac] {
		return invalid("<mac>", "has address='%s' twice", mac)
	}
	used[mac] = true
	return nil
}

func validateInterfaceSource(s *libvirtxml.DomainInterfaceSource) error {
	switch {
	case s == nil:
		return unsupported("<interface>", "needs a type and its <source>: network, bridge, direct, ethernet and hostdev are accepted")
	case s.Network != nil:
		if s.Network.Network == "" {
			return invalid("<interface>", "of type 'network' needs <source network=…/>")
		}
	case s.Bridge != nil:
		if !interfaceName(s.Bridge.Bridge) {
			return invalid("<interface>", "of type 'bridge' needs <source bridge=…/> with the name of a bridge, not '%s'", shorten(s.Bridge.Bridge))
		}
	case s.Direct != nil:
		if !interfaceName(s.Direct.Dev) {
			return invalid("<interface>", "of type 'direct' needs <source dev=…/> with the name of a network interface, not '%s'", shorten(s.Direct.Dev))
		}
		if m := s.Direct.Mode; m != "" && m != "vepa" && m != "bridge" && m != "private" && m != "passthrough" {
			return invalid("<interface>", "has mode='%s': vepa, bridge, private and passthrough are accepted", shorten(m))
		}
	case s.Ethernet != nil, s.Hostdev != nil:
	default:
		return unsupported("<interface>", "has a type an environment cannot have: network, bridge, direct, ethernet and hostdev are accepted")
	}
	return nil
}

func validateAddresses(n libvirtxml.DomainInterface) error {
	for _, ip := range n.IP {
		a, err := netip.ParseAddr(ip.Address)
		if err != nil || a.Zone() != "" {
			return invalid("<ip>", "has address='%s': an IPv4 or IPv6 address is needed", shorten(ip.Address))
		}
		if int(ip.Prefix) > a.BitLen() {
			return invalid("<ip>", "has prefix='%d': 0 to %d are accepted", ip.Prefix, a.BitLen())
		}
	}
	for _, r := range n.Route {
		gateway, err := netip.ParseAddr(r.Gateway)
		if err != nil || gateway.Zone() != "" {
			return invalid("<route>", "has gateway='%s': an IPv4 or IPv6 address is needed", shorten(r.Gateway))
		}
		if a, err := netip.ParseAddr(r.Address); r.Address != "" && (err != nil || a.BitLen() != gateway.BitLen()) {
			return invalid("<route>", "has address='%s': an address of the gateway's family is needed", shorten(r.Address))
		}
	}
	return nil
}

// interfaceName tells what the kernel accepts (dev_valid_name): up to 15
// bytes, no white space, '/' or ':', and not a directory's name.
func interfaceName(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r")
}
