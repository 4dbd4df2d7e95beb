package runtime

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// Traffic is shaped and checked on the host's end of a veth pair, where root
// inside cannot change it: what the host sends there (inbound, for the
// environment) waits in a queue, what comes from there (outbound) is dropped
// beyond the rate, as in libvirt (virNetDevBandwidthSet).
//
//	root     htb 1:  class 1:1 rate=average ceil=peak burst  fq_codel
//	ingress  1 police  2-3 arp, ipv4 sources  4-6 ipv6 sources  7 the rest is dropped
//
// It all goes with the link.

const (
	policePriority = iota + 1
	arpPriority
	ipv4Priority
	ipv6Priority
	linkLocalPriority
	unspecifiedPriority
	restPriority
)

// setShaping makes the queue for what is sent to the environment what rate
// says. One that there is changes its rate: what waits in it is kept, and what was
// saved for a burst, and at no moment is there none.
func setShaping(h *netlink.Handle, link netlink.Link, rate xml.Rate) error {
	index := link.Attrs().Index
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT})
	root.Defcls = 1
	if rate.Average == 0 {
		err := h.QdiscDel(root)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			err = nil // there is only the kernel's own
		}
		return err
	}
	if err := h.QdiscAdd(root); err != nil && !errors.Is(err, unix.EEXIST) {
		return missingModule(err, "sch_htb")
	}
	s := shape(rate)
	class := netlink.NewHtbClass(
		netlink.ClassAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 1), Parent: netlink.MakeHandle(1, 0)},
		netlink.HtbClassAttrs{Rate: s.rate * 8, Ceil: s.ceil * 8, Buffer: s.burst, Cbuffer: s.peakBurst, Quantum: s.quantum})
	if err := h.ClassReplace(class); err != nil {
		return err
	}
	leaf := netlink.NewFqCodel(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(2, 0), Parent: netlink.MakeHandle(1, 1)})
	err := h.QdiscAdd(leaf)
	if errors.Is(err, unix.EEXIST) {
		err = nil
	}
	return missingModule(err, "sch_fq_codel")
}

// shaping is a rate in tc's terms: bytes each second and bytes.
type shaping struct {
	rate, ceil       uint64
	burst, peakBurst uint32
	quantum          uint32
}

// maxBurstTime bounds a burst: tc counts how long it lasts in 32 bits of 64 ns.
const maxBurstTime = 200 // seconds

// minShapedBurst makes up for the time by which a busy host sends late: with
// less, what could not be sent then is never sent, and the rate not reached.
func minShapedBurst(rate uint64) uint64 { return max(rate/50, 16<<10) }

func shape(r xml.Rate) shaping {
	s := shaping{rate: r.Average, ceil: max(r.Peak, r.Average)}
	s.burst = burst(max(r.Burst, minShapedBurst(s.rate)), s.rate)
	s.peakBurst = s.burst // without a peak the burst may be sent at any speed
	if s.ceil > s.rate {
		s.peakBurst = burst(minShapedBurst(s.ceil), s.ceil)
	}
	// How much one class may send before the next: there is one. Between these
	// the kernel does not complain.
	s.quantum = uint32(min(max(r.Average/10, 1600), 60000))
	return s
}

func burst(bytes, rate uint64) uint32 {
	return uint32(min(bytes, rate*maxBurstTime, math.MaxUint32))
}

// minPolicedBurst lets the largest packet pass that an interface hands over in
// one piece.
const minPolicedBurst = 128 << 10

// police is what an outbound rate allows. libvirt's burst is that of a second
// if none is given; a peak means nothing where nothing waits, but in a burst.
func police(r xml.Rate) *netlink.PoliceAction {
	a := netlink.NewPoliceAction()
	a.Rate, a.Mtu = uint32(min(r.Average, math.MaxUint32)), minPolicedBurst
	size := r.Burst
	if size == 0 {
		size = r.Average
	}
	a.Burst = burst(max(size, minPolicedBurst), max(r.Average, minPolicedBurst/maxBurstTime+1))
	if r.Peak > r.Average {
		a.PeakRate = uint32(min(r.Peak, math.MaxUint32))
	}
	a.ExceedAction, a.NotExceedAction = netlink.TC_POLICE_SHOT, netlink.TC_POLICE_UNSPEC // to the next filter
	return a
}

