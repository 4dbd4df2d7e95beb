package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// One of the host's interfaces is moved into an environment as it is, and
// back. When a network namespace ends the kernel moves back hardware, under
// whatever name it has then, and deletes everything else (dummy, vlan, …). So
// the daemon and the service manager keep the namespace open until the
// interface is back.

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

// moveIn gives the environment an interface. Its index changes only if there
// is one of that number inside.
func (w *wires) moveIn(p linkPlan) (made madeLink, err error) {
	link, err := w.movable(p.Parent)
	if err != nil {
		return made, err
	}
	if err := w.host.LinkSetDown(link); err != nil {
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

// moveOut brings an interface back under its name.
func (w *wires) moveOut(index int, hardware net.HardwareAddr, name string, up bool) error {
	link, err := w.inside.LinkByIndex(index)
	if index == 0 || errors.As(err, &netlink.LinkNotFoundError{}) {
		link, err = byHardware(w.inside, hardware)
	}
	if err != nil || link == nil {
		return err
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	if err := w.inside.LinkSetDown(link); err != nil {
		return err
	}
	if link.Attrs().Name != name {
		if err := w.inside.LinkSetName(link, name); err != nil {
			return fmt.Errorf("give %s its name again: %w", name, err)
		}
	}
	if err := w.inside.LinkSetNsFd(link, int(host.Fd())); err != nil {
		return fmt.Errorf("bring %s back to the host: %w", name, err)
	}
	return restore(w.host, name, up)
}

// restore sets up an interface that was.
func restore(h *netlink.Handle, name string, up bool) error {
	if !up {
		return nil
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetUp(link)
}

// byHardware finds an interface by its address, which root inside may have
// changed: then there is none.
func byHardware(h *netlink.Handle, hardware net.HardwareAddr) (netlink.Link, error) {
	links, err := settled(h.LinkList)
	for _, l := range links {
		a := l.Attrs()
		if len(hardware) > 0 && (a.HardwareAddr.String() == hardware.String() || a.PermHWAddr.String() == hardware.String()) {
			return l, nil
		}
	}
	return nil, err
}

// returnTime is how long the kernel may take to end a namespace.
const returnTime = 5 * time.Second

// awaitReturn waits for hardware that the kernel moves back when no daemon
// kept the namespace, and gives it its name again.
func awaitReturn(h *netlink.Handle, hardware net.HardwareAddr, name string, up bool) error {
	for end := time.Now().Add(returnTime); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		link, err := byHardware(h, hardware)
		if err != nil {
			return err
		}
		if link == nil {
			continue
		}
		if link.Attrs().Name != name {
			if err := errors.Join(h.LinkSetDown(link), h.LinkSetName(link, name)); err != nil {
				return err
			}
		}
		return restore(h, name, up)
	}
	return nil // it was no hardware, and has ended with the namespace
}

// ignoreMissing is for what another has removed already.
func ignoreMissing(err error) error {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	return err
}
