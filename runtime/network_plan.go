package runtime

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"virtvzd/xml"
)

// linkPlan is one network interface to be made, all that is to be known of it.
// There are four kinds:
//
//	bridge    a veth pair, one end a port of a bridge
//	ethernet  a veth pair, the host routes to it (OpenVZ's venet)
//	direct    a macvlan of one of the host's interfaces
//	hostdev   one of the host's interfaces itself
type linkPlan struct {
	ID, Type string
	Parent   string // bridge or interface of the host
	Mode     string // of direct
	Host     string // name on the host; of direct it is only what statistics are asked by
	Guest    string // name inside
	MAC      net.HardwareAddr
	MTU      int // 0: the parent's
	Down     bool
	Isolated bool
	VLAN     xml.VLAN
	Filter   xml.Filter
	Guarded  bool // nothing from inside passes until the filter is there

	Addresses, HostAddresses []netip.Prefix
	Routes, HostRoutes       []xml.Route
	WasUp                    bool // of hostdev: on the host, where it is to be so again
	NIC                      hostNIC
	Before                   InterfaceStats
	Checked                  bool // packets with a source that is none of Addresses are dropped

	Inbound, Outbound xml.Rate
}

// The host's end of a routed interface has the same addresses for every
// environment: they mean something on that one link only.
var (
	gateway4 = netip.MustParseAddr("169.254.0.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// planLink plans the interface n of an environment that has all. plug is where
// its network has a place for it, the zero value for other types.
func planLink(n xml.Interface, all []xml.Interface, plug Plug, host, guest string) (linkPlan, error) {
	p := linkPlan{
		ID: n.ID(), Type: n.Type, Parent: n.Source, Mode: n.Mode, Host: host, Guest: guest, MTU: n.MTU,
		Down: n.Down, Isolated: n.Isolated || plug.Isolated, VLAN: n.VLAN, Filter: n.Filter,
		Addresses: slices.Clone(n.Addresses), Routes: slices.Clone(n.Routes),
		Inbound: n.Inbound, Outbound: n.Outbound,
	}
	if n.Type != "hostdev" {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			return p, err
		}
		p.MAC = mac
	}
	if n.Type == "network" {
		p.Type, p.Parent, p.Mode = "bridge", plug.Bridge, ""
		if plug.Device != "" {
			p.Type, p.Parent, p.Mode = "direct", plug.Device, plug.Mode
		}
		if n.VLAN.IsZero() {
			p.VLAN = plug.VLAN
		}
		if n.Inbound == (xml.Rate{}) && n.Outbound == (xml.Rate{}) {
			p.Inbound, p.Outbound = plug.Inbound, plug.Outbound
		}
	}
	if p.Type == "direct" && (p.Inbound.Average > 0 || p.Outbound.Average > 0) {
		return p, fmt.Errorf("a <bandwidth> cannot be held for %s, which has no end on the host where traffic could be counted: use a bridge", p.ID)
	}
	if p.Type == "direct" && p.Down {
		return p, fmt.Errorf("<link state='down'> cannot be in force for %s, which has no end on the host, and root inside could set it up again: detach it, or use a bridge", p.ID)
	}
	if p.Type != "bridge" && p.Filter.Name != "" {
		return p, fmt.Errorf("the <filterref> of %s cannot be in force: libvirt's filters see what passes a bridge; use an interface of type bridge or of a network that has one", p.ID)
	}
	if p.Type != "bridge" && !p.VLAN.IsZero() {
		return p, fmt.Errorf("the <vlan> of %s cannot be in force: only a port of a bridge has VLANs", p.ID)
	}
	if n.Type == "ethernet" && (n.Routed || len(n.Addresses) > 0) {
		planRouted(&p, n, all)
	}
	return p, nil
}

// planRouted gives a routed interface the ends' addresses and, unless the
// definition says how, the way out.
func planRouted(p *linkPlan, n xml.Interface, all []xml.Interface) {
	p.Checked = true
	p.HostAddresses, p.HostRoutes = slices.Clone(n.Host.Addresses), slices.Clone(n.Host.Routes)
	for _, family := range []struct {
		is6     bool
		gateway netip.Addr
		all     netip.Prefix
	}{
		{false, gateway4, netip.PrefixFrom(netip.IPv4Unspecified(), 0)},
		{true, gateway6, netip.PrefixFrom(netip.IPv6Unspecified(), 0)},
	} {
		ours := func(a netip.Prefix) bool { return a.Addr().Is6() == family.is6 }
		if !slices.ContainsFunc(n.Addresses, ours) {
			continue
		}
		gateway := family.gateway
		if k := slices.IndexFunc(p.HostAddresses, ours); k >= 0 {
			gateway = p.HostAddresses[k].Addr()
		} else {
			p.HostAddresses = append(p.HostAddresses, netip.PrefixFrom(gateway, gateway.BitLen()))
		}
		if leadsOut(n, all, family.is6) {
			p.Routes = append(p.Routes, xml.Route{To: family.all, Gateway: gateway})
		}
	}
}

// leadsOut tells whether a routed interface is the environment's way to
// everywhere: the first of its kind, if nothing else is said to be.
func leadsOut(n xml.Interface, all []xml.Interface, is6 bool) bool {
	for _, other := range all {
		for _, r := range other.Routes {
			if r.To.Bits() == 0 && r.To.Addr().Is6() == is6 {
				return false
			}
		}
	}
	for _, other := range all {
		if other.Type == "ethernet" && slices.ContainsFunc(other.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() == is6 }) {
			return other.ID() == n.ID()
		}
	}
	return false
}