// setIngress makes the filters for what comes from the environment: a rate,
// and where checked is set, only packets from one of sources pass, and what
// finds neighbours for them. In no moment of a change does more pass than
// before or after it.
func setIngress(h *netlink.Handle, link netlink.Link, rate xml.Rate, checked bool, sources []netip.Prefix) error {
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if rate.Average == 0 && !checked {
		err := h.QdiscDel(qdisc)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			err = nil // there is none
		}
		return err
	}
	if err := h.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return missingModule(err, "sch_ingress")
	}
	have, err := settled(func() ([]netlink.Filter, error) { return h.FilterList(link, qdisc.Handle) })
	if err != nil {
		return err
	}
	if checked {
		for _, f := range sourceFilters(link, sources) {
			if err := h.FilterReplace(f); err != nil && !(errors.Is(err, unix.EEXIST) && f.Type() == "matchall") {
				return missingModule(err, "cls_flower and cls_matchall")
			}
		}
	}
	for _, f := range have {
		if !staleFilter(*f.Attrs(), checked, sources) {
			continue
		}
		if err := h.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	rule := &netlink.U32{FilterAttrs: filterAttrs(link, policePriority, 0, unix.ETH_P_ALL)}
	if rate.Average == 0 {
		err := h.FilterDel(rule)
		if errors.Is(err, unix.ENOENT) {
			err = nil
		}
		return err
	}
	for _, f := range have {
		if u, ok := f.(*netlink.U32); ok && u.Priority == policePriority && u.Police != nil {
			rule.Handle = u.Handle // in its place
		}
	}
	rule.Police = police(rate)
	return missingModule(h.FilterReplace(rule), "cls_u32 and act_police")
}

// staleFilter tells one for an address, or a family, that the environment no
// longer has.
func staleFilter(f netlink.FilterAttrs, checked bool, sources []netip.Prefix) bool {
	if f.Handle == 0 || f.Priority == policePriority {
		return false
	}
	if !checked {
		return true
	}
	switch f.Priority {
	case arpPriority:
		return count(sources, false) == 0
	case ipv4Priority:
		return int(f.Handle) > count(sources, false)
	case ipv6Priority:
		return int(f.Handle) > count(sources, true)
	case linkLocalPriority, unspecifiedPriority:
		return count(sources, true) == 0
	}
	return false
}

func filterAttrs(link netlink.Link, priority uint16, handle uint32, protocol uint16) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: link.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0),
		Priority: priority, Handle: handle, Protocol: protocol}
}

func count(sources []netip.Prefix, is6 bool) (n int) {
	for _, s := range sources {
		if s.Addr().Is6() == is6 {
			n++
		}
	}
	return n
}

// sourceFilters let pass what is from sources; without any, nothing. IPv4 finds
// its neighbours by ARP, IPv6 from link-local addresses, which no router
// forwards, and before it has any from the unspecified one.
func sourceFilters(link netlink.Link, sources []netip.Prefix) (list []netlink.Filter) {
	pass := func(priority uint16, handle uint32, protocol uint16, from netip.Prefix) netlink.Filter {
		bits := from.Addr().BitLen()
		return &netlink.Flower{
			FilterAttrs: filterAttrs(link, priority, handle, protocol), EthType: protocol,
			SrcIP: from.Addr().AsSlice(), SrcIPMask: net.CIDRMask(from.Bits(), bits),
			Actions: []netlink.Action{verdict(netlink.TC_ACT_OK)},
		}
	}
	if count(sources, false) > 0 {
		list = append(list, &netlink.MatchAll{FilterAttrs: filterAttrs(link, arpPriority, 1, unix.ETH_P_ARP), Actions: []netlink.Action{verdict(netlink.TC_ACT_OK)}})
	}
	handles := map[bool]uint32{}
	for _, s := range sources {
		a := s.Addr()
		handles[a.Is6()]++
		priority, protocol := uint16(ipv4Priority), uint16(unix.ETH_P_IP)
		if a.Is6() {
			priority, protocol = ipv6Priority, unix.ETH_P_IPV6
		}
		list = append(list, pass(priority, handles[a.Is6()], protocol, netip.PrefixFrom(a, a.BitLen())))
	}
	if count(sources, true) > 0 {
		list = append(list,
			pass(linkLocalPriority, 1, unix.ETH_P_IPV6, netip.MustParsePrefix("fe80::/10")),
			pass(unspecifiedPriority, 1, unix.ETH_P_IPV6, netip.MustParsePrefix("::/128")))
	}
	return append(list, &netlink.MatchAll{FilterAttrs: filterAttrs(link, restPriority, 1, unix.ETH_P_ALL), Actions: []netlink.Action{verdict(netlink.TC_ACT_SHOT)}})
}

func verdict(act netlink.TcAct) netlink.Action {
	return &netlink.GenericAction{ActionAttrs: netlink.ActionAttrs{Action: act}}
}

// missingModule says which part of the kernel an error means.
func missingModule(err error, name string) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("the kernel has no %s, which a <bandwidth> and routed interfaces need: install the package with its modules", name)
	}
	return err
}
