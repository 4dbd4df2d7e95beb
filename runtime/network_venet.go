package runtime

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// A routed interface is OpenVZ's venet: the host has a route to each address
// of the environment and answers for it where its neighbours look for one
// (proxy ARP, proxy NDP). Nothing of it is on the link of another environment,
// and what it sends is checked by its source (network_tc.go).

// route brings the host's end up with its addresses and routes.
func (w *wires) route(p linkPlan, link netlink.Link) error {
	if err := routerSettings(p.Host, p.Addresses); err != nil {
		return err
	}
	if err := w.host.LinkSetUp(link); err != nil {
		return err
	}
	if err := errors.Join(w.dropRoutes(p, link), w.dropAddresses(p, link)); err != nil {
		return err
	}
	for _, a := range p.HostAddresses {
		addr := address(a, false)
		addr.Scope = unix.RT_SCOPE_LINK
		if err := w.host.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("address %s of the host's end: %w", a, err)
		}
	}
	for _, a := range p.Addresses {
		if err := w.routeAddress(a.Addr(), link); err != nil {
			return err
		}
	}
	for _, r := range p.HostRoutes {
		out := insideRoute(r, link.Attrs().Index)
		if err := w.host.RouteReplace(out); err != nil {
			return fmt.Errorf("route of the host to %s: %w", r.To, err)
		}
	}
	return nil
}

func (w *wires) routeAddress(a netip.Addr, link netlink.Link) error {
	if used, err := w.routes(a); err != nil {
		return err
	} else if used == link.Attrs().Index {
		return nil
	} else if used != 0 {
		return fmt.Errorf("the address %s is in use: this host has it, or a route to it", a)
	}
	err := w.host.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Scope: unix.RT_SCOPE_LINK})
	if err != nil {
		return fmt.Errorf("route to %s: %w", a, err)
	}
	return nil
}

