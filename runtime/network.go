package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// The environment's network namespace is made by the OCI runtime, with its
// user namespace, so root inside rules it. The interfaces are made by the
// daemon between create and start, and while it runs:
//
//	network.go        all interfaces of one environment: add, change, remove, recover
//	network_plan.go   what an interface will be (pure)
//	network_link.go   one interface, made and unmade
//	network_venet.go  the host's side of a routed one
//	network_tc.go     rates, and the check of source addresses
//	network_move.go   the host's own interfaces, lent
//	network_filter.go libvirt's packet filters on one
//	network_read.go   addresses and counters
//
// Most goes with the namespace when the last process has ended: a veth pair,
// its queues, filters and routes, a macvlan. Ports in libvirt's networks, proxy
// entries, filters and lent interfaces do not; the record has them before they are made.

// Networks is what is wanted of libvirt's virtual networks.
type Networks interface {
	// Plug makes a port, under the UUID it is given.
	Plug(ctx context.Context, p Port) (Plug, error)
	// Unplug removes one. That it or its network is gone is no error.
	Unplug(ctx context.Context, network, uuid string) error
	// Limit changes a port's bandwidth.
	Limit(ctx context.Context, network, uuid string, inbound, outbound xml.Rate) error
}

// Port is an interface for a network.
type Port struct {
	UUID, Network, Group string
	Owner, OwnerUUID     string // the domain
	MAC                  string
	Isolated             bool
	VLAN                 xml.VLAN
	Inbound, Outbound    xml.Rate
}

// Plug is where a network wants an interface: a bridge, or a device of the
// host to make a macvlan of.
type Plug struct {
	Bridge            string
	Device, Mode      string
	Isolated          bool
	VLAN              xml.VLAN
	Inbound, Outbound xml.Rate // the network's own, for an interface that has none
}

// recordedLink is what is to be found again of an interface.
type recordedLink struct {
	ID, Type    string // as planned; Type "" until it is
	MAC         string
	Host, Guest string // names
	HostIndex   int    `json:",omitempty"` // 0 until it is made
	GuestIndex  int    `json:",omitempty"`
	Parent      string // bridge or interface of the host
	WasUp       bool   `json:",omitempty"` // of hostdev: on the host
	Isolated    bool   `json:",omitempty"` // with VLAN, as a port of Parent
	VLAN        xml.VLAN
	Filter      xml.Filter // which may be bound to Host
	Ports       []recordedPort
	Proxies     []proxy
	Claims      []string // what no other environment may have

	// the network's own
	Inbound, Outbound xml.Rate
	PortVLAN          xml.VLAN

	Before InterfaceStats // of hostdev: what it had counted on the host
}

// recordedPort is a port in a network; of several the last is the one in use.
type recordedPort struct{ Network, UUID string }

func (l *recordedLink) port() recordedPort {
	if len(l.Ports) == 0 {
		return recordedPort{}
	}
	return l.Ports[len(l.Ports)-1]
}

// InterfaceError is why an environment cannot have a network interface.
type InterfaceError struct{ err error }

func (e *InterfaceError) Error() string { return e.err.Error() }
func (e *InterfaceError) Unwrap() error { return e.err }

func interfaceError(err error) error {
	if err == nil {
		return nil
	}
	return &InterfaceError{err}
}

// Link is an interface of a running environment.
type Link struct {
	ID, Host, Guest       string // names as they were made
	Paired                bool   // with an end on the host, Host
	Network, Bridge, Port string
}

// Links are the environment's interfaces, in the order they were added.
func (i *Instance) Links() (list []Link) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, l := range i.rec.Links {
		link := Link{ID: l.ID, Host: l.Host, Guest: l.Guest, Paired: l.HostIndex != 0, Network: l.port().Network, Port: l.port().UUID}
		if l.Type == "bridge" {
			link.Bridge = l.Parent
		}
		list = append(list, link)
	}
	return list
}

// wires opens the environment's network namespace.
func (i *Instance) wires() (*wires, error) {
	space, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", i.rec.Init))
	if err == nil && dead(i.pidfd) { // the PID may have been another process's by now
		space.Close()
		err = unix.ESRCH
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return nil, interfaceError(fmt.Errorf("%s has ended: try again when it runs", i.Name()))
	}
	if err != nil {
		return nil, err
	}
	return openWires(space)
}

