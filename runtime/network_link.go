package runtime

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// wires are the two network namespaces an interface connects: the host's, and
// that of an environment, each with a netlink socket that stays in it.
type wires struct {
	host, inside *netlink.Handle
	space        *os.File // the environment's namespace
}

// openWires opens the host's side, that of the calling thread, and the side of
// space, which it then owns.
func openWires(space *os.File) (*wires, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		space.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	w := &wires{host: host, space: space}
	err = inSpace(space, func() (err error) {
		w.inside, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		w.close()
		return nil, fmt.Errorf("enter the network namespace: %w", err)
	}
	return w, nil
}

// inSpace runs do on a thread of its own in a network namespace.
func inSpace(space *os.File, do func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return do()
	})
}

func (w *wires) close() {
	w.host.Close()
	if w.inside != nil {
		w.inside.Close()
	}
	w.space.Close()
}

// madeLink is what the kernel called an interface.
type madeLink struct{ host, guest int } // indexes; of direct and hostdev there is none on the host

// add makes an interface and sets it up, or leaves nothing. It must be called
// on a thread in the host's network namespace, as everything that sets up the
// host's end.
func (w *wires) add(p linkPlan) (madeLink, error) {
	made, err := w.make(p)
	if err == nil {
		if err = w.setUp(p, made); err != nil {
			err = errors.Join(err, w.unmake(p.Type, made))
		}
	}
	if err != nil {
		return madeLink{}, fmt.Errorf("network interface %s: %w", p.ID, err)
	}
	return made, nil
}

func (w *wires) make(p linkPlan) (madeLink, error) {
	if _, err := w.inside.LinkByName(p.Guest); err == nil {
		return madeLink{}, fmt.Errorf("there is a network interface %s inside already: choose another name with <guest dev=…/>", p.Guest)
	}
	switch p.Type {
	case "direct":
		return w.makeMacvlan(p)
	case "hostdev":
		return w.moveIn(p)
	}
	return w.makeVeth(p)
}

func (w *wires) makeVeth(p linkPlan) (made madeLink, err error) {
	mtu := p.MTU
	if p.Type == "bridge" {
		bridge, err := w.bridge(p.Parent)
		if err != nil {
			return made, err
		}
		if mtu == 0 {
			mtu = bridge.Attrs().MTU
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = p.Host, hostMAC(p.MAC), mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = p.Guest, p.MAC, uint32(mtu)
	veth.PeerNamespace = netlink.NsFd(w.space.Fd())
	if err := w.host.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			err = errHostName(p.Host)
		}
		return made, err
	}
	host, err := w.host.LinkByName(p.Host)
	if err != nil {
		return made, err
	}
	return madeLink{host.Attrs().Index, host.Attrs().ParentIndex}, nil
}

func errHostName(name string) error {
	return fmt.Errorf("there is a network interface %s on the host already: choose another name with <target dev=…/>, or none", name)
}

// bridge finds a bridge of the host's.
func (w *wires) bridge(name string) (netlink.Link, error) {
	link, err := w.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("there is no bridge %s on this host: make it, or start the network it belongs to", name)
	}
	if err != nil {
		return nil, err
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("the network interface %s of this host is no bridge: name one, or use <interface type='direct'>", name)
	}
	return link, nil
}

// macvlanModes are the kernel's for libvirt's words.
var macvlanModes = map[string]netlink.MacvlanMode{
	"": netlink.MACVLAN_MODE_VEPA, "vepa": netlink.MACVLAN_MODE_VEPA, "bridge": netlink.MACVLAN_MODE_BRIDGE,
	"private": netlink.MACVLAN_MODE_PRIVATE, "passthrough": netlink.MACVLAN_MODE_PASSTHRU,
}

func (w *wires) makeMacvlan(p linkPlan) (made madeLink, err error) {
	parent, err := w.device(p.Parent)
	if err != nil {
		return made, err
	}
	attrs := netlink.NewLinkAttrs()
	// The kernel wants a name that is free on the host, too.
	attrs.Name, attrs.HardwareAddr, attrs.MTU, attrs.ParentIndex = p.Host, p.MAC, p.MTU, parent.Attrs().Index
	attrs.Namespace = netlink.NsFd(w.space.Fd())
	err = w.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[p.Mode]})
	switch {
	case errors.Is(err, unix.EEXIST):
		return made, errHostName(p.Host)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL):
		return made, fmt.Errorf("%s cannot have a macvlan of mode %q: it is used in another way (as a port of a bridge, or in passthrough mode): %w", p.Parent, p.Mode, err)
	case err != nil:
		return made, err
	}
	link, err := w.inside.LinkByName(p.Host)
	if err != nil {
		return made, err
	}
	made.guest = link.Attrs().Index
	err = w.inside.LinkSetName(link, p.Guest)
	if p.Mode == "passthrough" && err == nil { // the kernel gave it its parent's address, and gives the parent its own again
		err = w.inside.LinkSetHardwareAddr(link, p.MAC)
	}
	if err != nil {
		return made, errors.Join(err, w.unmake(p.Type, made))
	}
	return made, nil
}

func (w *wires) device(name string) (netlink.Link, error) {
	link, err := w.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("there is no network interface %s on this host", name)
	}
	return link, err
}