// leads is leadsOut for IPv4 and for IPv6.
func leads(n xml.Interface, all []xml.Interface) [2]bool {
	return [2]bool{leadsOut(n, all, false), leadsOut(n, all, true)}
}

// hostMAC is that of the host's end: the other with 0xfe in front, as libvirt
// has it. A bridge takes the least of its ports' for its own, and this is
// never it. It also tells our links from others of the same name.
func hostMAC(mac net.HardwareAddr) net.HardwareAddr {
	host := slices.Clone(mac)
	host[0] = 0xfe
	if mac[0] == 0xfe {
		host[0] = 0xfa
	}
	return host
}

// guestName is the name inside of an interface: the given one, or the first
// ethN that neither another interface is to have nor taken knows.
func guestName(n xml.Interface, all []xml.Interface, taken func(string) bool) string {
	if n.Guest != "" {
		return n.Guest
	}
	if n.Type == "hostdev" {
		return n.Source
	}
	for k := 0; ; k++ {
		name := fmt.Sprintf("eth%d", k)
		if !taken(name) && !slices.ContainsFunc(all, func(o xml.Interface) bool { return o.Guest == name }) {
			return name
		}
	}
}

// claims are what two running environments cannot both have: the name of a
// link on the host, a MAC or an address in one VLAN of a bridge, a routed address.
func (p *linkPlan) claims() (list []string) {
	list = append(list, "the network interface "+p.Host)
	for _, where := range p.places() {
		if p.Type != "ethernet" && p.Type != "hostdev" {
			list = append(list, "the MAC address "+p.MAC.String()+where)
		}
		for _, a := range p.Addresses {
			list = append(list, "the address "+a.Addr().String()+where)
		}
	}
	return list
}

// places are where neighbours of an interface are.
func (p *linkPlan) places() (list []string) {
	switch {
	case p.Type == "ethernet":
		return []string{""}
	case p.VLAN.IsZero():
		return []string{" on " + p.Parent}
	}
	for _, id := range append([]uint16{p.VLAN.Native}, p.VLAN.Tags...) {
		if id != 0 {
			list = append(list, fmt.Sprintf(" on %s in VLAN %d", p.Parent, id))
		}
	}
	return list
}

// String shows the plan for golden tests and for people.
func (p *linkPlan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", p.Type, p.ID)
	for _, f := range []struct {
		name  string
		value any
		show  bool
	}{
		{"of", p.Parent, p.Parent != ""}, {"mode", p.Mode, p.Mode != ""}, {"host", p.Host, p.Host != ""}, {"guest", p.Guest, true},
		{"mtu", p.MTU, p.MTU != 0}, {"down", p.Down, p.Down}, {"isolated", p.Isolated, p.Isolated}, {"checked", p.Checked, p.Checked},
		{"vlan", p.VLAN, !p.VLAN.IsZero()}, {"filter", p.Filter, p.Filter.Name != ""},
		{"addresses", p.Addresses, p.Addresses != nil}, {"routes", p.Routes, p.Routes != nil},
		{"host-addresses", p.HostAddresses, p.HostAddresses != nil}, {"host-routes", p.HostRoutes, p.HostRoutes != nil},
		{"in", p.Inbound, p.Inbound != xml.Rate{}}, {"out", p.Outbound, p.Outbound != xml.Rate{}},
	} {
		if f.show {
			fmt.Fprintf(&b, " %s=%v", f.name, f.value)
		}
	}
	return b.String()
}
