package xml

import (
	"net/netip"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Interface is a network interface of an environment.
type Interface struct {
	Type      string // bridge, network, ethernet (routed, OpenVZ's venet), direct (macvlan) or hostdev (one of the host's, moved)
	Source    string // bridge, network, or the host's interface
	PortGroup string // of a network
	Mode      string // of direct: vepa, bridge, private, passthrough; "" is vepa
	MAC       string // lower case; of hostdev "", it has its own
	Target    string // its name on the host; "": one is chosen
	Guest     string // its name inside; "": the next free eth0, eth1, …
	MTU       int    // 0: that of what it is connected to
	Down      bool   // the cable is out
	Isolated  bool   // from the other isolated ports of its bridge
	Routed    bool   // of ethernet: held to its addresses though it has none
	VLAN      VLAN   // of bridge and network
	Filter    Filter // of bridge and network

	Addresses []netip.Prefix // inside
	Routes    []Route        // inside
	Host      HostEnd        // of ethernet

	Inbound, Outbound Rate // seen from inside
}

// HostEnd is what the host's end of a routed interface is given. None: what
// venet has, see runtime.
type HostEnd struct {
	Addresses []netip.Prefix
	Routes    []Route
}

// Route is a destination and the way there. Metric 0 is the kernel's default.
type Route struct {
	To      netip.Prefix
	Gateway netip.Addr
	Metric  int
}

// Rate bounds traffic in one direction, in bytes and bytes each second. An
// Average of 0 is no limit; 0 for the others is what follows from it.
type Rate struct {
	Average, Peak, Burst uint64
	Floor                uint64 // guaranteed, where the network can
}

// ID tells an interface apart from the others of its environment: its MAC, or
// the name of the host's interface that is moved.
func (n Interface) ID() string {
	if n.Type == "hostdev" {
		return n.Source
	}
	return n.MAC
}

// hostRouted is the name of the network that libvirt's vz driver has for
// routed interfaces (vz/vz_utils.h, PARALLELS_DOMAIN_ROUTED_NETWORK_NAME).
const hostRouted = "host-routed"

// interfaces are those of a checked definition that an environment can have.
func interfaces(def *libvirtxml.Domain) (list []Interface) {
	for _, n := range def.Devices.Interfaces {
		i := Interface{MAC: strings.ToLower(n.MAC.Address)}
		switch s := n.Source; {
		case s.Network != nil && s.Network.Network == hostRouted:
			i.Type, i.Routed = "ethernet", true
		case s.Network != nil:
			i.Type, i.Source, i.PortGroup = "network", s.Network.Network, s.Network.PortGroup
		case s.Bridge != nil:
			i.Type, i.Source = "bridge", s.Bridge.Bridge
		case s.Direct != nil:
			i.Type, i.Source, i.Mode = "direct", s.Direct.Dev, s.Direct.Mode
		case s.Ethernet != nil:
			i.Type = "ethernet"
			i.Host = HostEnd{ipPrefixes(s.Ethernet.IP, false), routes(s.Ethernet.Route)}
		default:
			continue // see Unrealised
		}
		if n.Target != nil {
			i.Target = n.Target.Dev
		}
		if n.Guest != nil {
			i.Guest = n.Guest.Dev
		}
		if n.MTU != nil {
			i.MTU = int(n.MTU.Size)
		}
		i.Down = n.Link != nil && n.Link.State == "down"
		i.Isolated = n.PortOptions != nil && n.PortOptions.Isolated == "yes"
		i.Addresses, i.Routes = ipPrefixes(n.IP, i.Type == "ethernet"), routes(n.Route)
		i.VLAN, i.Filter = NewVLAN(n.VLan), filter(n, i.Addresses)
		if n.Bandwidth != nil {
			i.Inbound, i.Outbound = rate(n.Bandwidth.Inbound), rate(n.Bandwidth.Outbound)
		}
		list = append(list, i)
	}
	for _, h := range def.Devices.Hostdevs {
		if h.CapsNet == nil || h.CapsNet.Source == nil {
			continue
		}
		i := Interface{Type: "hostdev", Source: h.CapsNet.Source.Interface}
		i.Addresses, i.Routes = ipPrefixes(movedAddresses(h.CapsNet), false), routes(movedRoutes(h.CapsNet))
		list = append(list, i)
	}
	return list
}

// movedAddresses are those for one of the host's interfaces, in the form of
// the others.
func movedAddresses(n *libvirtxml.DomainHostdevCapsNet) (list []libvirtxml.DomainInterfaceIP) {
	for _, ip := range n.IP {
		a := libvirtxml.DomainInterfaceIP{Address: ip.Address}
		if ip.Prefix != nil {
			a.Prefix = *ip.Prefix
		}
		list = append(list, a)
	}
	return list
}

func movedRoutes(n *libvirtxml.DomainHostdevCapsNet) (list []libvirtxml.DomainInterfaceRoute) {
	for _, r := range n.Route {
		list = append(list, lentRoute(r))
	}
	return list
}

func ipPrefixes(list []libvirtxml.DomainInterfaceIP, single bool) (out []netip.Prefix) {
	for _, ip := range list {
		out = append(out, prefix(ip.Address, ip.Prefix, single))
	}
	return out
}

// prefix adds the length that is not given: that of a single address, or what
// libvirt guesses from the address (virSocketAddrGetIPPrefix).
func prefix(address string, length uint, single bool) netip.Prefix {
	a, _ := netip.ParseAddr(address) // was checked
	a = a.Unmap()
	if length == 0 {
		switch {
		case single:
			length = uint(a.BitLen())
		case a.Is6():
			length = 64
		default:
			length = classLength(a.As4()[0])
		}
	}
	return netip.PrefixFrom(a, int(length))
}

func classLength(first byte) uint {
	switch {
	case first < 128:
		return 8
	case first < 192:
		return 16
	}
	return 24
}

func routes(list []libvirtxml.DomainInterfaceRoute) (out []Route) {
	for _, r := range list {
		out = append(out, route(r))
	}
	return out
}

func route(r libvirtxml.DomainInterfaceRoute) Route {
	gateway, _ := netip.ParseAddr(r.Gateway) // was checked, as the rest
	to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gateway.Is6() {
		to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if a, err := netip.ParseAddr(r.Address); err == nil && !a.IsUnspecified() {
		length := r.Prefix
		if mask, err := netip.ParseAddr(r.Netmask); err == nil {
			length = maskLength(mask)
		}
		to = prefix(r.Address, length, false).Masked()
	}
	return Route{to, gateway, int(r.Metric)}
}

func maskLength(mask netip.Addr) (length uint) {
	for _, b := range mask.AsSlice() {
		for ; b&0x80 != 0; b <<= 1 {
			length++
		}
	}
	return length
}

// rate reads libvirt's KiB and KiB each second.
func rate(p *libvirtxml.DomainInterfaceBandwidthParams) (r Rate) {
	if p == nil {
		return r
	}
	for _, f := range []struct {
		from *int
		to   *uint64
	}{{p.Average, &r.Average}, {p.Peak, &r.Peak}, {p.Burst, &r.Burst}, {p.Floor, &r.Floor}} {
		if f.from != nil {
			*f.to = uint64(*f.from) << 10
		}
	}
	return r
}
