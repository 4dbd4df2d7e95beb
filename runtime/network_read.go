package runtime

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// InsideLink is a network interface as it is inside, whatever root there has
// done with it.
type InsideLink struct {
	ID        string // of the interface of the definition that it is; "" for another
	Name, MAC string
	Addresses []netip.Prefix
	Stats     InterfaceStats

	index int
}

// maxInsideLinks and maxInsideAddresses are how many are told of (libvirt's
// REMOTE_DOMAIN_INTERFACE_MAX): how many there are is for root inside to decide.
const (
	maxInsideLinks     = 2048
	maxInsideAddresses = 2048
)

// InsideLinks asks the kernel for the interfaces inside and their addresses,
// in the order they were made.
func (i *Instance) InsideLinks() (list []InsideLink, err error) {
	err = i.inside("network interfaces", []string{"net"}, func() error {
		list, err = insideLinks()
		return err
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	for k := range list {
		for _, l := range i.rec.Links {
			if l.GuestIndex == list[k].index {
				list[k].ID = l.ID
				list[k].Stats = InterfaceStats{less(list[k].Stats.Received, l.Before.Received), less(list[k].Stats.Sent, l.Before.Sent)}
			}
		}
	}
	return list, err
}

// insideLinks reads those of the calling thread's network namespace.
func insideLinks() ([]InsideLink, error) {
	links := map[int]*InsideLink{}
	err := eachLink(func(link netlink.Link) bool {
		a := link.Attrs()
		l := &InsideLink{index: a.Index, Name: PlainText(a.Name), MAC: a.HardwareAddr.String(), Stats: counters(a.Statistics)}
		if a.Flags&net.FlagLoopback != 0 {
			l.MAC = "00:00:00:00:00:00" // has one, as far as ethtool and guest agents are concerned
		}
		links[a.Index] = l
		return len(links) < maxInsideLinks
	})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	total := 0
	err = each(unix.RTM_GETADDR, unix.RTM_NEWADDR, func(msg []byte) bool {
		index, address, ok := parseAddress(msg)
		if l := links[index]; l != nil && ok {
			l.Addresses = append(l.Addresses, address)
			total++
		}
		return total < maxInsideAddresses
	}, nl.NewIfAddrmsg(unix.AF_UNSPEC))
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // what came or went meanwhile may be told of or not
	}
	var list []InsideLink
	for _, index := range slices.Sorted(maps.Keys(links)) {
		slices.SortStableFunc(links[index].Addresses, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
		list = append(list, *links[index])
	}
	return list, err
}

// maxAnswer is more than a message of the kernel's about one thing can be: a link
// has up to 64 KiB of names alone, which is more than the library takes.
const maxAnswer = 256 << 10

// each calls f with each answer to a question about all there is in the calling
// thread's network namespace, until it returns false. The error is
// ErrDumpInterrupted when something came or went meanwhile.
func each(question int, answer uint16, f func([]byte) bool, body ...nl.NetlinkRequestData) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// To the kernel: so it takes nothing of what others there send it.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(question, unix.NLM_F_DUMP)
	for _, b := range body {
		req.AddData(b)
	}
	if _, err := unix.Write(fd, req.Serialize()); err != nil {
		return err
	}
	var changed error
	for buf := make([]byte, maxAnswer); ; {
		n, _, flags, _, err := unix.Recvmsg(fd, buf, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && flags&unix.MSG_TRUNC != 0 {
			err = unix.EMSGSIZE
		}
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(bytes.Clone(buf[:n]))
		if err != nil {
			return err
		}
		for _, m := range messages {
			if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
				changed = netlink.ErrDumpInterrupted
			}
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
						return unix.Errno(-code)
					}
				}
				return changed
			case answer:
				if !f(m.Data) {
					return changed
				}
			}
		}
	}
}

// eachLink is each about links.
func eachLink(f func(netlink.Link) bool) error {
	return each(unix.RTM_GETLINK, unix.RTM_NEWLINK, func(msg []byte) bool {
		link, err := netlink.LinkDeserialize(nil, msg)
		return err != nil || f(link)
	}, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(bridgesOnly)))
}

// bridgesOnly is RTEXT_FILTER_MRP, which adds nothing to what is told of other
// links: without any such filter the kernel leaves out who has many names
// (rtnl_calcit).
const bridgesOnly = 1 << 4

// eachInside is eachLink in the environment's namespace, where there may be more
// than should be held in memory.
func (w *wires) eachInside(f func(netlink.Link) bool) error {
	return inSpace(w.space, func() error { return eachLink(f) })
}

// find is the first link inside that is what is looked for, nil if none is.
func (w *wires) find(is func(netlink.Link) bool) (netlink.Link, error) {
	return settled(func() (found netlink.Link, err error) {
		err = w.eachInside(func(link netlink.Link) bool {
			if is(link) {
				found = link
			}
			return found == nil
		})
		return found, err
	})
}

// parseAddress reads an answer of RTM_GETADDR. Of a point-to-point link's two
// the local one is IFA_LOCAL.
func parseAddress(msg []byte) (index int, p netip.Prefix, ok bool) {
	if len(msg) < unix.SizeofIfAddrmsg {
		return 0, p, false
	}
	header := nl.DeserializeIfAddrmsg(msg)
	attrs, err := nl.ParseRouteAttr(msg[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, p, false
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !ok {
			if address, valid := netip.AddrFromSlice(a.Value); valid {
				p, ok = netip.PrefixFrom(address, int(header.Prefixlen)), true
			}
		}
	}
	return int(header.Index), p, ok
}

func counters(s *netlink.LinkStatistics) InterfaceStats {
	if s == nil {
		none := Traffic{Unknown, Unknown, Unknown, Unknown}
		return InterfaceStats{none, none}
	}
	return InterfaceStats{
		Received: Traffic{Number(s.RxBytes), Number(s.RxPackets), Number(s.RxErrors), Number(s.RxDropped)},
		Sent:     Traffic{Number(s.TxBytes), Number(s.TxPackets), Number(s.TxErrors), Number(s.TxDropped)},
	}
}

// settled reads a list of which something may come or go meanwhile: then the
// list can lack what was there all the time, so it is read again.
func settled[T any](read func() (T, error)) (list T, err error) {
	for range 10 {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, nil
}