// addInterfaces adds those of list that there are not yet: all, or none.
// all are those the environment then has.
func (i *Instance) addInterfaces(ctx context.Context, list, all []xml.Interface) error {
	if len(list) == 0 {
		return nil
	}
	w, err := i.wires()
	if err != nil {
		return err
	}
	defer w.close()
	if err := i.keepSpace(w); err != nil {
		return err
	}
	i.r.retryDebts(ctx)
	var added []string
	for _, n := range list {
		if i.link(n.ID()) != nil {
			continue
		}
		added = append(added, n.ID())
		if err := i.addInterface(ctx, w, n, all); err != nil {
			for _, id := range slices.Backward(added) {
				err = errors.Join(err, i.removeInterface(context.WithoutCancel(ctx), w, id))
			}
			return interfaceError(err)
		}
	}
	return nil
}

// link is the record of an interface, nil if there is none.
func (i *Instance) link(id string) *recordedLink {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, l := range i.rec.Links {
		if l.ID == id {
			return l
		}
	}
	return nil
}

// noteLink records a link before the step that needs it.
func (i *Instance) noteLink(change func()) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
	return i.rec.save(i.dir)
}

func (i *Instance) addInterface(ctx context.Context, w *wires, n xml.Interface, all []xml.Interface) error {
	l := &recordedLink{ID: n.ID(), MAC: n.MAC}
	if err := i.noteLink(func() { i.rec.Links = append(i.rec.Links, l) }); err != nil {
		return err
	}
	plug, err := i.plugIn(ctx, l, n)
	if err != nil {
		return err
	}
	p, err := i.plan(w, n, all, plug)
	if err != nil {
		return err
	}
	if err := i.prepare(w, l, &p); err != nil {
		return err
	}
	p.Guarded = p.Filter.Name != ""
	atStep("link_" + p.Type)
	made, err := w.add(p)
	if err != nil {
		return err
	}
	atStep("linked_" + p.Type)
	if err := i.noteLink(func() { l.HostIndex, l.GuestIndex = made.host, made.guest }); err != nil {
		return err
	}
	if err := i.bindFilter(ctx, w, l, p); err != nil {
		return err
	}
	return w.addProxies(l.Proxies)
}

// plugIn asks the network of an interface for a place.
func (i *Instance) plugIn(ctx context.Context, l *recordedLink, n xml.Interface) (plug Plug, err error) {
	if n.Type != "network" {
		return plug, nil
	}
	if i.r.config.Networks == nil {
		return plug, errors.New("this daemon has no way to libvirt's networks")
	}
	port := recordedPort{n.Source, newPortID()}
	if err := i.noteLink(func() { l.Ports = append(l.Ports, port) }); err != nil {
		return plug, err
	}
	plug, err = i.r.config.Networks.Plug(ctx, Port{
		UUID: port.UUID, Network: n.Source, Group: n.PortGroup, Owner: i.Name(), OwnerUUID: formatUUID(i.uuid),
		MAC: n.MAC, Isolated: n.Isolated, VLAN: n.VLAN, Inbound: n.Inbound, Outbound: n.Outbound,
	})
	if err != nil {
		return plug, err
	}
	return plug, i.noteLink(func() { l.Inbound, l.Outbound, l.PortVLAN = plug.Inbound, plug.Outbound, plug.VLAN })
}

// prepare records what a planned link will be, and what it takes.
func (i *Instance) prepare(w *wires, l *recordedLink, p *linkPlan) error {
	var proxies []proxy
	claims := p.claims()
	err := i.r.claimLinks(i.Name(), claims)
	if err != nil {
		return err
	}
	if p.Checked {
		proxies, err = w.planProxies(*p)
	}
	if p.Type == "hostdev" && err == nil {
		err = w.lend(p)
	}
	if err != nil {
		i.r.releaseLinks(claims)
		return err
	}
	return i.noteLink(func() {
		l.Type, l.MAC, l.Host, l.Guest, l.Parent = p.Type, p.MAC.String(), p.Host, p.Guest, p.Parent
		l.Proxies, l.Claims, l.WasUp = proxies, claims, p.WasUp
		l.Isolated, l.VLAN, l.Before = p.Isolated, p.VLAN, p.Before
	})
}

// plan plans an interface with the names it has, or free ones.
func (i *Instance) plan(w *wires, n xml.Interface, all []xml.Interface, plug Plug) (linkPlan, error) {
	host, guest := n.Target, ""
	if l := i.link(n.ID()); l != nil && l.Type != "" {
		host, guest = l.Host, l.Guest
	} else {
		guest = guestName(n, all, func(name string) bool {
			_, err := w.inside.LinkByName(name)
			return err == nil
		})
	}
	if n.Type == "hostdev" {
		host = n.Source
	} else if host == "" {
		host = i.r.freeName(w.host, n.Type == "direct" || plug.Device != "")
	}
	return planLink(n, all, plug, host, guest)
}

