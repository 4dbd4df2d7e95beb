package xml

import (
	"math"
	"net/netip"
	"strings"

	"libvirt.org/go/libvirtxml"
)

var macPattern = pattern(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`)

// validateInterfaces checks what is kept of each network interface.
func validateInterfaces(def *libvirtxml.Domain, _ HostFacts) error {
	macs, names, addresses := map[string]bool{}, map[string]bool{}, map[netip.Addr]bool{}
	if n := len(def.Devices.Interfaces); n > maxInterfaces {
		return invalid("<interface>", "is there %d times, the limit is %d", n, maxInterfaces)
	}
	for _, n := range def.Devices.Interfaces {
		if err := validateMAC(n.MAC.Address, macs); err != nil {
			return err
		}
		if err := validateInterfaceSource(n.Source); err != nil {
			return err
		}
		if err := validateAddresses(n.IP, n.Route, addresses); err != nil {
			return err
		}
		if err := validateLink(n); err != nil {
			return err
		}
		if err := validateBandwidth(n); err != nil {
			return err
		}
		if err := validateFilter(n.FilterRef); err != nil {
			return err
		}
		if err := validateVLAN(n); err != nil {
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

// maxInterfaces is as many as libvirt's clients are told the addresses of.
const maxInterfaces = 256

// validateAddresses checks what an interface is called and where it sends to.
// used are the addresses of all interfaces of the definition.
func validateAddresses(ips []libvirtxml.DomainInterfaceIP, routes []libvirtxml.DomainInterfaceRoute, used map[netip.Addr]bool) error {
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip.Address)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() {
			return invalid("<ip>", "has address='%s': an IPv4 or IPv6 address is needed", shorten(ip.Address))
		}
		if int(ip.Prefix) > a.BitLen() {
			return invalid("<ip>", "has prefix='%d': 0 to %d are accepted", ip.Prefix, a.BitLen())
		}
		if ip.Peer != "" {
			return unsupported("<ip>", "has a peer: use a <route> to reach what is not on the link")
		}
		if used[a] {
			return invalid("<ip>", "has address='%s' twice", a)
		}
		used[a] = true
	}
	for _, r := range routes {
		gateway, err := netip.ParseAddr(r.Gateway)
		if err != nil || gateway.Zone() != "" || gateway.Is4In6() {
			return invalid("<route>", "has gateway='%s': an IPv4 or IPv6 address is needed", shorten(r.Gateway))
		}
		a, err := netip.ParseAddr(r.Address)
		if r.Address != "" && (err != nil || a.Zone() != "" || a.Is4In6() || a.BitLen() != gateway.BitLen()) {
			return invalid("<route>", "has address='%s': an address of the gateway's family is needed", shorten(r.Address))
		}
		if int(r.Prefix) > gateway.BitLen() {
			return invalid("<route>", "has prefix='%d': 0 to %d are accepted", r.Prefix, gateway.BitLen())
		}
		if mask, err := netip.ParseAddr(r.Netmask); r.Netmask != "" && (err != nil || !mask.Is4() || !isMask(mask)) {
			return invalid("<route>", "has netmask='%s': one such as 255.255.255.0 is needed", shorten(r.Netmask))
		}
		if r.Metric > math.MaxInt32 {
			return invalid("<route>", "has metric='%d': up to %d is accepted", r.Metric, math.MaxInt32)
		}
	}
	return nil
}

func isMask(mask netip.Addr) bool {
	p, err := netip.AddrFrom4([4]byte{255, 255, 255, 255}).Prefix(int(maskLength(mask)))
	return err == nil && p.Addr() == mask
}

func validateLink(n libvirtxml.DomainInterface) error {
	if n.Link != nil && n.Link.State != "up" && n.Link.State != "down" {
		return invalid("<link>", "has state='%s': up and down are accepted", shorten(n.Link.State))
	}
	if n.MTU != nil && (n.MTU.Size < 68 || n.MTU.Size > 65535) {
		return invalid("<mtu>", "has size='%d': 68 to 65535 are accepted", n.MTU.Size)
	}
	if e := n.Source.Ethernet; e != nil {
		return validateAddresses(e.IP, e.Route, map[netip.Addr]bool{})
	}
	return nil
}

// maxRate is in KiB each second, what the kernel's policer can hold: 32 bits
// of bytes.
const maxRate = math.MaxUint32 >> 10

// validateBandwidth has libvirt's rules (virNetDevBandwidthParse): an average
// is needed except for a floor, which only a network can guarantee.
func validateBandwidth(n libvirtxml.DomainInterface) error {
	if n.Bandwidth == nil {
		return nil
	}
	for _, d := range []struct {
		element string
		rate    *libvirtxml.DomainInterfaceBandwidthParams
	}{{"<inbound>", n.Bandwidth.Inbound}, {"<outbound>", n.Bandwidth.Outbound}} {
		r := d.rate
		if r == nil {
			continue
		}
		for _, v := range []struct {
			name  string
			value *int
		}{{"average", r.Average}, {"peak", r.Peak}, {"burst", r.Burst}, {"floor", r.Floor}} {
			if v.value != nil && (*v.value < 0 || *v.value > maxRate) {
				return invalid(d.element, "has %s='%d': up to %d KiB are accepted", v.name, *v.value, maxRate)
			}
		}
		switch {
		case r.Average == nil && r.Floor == nil:
			return invalid(d.element, "needs an average, in KiB each second")
		case r.Average == nil && (r.Peak != nil || r.Burst != nil):
			return invalid(d.element, "has a peak or burst, which need an average")
		case r.Floor != nil && d.element == "<outbound>":
			return invalid(d.element, "has a floor, which only <inbound> can have")
		case r.Floor != nil && n.Source.Network == nil:
			return unsupported(d.element, "has a floor, which only an interface of type 'network' can have")
		case r.Average != nil && *r.Average > 0 && r.Peak != nil && *r.Peak > 0 && *r.Peak < *r.Average:
			return invalid(d.element, "has peak='%d', which is less than its average %d", *r.Peak, *r.Average)
		}
	}
	return nil
}

// interfaceName tells what the kernel accepts (dev_valid_name): up to 15
// bytes, no white space, '/' or ':', and not a directory's name. Of one with '%d'
// it makes another.
func interfaceName(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/:% \t\n\v\f\r")
}
