package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// One of the host's interfaces is moved into an environment as it is, and
// back. When a network namespace ends the kernel moves back hardware, as it is
// then, and deletes everything else (dummy, vlan, …). So the daemon and the
// service manager keep the namespace open until the interface is back.
//
// Root inside can do with it what the host could, except keep it.

// hostNIC is how an interface was on the host, and is to be there again.
type hostNIC struct {
	Kind     string // the kernel's; hardware has "device"
	MTU      int
	AltNames []string
	Flags    uint32 `json:",omitempty"` // the kernel's; 0: lent by an earlier version
	TxQLen   int    `json:",omitempty"`
}

// nicFlags keep an interface from hearing, or being heard, as it did.
var nicFlags = []struct {
	flag    uint32
	on, off func(*netlink.Handle, netlink.Link) error
}{
	{unix.IFF_NOARP, (*netlink.Handle).LinkSetARPOff, (*netlink.Handle).LinkSetARPOn},
	{unix.IFF_PROMISC, (*netlink.Handle).SetPromiscOn, (*netlink.Handle).SetPromiscOff},
	{unix.IFF_ALLMULTI, (*netlink.Handle).LinkSetAllmulticastOn, (*netlink.Handle).LinkSetAllmulticastOff},
	{unix.IFF_MULTICAST, (*netlink.Handle).LinkSetMulticastOn, (*netlink.Handle).LinkSetMulticastOff},
}

// hardware tells what the kernel does not delete with a namespace.
func (n hostNIC) hardware() bool { return n.Kind == "device" }

// movable finds the host's interface and refuses what would be missed.
func (w *wires) movable(name string) (netlink.Link, error) {
	link, err := w.device(name)
	if err != nil {
		return nil, err
	}
	a := link.Attrs()
	if a.Flags&net.FlagLoopback != 0 || link.Type() == "bridge" {
		return nil, fmt.Errorf("%s cannot be moved into an environment: it belongs to the host's network namespace", name)
	}
	if a.MasterIndex != 0 {
		master := "another interface"
		if m, err := w.host.LinkByIndex(a.MasterIndex); err == nil {
			master = m.Attrs().Name
		}
		return nil, fmt.Errorf("%s is a port of %s: take it out there first", name, master)
	}
	return link, nil
}

// lend notes how an interface of the host's is to come back.
func (w *wires) lend(p *linkPlan) error {
	link, err := w.movable(p.Parent)
	if err != nil {
		return err
	}
	a := link.Attrs()
	p.MAC, p.WasUp = a.HardwareAddr, a.Flags&net.FlagUp != 0
	p.NIC = hostNIC{link.Type(), a.MTU, a.AltNames, a.RawFlags, a.TxQLen}
	p.Before = counters(a.Statistics)
	return nil
}

// moveIn gives the environment an interface. Its index changes only if there
// is one of that number inside. The kernel sets down what it moves, and leaves
// what it refuses to move as it is.
func (w *wires) moveIn(p linkPlan) (made madeLink, err error) {
	link, err := w.movable(p.Parent)
	if err != nil {
		return made, err
	}
	if err := w.host.LinkSetNsFd(link, int(w.space.Fd())); err != nil {
		return made, fmt.Errorf("move %s into the environment: %w", p.Parent, err)
	}
	moved, err := w.inside.LinkByName(p.Parent)
	if err != nil {
		return made, err
	}
	made.guest = moved.Attrs().Index
	if p.Guest != p.Parent {
		err = w.inside.LinkSetName(moved, p.Guest)
	}
	return made, err
}

// moveOut brings an interface back as it was, if it is there.
func (w *wires) moveOut(l *recordedLink) (found bool, err error) {
	link, err := w.lent(l)
	if err != nil || link == nil {
		return false, err
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, err
	}
	defer host.Close()
	if err := w.inside.LinkSetDown(link); err != nil {
		return true, err
	}
	// Another may have its name inside, and the host a name that it has there.
	name := link.Attrs().Name
	if name != l.Host {
		name = onTheWay + newPortID()[:8]
		if err := w.inside.LinkSetName(link, name); err != nil {
			return true, err
		}
	}
	for _, alt := range without(link.Attrs().AltNames, l.NIC.AltNames) {
		if err := w.inside.LinkDelAltName(link, alt); err != nil {
			return true, err
		}
	}
	if err := w.inside.LinkSetNsFd(link, int(host.Fd())); err != nil {
		return true, fmt.Errorf("bring %s back to the host: %w", l.Host, err)
	}
	back, err := w.host.LinkByName(name)
	if err == nil {
		err = restore(w.host, back, l)
	}
	return true, err
}