// lend notes how an interface of the host's is to come back.
func (w *wires) lend(p *linkPlan) error {
	link, err := w.movable(p.Parent)
	if err != nil {
		return err
	}
	p.MAC, p.WasUp = link.Attrs().HardwareAddr, link.Attrs().Flags&net.FlagUp != 0
	p.Before = counters(link.Attrs().Statistics)
	return nil
}

func spaceFDName(uuid string) string { return "vz-net-" + uuid }

// removeInterface takes an interface away, or what there is of it.
func (i *Instance) removeInterface(ctx context.Context, w *wires, id string) error {
	l := i.link(id)
	if l == nil {
		return nil
	}
	if err := i.r.removeLink(ctx, i.uuid, l, w); err != nil {
		return fmt.Errorf("network interface %s: %w", id, err)
	}
	return i.noteLink(func() {
		i.rec.Links = slices.DeleteFunc(i.rec.Links, func(other *recordedLink) bool { return other == l })
	})
}

// removeLink removes all that a record has of a link. Without an environment
// (w is nil) what is inside is gone already.
func (r *Runtime) removeLink(ctx context.Context, uuid [16]byte, l *recordedLink, w *wires) error {
	r.countLink(uuid, l, w)
	atStep("undo link")
	hardware, _ := net.ParseMAC(l.MAC)
	host := r.hostLinks()
	if w != nil {
		host = w.host
	}
	var err error
	switch {
	case host == nil:
		err = errors.New("netlink cannot be used")
	case l.Type == "hostdev" && w != nil:
		err = w.moveOut(l.GuestIndex, hardware, l.Host, l.WasUp)
	case l.Type == "hostdev":
		err = awaitReturn(host, hardware, l.Host, l.WasUp)
	case l.Type == "direct" && w != nil:
		err = removeMacvlan(w.inside, l)
	case l.Type == "bridge", l.Type == "ethernet":
		err = removeVeth(host, l, hardware)
	}
	if host != nil {
		err = errors.Join(err, removeProxies(host, l.Proxies))
	}
	if err != nil {
		return err
	}
	if l.Filter.Name != "" {
		atStep("undo filter")
		if err := r.unbind(ctx, l.Host); err != nil {
			return err
		}
	}
	for _, port := range l.Ports {
		atStep("undo port")
		if err := r.unplug(ctx, port); err != nil {
			return err
		}
	}
	r.releaseLinks(l.Claims)
	return nil
}

// removeVeth deletes the host's end, by its index or, when the daemon was killed
// before it knew that, by what else it must be.
func removeVeth(h *netlink.Handle, l *recordedLink, mac net.HardwareAddr) error {
	link, err := hostEnd(h, l, mac)
	if link == nil {
		return err
	}
	return ignoreMissing(h.LinkDel(link))
}

// hostEnd finds the host's end of a pair, nil if it is gone.
func hostEnd(h *netlink.Handle, l *recordedLink, mac net.HardwareAddr) (netlink.Link, error) {
	link, err := h.LinkByIndex(l.HostIndex)
	if l.HostIndex == 0 {
		link, err = h.LinkByName(l.Host)
	}
	if err != nil {
		return nil, ignoreMissing(err)
	}
	if link.Type() != "veth" || link.Attrs().HardwareAddr.String() != hostMAC(mac).String() {
		return nil, nil // not ours
	}
	return link, nil
}

func removeMacvlan(h *netlink.Handle, l *recordedLink) error {
	link, err := h.LinkByIndex(l.GuestIndex)
	if l.GuestIndex == 0 {
		if link, err = h.LinkByName(l.Host); err != nil { // not renamed yet
			link, err = h.LinkByName(l.Guest)
		}
	}
	if err != nil {
		return ignoreMissing(err)
	}
	return deleteLink(h, link.Attrs().Index, "macvlan")
}

// removeLinks removes the links of an environment that has ended.
func (r *Runtime) removeLinks(ctx context.Context, uuid [16]byte, rec *record) error {
	var w *wires
	if space := r.takeSpace(uuid); space != nil {
		var err error
		if w, err = openWires(space); err != nil {
			return err
		}
		defer w.close()
	}
	var errs []error
	for _, l := range slices.Backward(rec.Links) {
		if err := r.removeLink(ctx, uuid, l, w); err != nil {
			errs = append(errs, fmt.Errorf("network interface %s: %w", l.ID, err))
		}
	}
	r.dropFD(spaceFDName(rec.UUID))
	return errors.Join(errs...)
}

// newPortID makes a random UUID.
func newPortID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return formatUUID(b)
}
