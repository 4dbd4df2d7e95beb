package runtime

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"

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
	err := each(unix.RTM_GETLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), unix.RTM_NEWLINK, func(msg []byte) bool {
		if link, err := netlink.LinkDeserialize(nil, msg); err == nil {
			a := link.Attrs()
			l := &InsideLink{index: a.Index, Name: PlainText(a.Name), MAC: a.HardwareAddr.String(), Stats: counters(a.Statistics)}
			if a.Flags&net.FlagLoopback != 0 {
				l.MAC = "00:00:00:00:00:00" // has one, as far as ethtool and guest agents are concerned
			}
			links[a.Index] = l
		}
		return len(links) < maxInsideLinks
	})
	if err != nil {
		return nil, err
	}
	total := 0
	err = each(unix.RTM_GETADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), unix.RTM_NEWADDR, func(msg []byte) bool {
		index, address, ok := parseAddress(msg)
		if l := links[index]; l != nil && ok {
			l.Addresses = append(l.Addresses, address)
			total++
		}
		return total < maxInsideAddresses
	})
	var list []InsideLink
	for _, index := range slices.Sorted(maps.Keys(links)) {
		slices.SortStableFunc(links[index].Addresses, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
		list = append(list, *links[index])
	}
	return list, err
}

// each calls f with each answer to a question about all there is, until it
// returns false. That something came or went meanwhile is no error.
func each(question int, body nl.NetlinkRequestData, answer uint16, f func([]byte) bool) error {
	req := nl.NewNetlinkRequest(question, unix.NLM_F_DUMP)
	req.AddData(body)
	err := req.ExecuteIter(unix.NETLINK_ROUTE, answer, f)
	if errors.Is(err, nl.ErrDumpInterrupted) {
		err = nil
	}
	return err
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