// restore makes an interface that is back what it was.
func restore(h *netlink.Handle, link netlink.Link, l *recordedLink) error {
	a := link.Attrs()
	if a.Name != l.Host {
		if err := errors.Join(h.LinkSetDown(link), h.LinkSetName(link, l.Host)); err != nil {
			return fmt.Errorf("give %s its name again: %w", l.Host, err)
		}
	}
	var errs []error
	if mac, err := net.ParseMAC(l.MAC); err == nil && a.HardwareAddr.String() != l.MAC {
		errs = append(errs, h.LinkSetDown(link), h.LinkSetHardwareAddr(link, mac))
	}
	if l.NIC.MTU != 0 && a.MTU != l.NIC.MTU {
		errs = append(errs, h.LinkSetMTU(link, l.NIC.MTU))
	}
	for _, alt := range without(l.NIC.AltNames, a.AltNames) {
		errs = append(errs, h.LinkAddAltName(link, alt))
	}
	for _, f := range nicFlags {
		if set := f.off; l.NIC.Flags != 0 && (l.NIC.Flags^a.RawFlags)&f.flag != 0 {
			if l.NIC.Flags&f.flag != 0 {
				set = f.on
			}
			errs = append(errs, set(h, link))
		}
	}
	if l.NIC.TxQLen != 0 && l.NIC.TxQLen != a.TxQLen {
		errs = append(errs, h.LinkSetTxQLen(link, l.NIC.TxQLen))
	}
	if l.WasUp {
		errs = append(errs, h.LinkSetUp(link))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("make %s what it was: %w", l.Host, err)
	}
	return nil
}

// mayBe tells a lent interface from one of its number that root inside made.
func (l *recordedLink) mayBe(link netlink.Link) bool {
	return l.NIC.Kind == "" || link.Type() == l.NIC.Kind // "": lent by an earlier version
}

// lent finds a lent interface inside: by its number or, if that is another's, by
// its address, which root inside may have changed: then there is none.
func (w *wires) lent(l *recordedLink) (netlink.Link, error) {
	return settled(func() (found netlink.Link, err error) {
		err = w.eachInside(func(link netlink.Link) bool {
			if !l.mayBe(link) {
				return true
			}
			same := link.Attrs().Index == l.GuestIndex
			if same || l.hasAddress(link) {
				found = link
			}
			return !same
		})
		return found, err
	})
}

func (l *recordedLink) hasAddress(link netlink.Link) bool {
	a := link.Attrs()
	return l.MAC != "" && (a.HardwareAddr.String() == l.MAC || a.PermHWAddr.String() == l.MAC)
}

// onTheWay begins the name by which an interface comes back to the host if its
// own is another's inside.
const onTheWay = "vz"

// returned finds a lent interface on the host. Others may have its address
// there: all VLANs of one interface have the same. Hardware comes back from a
// namespace that ends, under any name, the rest only as moveOut brings it.
func returned(h *netlink.Handle, l *recordedLink) (netlink.Link, error) {
	links, err := settled(h.LinkList)
	for _, link := range links {
		name := link.Attrs().Name
		back := l.NIC.Kind == "" || l.NIC.hardware() || name == l.Host || strings.HasPrefix(name, onTheWay) && len(name) == len(onTheWay)+8
		if back && l.mayBe(link) && l.hasAddress(link) {
			return link, nil
		}
	}
	return nil, err
}

// returnTime is how long the kernel may take to end a namespace.
const returnTime = 5 * time.Second

// awaitReturn waits for hardware that the kernel moves back from a namespace
// that ends: that of an environment which no daemon kept, or another that root
// inside had moved it to.
func awaitReturn(h *netlink.Handle, l *recordedLink) error {
	for end := time.Now().Add(returnTime); ; time.Sleep(50 * time.Millisecond) {
		link, err := returned(h, l)
		if err != nil {
			return err
		}
		if link != nil {
			return restore(h, link, l)
		}
		if l.NIC.Kind != "" && !l.NIC.hardware() || time.Now().After(end) {
			return nil // has ended with the namespace
		}
	}
}

// ignoreMissing is for what another has removed already.
func ignoreMissing(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	return err
}