// unmake takes away what make made, also where root inside has renamed or
// deleted it: a deleted end of a pair takes the other with it.
func (w *wires) unmake(kind string, made madeLink) error {
	switch kind {
	case "hostdev":
		return nil // moveOut, which knows where to
	case "direct":
		return w.removeMacvlan(func(a *netlink.LinkAttrs) bool { return a.Index == made.guest })
	}
	link, err := w.host.LinkByIndex(made.host)
	if err != nil || link.Type() != "veth" {
		return ignoreMissing(err)
	}
	return ignoreMissing(w.host.LinkDel(link))
}

// removeMacvlan removes one inside, if it is there.
func (w *wires) removeMacvlan(is func(*netlink.LinkAttrs) bool) error {
	link, err := w.find(func(link netlink.Link) bool { return link.Type() == "macvlan" && is(link.Attrs()) })
	if err != nil || link == nil {
		return err
	}
	return ignoreMissing(w.inside.LinkDel(link))
}

// setUp configures both ends. It may be repeated.
func (w *wires) setUp(p linkPlan, made madeLink) error {
	if made.host != 0 {
		if err := w.setUpHost(p, made.host); err != nil {
			return err
		}
	}
	return w.setUpInside(p, made.guest, nil)
}

func (w *wires) setUpHost(p linkPlan, index int) error {
	link, err := w.host.LinkByIndex(index)
	if err != nil {
		return errGone(err)
	}
	// What comes from inside is checked before anything can.
	if err := w.setIngress(p, link); err != nil {
		return err
	}
	if p.Type == "bridge" {
		bridge, err := w.bridge(p.Parent)
		if err != nil {
			return err
		}
		if err := joinBridge(w.host, link, bridge, p.Isolated, p.VLAN); err != nil {
			return fmt.Errorf("make %s a port of %s: %w", p.Host, p.Parent, err)
		}
	}
	if err := setShaping(w.host, link, p.Inbound); err != nil {
		return fmt.Errorf("inbound traffic: %w", err)
	}
	if p.Down {
		return w.host.LinkSetDown(link)
	}
	if !p.Checked {
		return w.host.LinkSetUp(link)
	}
	return w.route(p, link)
}

func (w *wires) setIngress(p linkPlan, link netlink.Link) error {
	sources := p.Addresses
	if p.Guarded {
		sources = nil
	}
	if err := setIngress(w.host, link, p.Outbound, p.Checked || p.Guarded, sources); err != nil {
		return fmt.Errorf("outbound traffic: %w", err)
	}
	return nil
}

// setUpInside gives the end inside its addresses and routes. before are what
// it had: of them those it shall not have any more are taken away, and what is
// not changed is root's inside, who can so not keep the host's end from changing.
func (w *wires) setUpInside(p linkPlan, index int, before *linkPlan) error {
	addresses, routes := p.Addresses, p.Routes
	if before != nil {
		addresses, routes = without(addresses, before.Addresses), without(routes, before.Routes)
		gone := without(before.Addresses, p.Addresses)
		if len(addresses)+len(routes)+len(gone)+len(without(before.Routes, p.Routes)) == 0 {
			return nil
		}
		if len(gone) > 0 {
			routes = p.Routes // with the last address the kernel forgets them
		}
	}
	link, err := w.inside.LinkByIndex(index)
	if err != nil {
		return errGone(err)
	}
	if before != nil {
		if err := w.dropInside(p, link, before); err != nil {
			return err
		}
	}
	for _, a := range addresses {
		if err := w.inside.AddrReplace(link, address(a, p.Checked)); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if err := w.inside.LinkSetUp(link); err != nil {
		return err
	}
	for _, r := range routes {
		if err := w.inside.RouteReplace(insideRoute(r, index)); err != nil {
			return fmt.Errorf("route to %s by %s: %w", r.To, r.Gateway, err)
		}
	}
	return nil
}

// dropInside takes away what the end inside shall not have any more.
func (w *wires) dropInside(p linkPlan, link netlink.Link, before *linkPlan) error {
	for _, r := range without(before.Routes, p.Routes) {
		if err := w.inside.RouteDel(insideRoute(r, link.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("route to %s: %w", r.To, err)
		}
	}
	for _, a := range without(before.Addresses, p.Addresses) {
		if err := w.inside.AddrDel(link, address(a, p.Checked)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

// errGone tells of a link that root inside deleted.
func errGone(err error) error {
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return errors.New("it was deleted inside: detach it and attach it again")
	}
	return err
}

// address is a prefix for the kernel. IPv6 need not look whether another has
// the address: who defined the environment knows, and init would have to wait.
// On a routed interface nobody but the host is on the link, whatever the prefix.
func address(a netip.Prefix, routed bool) *netlink.Addr {
	out := &netlink.Addr{IPNet: ipNet(a)}
	if a.Addr().Is6() {
		out.Flags = unix.IFA_F_NODAD
	}
	if routed {
		out.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	return out
}

// insideRoute: the gateway may be one that no address of the link is next to.
func insideRoute(r xml.Route, index int) *netlink.Route {
	out := &netlink.Route{LinkIndex: index, Dst: ipNet(r.To), Priority: r.Metric, Family: family(r.To.Addr())}
	if !r.Gateway.IsUnspecified() {
		out.Gw = r.Gateway.AsSlice()
		out.SetFlag(netlink.FLAG_ONLINK)
	}
	return out
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func family(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}