// routes gives the index of the link that the host has an address on or a
// route for it alone, 0 if none.
func (w *wires) routes(a netip.Addr) (index int, err error) {
	only := &netlink.Route{Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Table: unix.RT_TABLE_UNSPEC}
	list, err := settled(func() ([]netlink.Route, error) {
		return w.host.RouteListFiltered(family(a), only, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	for _, r := range list {
		if r.Table == unix.RT_TABLE_MAIN || r.Table == unix.RT_TABLE_LOCAL {
			index = r.LinkIndex
		}
	}
	return index, err
}

// dropRoutes takes away what the link has of an earlier plan.
func (w *wires) dropRoutes(p linkPlan, link netlink.Link) error {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := settled(func() ([]netlink.Route, error) { return w.host.RouteList(link, fam) })
		if err != nil {
			return err
		}
		for _, r := range list {
			if wanted(r, p) {
				continue
			}
			if err := w.host.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// dropAddresses takes away those that the link's end had by an earlier plan:
// of IPv4 ours have the link's scope, of IPv6 the kernel gives it one itself.
func (w *wires) dropAddresses(p linkPlan, link netlink.Link) error {
	list, err := settled(func() ([]netlink.Addr, error) { return w.host.AddrList(link, unix.AF_UNSPEC) })
	for _, a := range list {
		have, _ := netip.AddrFromSlice(a.IP)
		have = have.Unmap()
		ours := have == gateway6 || have.Is6() && !have.IsLinkLocalUnicast() || have.Is4() && a.Scope == unix.RT_SCOPE_LINK
		kept := slices.ContainsFunc(p.HostAddresses, func(k netip.Prefix) bool { return k.Addr() == have })
		if !ours || kept {
			continue
		}
		if e := w.host.AddrDel(link, &a); e != nil && !errors.Is(e, unix.EADDRNOTAVAIL) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// wanted tells a route to one of the addresses, or one the kernel made.
func wanted(r netlink.Route, p linkPlan) bool {
	if r.Protocol == unix.RTPROT_KERNEL || r.Dst == nil {
		return true
	}
	to, ok := netip.AddrFromSlice(r.Dst.IP)
	for _, a := range p.Addresses {
		if ok && a.Addr() == to.Unmap() {
			return true
		}
	}
	return false
}

// routerSettings make the host's end a router's for the families there are
// addresses of. Neighbours that the environment looks for on its link are the
// host, at once.
func routerSettings(name string, addresses []netip.Prefix) error {
	routes := map[bool]string{false: "0", true: "1"}[count(addresses, false) > 0]
	settings := map[string]string{
		"ipv4/conf/%s/forwarding": routes, "ipv4/conf/%s/proxy_arp": routes, "ipv4/conf/%s/rp_filter": "1",
		"ipv4/conf/%s/send_redirects": "0", "ipv4/neigh/%s/proxy_delay": "0",
	}
	if count(addresses, true) > 0 {
		settings["ipv6/conf/%s/accept_ra"] = "0"
		settings["ipv6/conf/%s/disable_ipv6"] = "0"
	}
	for setting, value := range settings {
		if err := setSysctl(fmt.Sprintf(setting, name), value); err != nil {
			return err
		}
	}
	if count(addresses, false) > 0 {
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil { // as libvirt for its networks
			return err
		}
	}
	if count(addresses, true) > 0 {
		return forwardIPv6()
	}
	return nil
}

// forwardIPv6 makes the host forward, unless that would take its own routes
// away: those that routers announced go when forwarding begins, except where
// accept_ra is 2 (libvirt's virNetDevIPCheckIPv6Forwarding).
func forwardIPv6() error {
	const all = "ipv6/conf/all/forwarding"
	if sysctl(all) == "1" {
		return nil
	}
	table, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if name := announced(line); name != "" && sysctl("ipv6/conf/"+name+"/accept_ra") != "2" {
			return fmt.Errorf("the host does not forward IPv6, and would lose the routes that %s has from routers if it did: "+
				"set net.ipv6.conf.%s.accept_ra=2 and net.ipv6.conf.all.forwarding=1 with sysctl", name, name)
		}
	}
	return setSysctl(all, "1")
}

// announced reads a line of /proc/net/ipv6_route: of a route that a router
// announced (RTF_ADDRCONF with RTF_DEFAULT, or one that expires), the link.
func announced(line string) string {
	const addrconf, expires, isDefault = 0x00040000, 0x00400000, 0x00010000
	f := strings.Fields(line)
	if len(f) < 10 {
		return ""
	}
	var flags uint32
	if _, err := fmt.Sscanf(f[8], "%x", &flags); err != nil || flags&addrconf == 0 || flags&(expires|isDefault) == 0 {
		return ""
	}
	return f[9]
}

func sysctl(name string) string {
	text, _ := os.ReadFile(filepath.Join("/proc/sys/net", name))
	return strings.TrimSpace(string(text))
}

// setSysctl writes a setting of the calling thread's network namespace.
func setSysctl(name, value string) error {
	if sysctl(name) == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set net.%s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return nil
}

// proxy is an address that the host answers for on one of its links.
type proxy struct {
	Address netip.Addr
	Link    string
}

// planProxies finds where neighbours look for the addresses: on the links of
// which a subnet has them. An address in none of them is a router's to know.
func (w *wires) planProxies(p linkPlan) (list []proxy, err error) {
	links, err := settled(w.host.LinkList)
	if err != nil {
		return nil, err
	}
	addrs, err := settled(func() ([]netlink.Addr, error) { return w.host.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		a := link.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Name == p.Host {
			continue
		}
		for _, own := range p.Addresses {
			if !onLink(own.Addr(), a.Index, addrs) {
				continue
			}
			there, err := settled(func() ([]netlink.Neigh, error) { return w.host.NeighProxyList(a.Index, family(own.Addr())) })
			if err != nil {
				return nil, err
			}
			if q := (proxy{own.Addr(), a.Name}); !answers(there, own.Addr()) {
				list = append(list, q)
			}
		}
	}
	return list, nil
}

// Unanswered tells of routed addresses that no link of the host has a subnet
// for: the host answers for them to no neighbour. That is as it should be where
// a router sends them here, which only who runs the network knows.
func (r *Runtime) Unanswered(list []xml.Interface) (sentences []string) {
	host := r.hostLinks()
	if host == nil || !slices.ContainsFunc(list, func(n xml.Interface) bool { return n.Type == "ethernet" && len(n.Addresses) > 0 }) {
		return nil
	}
	addrs, err := settled(func() ([]netlink.Addr, error) { return host.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil
	}
	for _, n := range list {
		for _, a := range n.Addresses {
			near := slices.ContainsFunc(addrs, func(b netlink.Addr) bool { return onLink(a.Addr(), b.LinkIndex, addrs) })
			if n.Type == "ethernet" && !near {
				sentences = append(sentences, fmt.Sprintf("the address %s of interface %s is in no subnet of this host: others reach it only if a router sends it here", a.Addr(), n.ID()))
			}
		}
	}
	return sentences
}

// onLink tells whether an address is in a subnet of a link that others have
// addresses in, too.
func onLink(a netip.Addr, index int, addrs []netlink.Addr) bool {
	for _, b := range addrs {
		ones, bits := b.Mask.Size()
		if b.LinkIndex == index && ones < bits && b.IPNet.Contains(a.AsSlice()) && !b.IP.IsLinkLocalUnicast() {
			return true
		}
	}
	return false
}

// answers tells whether somebody else made the entry already.
func answers(list []netlink.Neigh, a netip.Addr) bool {
	for _, n := range list {
		if b, ok := netip.AddrFromSlice(n.IP); ok && b.Unmap() == a {
			return true
		}
	}
	return false
}

func (w *wires) addProxies(list []proxy) error {
	for _, q := range list {
		link, err := w.host.LinkByName(q.Link)
		if err != nil {
			return err
		}
		family4 := map[bool]string{false: "ipv4", true: "ipv6"}[q.Address.Is6()]
		if err := setSysctl(family4+"/conf/"+q.Link+"/forwarding", "1"); err != nil {
			return err
		}
		if q.Address.Is6() {
			if err := setSysctl("ipv6/conf/"+q.Link+"/proxy_ndp", "1"); err != nil {
				return err
			}
		}
		if err := w.host.NeighAdd(proxyEntry(q, link)); err != nil {
			return fmt.Errorf("answer for %s on %s: %w", q.Address, q.Link, err)
		}
	}
	return nil
}

// removeProxies takes entries away; of a link that is gone they are gone.
func removeProxies(h *netlink.Handle, list []proxy) error {
	var errs []error
	for _, q := range list {
		link, err := h.LinkByName(q.Link)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err == nil {
			err = h.NeighDel(proxyEntry(q, link))
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func proxyEntry(q proxy, link netlink.Link) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: family(q.Address), IP: q.Address.AsSlice(),
		Flags: netlink.NTF_PROXY, State: netlink.NUD_PERMANENT, // newer kernels then keep it when the cable is pulled
	}
}
