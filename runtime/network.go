package runtime

import (
	"context"
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
//	network_plug.go   places in libvirt's networks
//	network_link.go   one interface, made and unmade
//	network_venet.go  the host's side of a routed one
//	network_tc.go     rates, and the check of source addresses
//	network_move.go   the host's own interfaces, lent
//	network_nested.go what root inside has moved on
//	network_filter.go libvirt's packet filters on one
//	network_read.go   addresses and counters
//	network_watch.go  connected again after changes of the host's own
//
// Most goes with the namespace when the last process has ended: a veth pair,
// its queues, filters and routes, a macvlan. Ports in libvirt's networks, proxy
// entries, filters and lent interfaces do not; the record has them before they are made.

// recordedLink is what is to be found again of an interface.
type recordedLink struct {
	ID, Type    string // as planned; Type "" until it is
	MAC         string
	Host, Guest string  // names
	HostIndex   int     `json:",omitempty"` // 0 until it is made
	GuestIndex  int     `json:",omitempty"`
	Parent      string  // bridge or interface of the host
	WasUp       bool    `json:",omitempty"` // of hostdev: on the host
	NIC         hostNIC // the rest of what it was there
	Routed      bool    `json:",omitempty"` // held to its addresses, and to none when it has no more
	Isolated    bool    `json:",omitempty"` // with VLAN, as a port of Parent
	VLAN        xml.VLAN
	Filter      xml.Filter // that is bound to Host
	Rebinding   bool       `json:",omitempty"` // or another, or none: it is being changed, or that failed halfway
	Ports       []recordedPort
	Proxies     []proxy
	Claims      []string // what no other environment may have

	// as the network made the port
	Inbound, Outbound xml.Rate
	PortVLAN          xml.VLAN
	PortIsolated      bool `json:",omitempty"`

	Before InterfaceStats // of hostdev: what it had counted on the host
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
	Counter               string // see Traffic
	Paired                bool   // with an end on the host, Host
	Network, Bridge, Port string
}

// Links are the environment's interfaces, in the order they were added.
func (i *Instance) Links() (list []Link) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, l := range i.rec.Links {
		link := Link{ID: l.ID, Host: l.Host, Guest: l.Guest, Counter: l.counter(), Paired: l.HostIndex != 0, Network: l.port().Network, Port: l.port().UUID}
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

// addInterfaces adds those of list: all, or none. all are those the environment
// then has.
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
	var added []string
	for _, n := range list {
		// What is left of an earlier one, that could not be removed, is none.
		err := i.removeInterface(ctx, w, n.ID())
		if err == nil {
			added = append(added, n.ID())
			err = i.addInterface(ctx, w, n, all)
		}
		if err != nil {
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
	if err := atStep("link_" + p.Type); err != nil {
		return err
	}
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
		i.r.releaseLinks(i.Name(), claims)
		return err
	}
	return i.noteLink(func() {
		l.Type, l.MAC, l.Host, l.Guest, l.Parent = p.Type, p.MAC.String(), p.Host, p.Guest, p.Parent
		l.Proxies, l.Claims, l.WasUp, l.Routed = proxies, claims, p.WasUp, p.Checked
		l.Isolated, l.VLAN, l.Before, l.NIC = p.Isolated, p.VLAN, p.Before, p.NIC
	})
}

// plan plans an interface with the names it has, or free ones.
func (i *Instance) plan(w *wires, n xml.Interface, all []xml.Interface, plug Plug) (linkPlan, error) {
	host, guest := n.Target, ""
	if l := i.link(n.ID()); l != nil && l.Type != "" {
		host, guest, n.Routed = l.Host, l.Guest, n.Routed || l.Routed
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

func spaceFDName(uuid string) string { return "vz-net-" + uuid }

// removeInterface takes an interface away, or what there is of it.
func (i *Instance) removeInterface(ctx context.Context, w *wires, id string) error {
	l := i.link(id)
	if l == nil {
		return nil
	}
	i.r.countLink(i.uuid, l, w)
	err := i.takeAway(w, l)
	if err == nil {
		err = i.r.removeLink(ctx, i.uuid, l, w, false)
	}
	if err != nil {
		return fmt.Errorf("network interface %s: %w", id, err)
	}
	return i.forgetLink(l)
}

// forgetLink is for one that was removed: what it had may be another's from now on.
func (i *Instance) forgetLink(l *recordedLink) error {
	err := i.noteLink(func() {
		i.rec.Links = slices.DeleteFunc(i.rec.Links, func(other *recordedLink) bool { return other == l })
	})
	i.r.releaseLinks(i.Name(), l.Claims)
	return err
}

// removeLink removes all that a record has of a link. Without an environment
// (w is nil) what is inside is gone already. What resumes elsewhere, or later,
// keeps its leases.
func (r *Runtime) removeLink(ctx context.Context, uuid [16]byte, l *recordedLink, w *wires, resumes bool) error {
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
	case l.Type == "hostdev":
		err = bringBack(host, l, w)
	case l.Type == "direct" && w != nil:
		err = w.removeMacvlan(l.isMacvlan)
	case l.Type == "bridge", l.Type == "ethernet":
		err = removeVeth(host, l, hardware)
	}
	if host != nil {
		err = errors.Join(err, removeProxies(host, l.Proxies))
	}
	if err != nil {
		return err
	}
	if !l.has(xml.Filter{}) {
		atStep("undo filter")
		if err := r.unbind(ctx, l.Host); err != nil {
			return err
		}
	}
	for _, port := range l.Ports {
		if !resumes {
			r.giveBack(ctx, l, port.Network)
		}
		atStep("undo port")
		if err := r.unplug(ctx, port); err != nil {
			return err
		}
	}
	return nil
}

// bringBack has a lent interface on the host again, from the environment's
// namespace or, if that is gone or lacks it, from the kernel.
func bringBack(host *netlink.Handle, l *recordedLink, w *wires) error {
	if back, err := host.LinkByName(l.Host); err == nil && l.mayBe(back) && back.Attrs().HardwareAddr.String() == l.MAC {
		return restore(host, back, l) // it was brought back, perhaps not all the way, or has never left
	}
	if w != nil {
		if found, err := w.moveOut(l); found || err != nil {
			return err
		}
	}
	return awaitReturn(host, l)
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

// isMacvlan tells the macvlan inside, which may not have been renamed yet when
// the daemon was killed before it knew its number.
func (l *recordedLink) isMacvlan(a *netlink.LinkAttrs) bool {
	if l.GuestIndex != 0 {
		return a.Index == l.GuestIndex
	}
	return a.Name == l.Host || a.Name == l.Guest
}

// removeLinks removes the links of an environment that has ended. Those that it
// cannot remove keep what they have until it is called again, and the namespace.
func (r *Runtime) removeLinks(ctx context.Context, uuid [16]byte, rec *record) error {
	r.mu.Lock()
	i, space := r.instances[uuid], r.links.spaces[uuid]
	r.mu.Unlock()
	if i == nil {
		i = newInstance(r, rec, nil)
	}
	var w *wires
	if space != nil {
		space, err := dupFile(space)
		if err != nil {
			return err
		}
		if w, err = openWires(space); err != nil {
			return err
		}
		defer w.close()
	}
	// What was saved, or moved to another host, believes in its leases, and so may
	// an image of which a start has failed.
	resumes := rec.Checkpoint != nil || rec.Migration != nil || rec.Session != "" || rec.Phase == starting
	var errs []error
	for _, l := range slices.Backward(rec.Links) {
		r.claimLinks(rec.Name, l.Claims) // after a restart of the daemon; else it has them
		err := r.removeLink(ctx, uuid, l, w, resumes)
		if err == nil {
			err = i.forgetLink(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("network interface %s: %w", l.ID, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	r.dropSpace(uuid)
	return nil
}
