package driver

import (
	"slices"
	"strconv"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

var interfaceStatistics = table{
	query(protocol.DomainInterfaceStats, domainInterfaceStats),
}

// domainInterfaceStats finds an interface by its name on the host or by its
// MAC address (virDomainNetFind).
func domainInterfaceStats(r *request, d *domain, a *protocol.DomainInterfaceStatsArgs) (ret protocol.DomainInterfaceStatsRet, err error) {
	v := d.view()
	if v.instance == nil {
		return ret, errNotRunning()
	}
	g := &gathering{drv: r.drv, d: d, v: v, shared: newSharedStats()}
	nic, err := findInterface(v.definition(false), a.Device)
	if err != nil {
		return ret, err
	}
	s, ok := g.traffic(nic.MAC.Address)
	if !ok {
		return ret, errorf(protocol.ErrOperationFailed, "interface '%s' is not in force: the environment does not have it", a.Device)
	}
	in, out := s.Received, s.Sent
	return protocol.DomainInterfaceStatsRet{
		RxBytes: int64(in.Bytes), RxPackets: int64(in.Packets), RxErrs: int64(in.Errors), RxDrop: int64(in.Dropped),
		TxBytes: int64(out.Bytes), TxPackets: int64(out.Packets), TxErrs: int64(out.Errors), TxDrop: int64(out.Dropped),
	}, nil
}

func addInterfaces(g *gathering, l *numberList) {
	defer addTraffic(g, l)
	if g.v.instance == nil {
		return
	}
	nics := g.v.definition(false).Devices.Interfaces
	l.uint(protocol.DomainStatsNetCount, len(nics))
	for n, nic := range nics {
		name := hostName(nic)
		if name == "" {
			continue
		}
		prefix := protocol.DomainStatsNetPrefix + strconv.Itoa(n)
		l.text(prefix+protocol.DomainStatsNetSuffixName, name)
		if s, ok := g.traffic(nic.MAC.Address); ok {
			l.number(prefix+protocol.DomainStatsNetSuffixRxBytes, s.Received.Bytes)
			l.number(prefix+protocol.DomainStatsNetSuffixRxPkts, s.Received.Packets)
			l.number(prefix+protocol.DomainStatsNetSuffixRxErrs, s.Received.Errors)
			l.number(prefix+protocol.DomainStatsNetSuffixRxDrop, s.Received.Dropped)
			l.number(prefix+protocol.DomainStatsNetSuffixTxBytes, s.Sent.Bytes)
			l.number(prefix+protocol.DomainStatsNetSuffixTxPkts, s.Sent.Packets)
			l.number(prefix+protocol.DomainStatsNetSuffixTxErrs, s.Sent.Errors)
			l.number(prefix+protocol.DomainStatsNetSuffixTxDrop, s.Sent.Dropped)
		}
	}
	addSockets(g, l)
}

// addTraffic is what was counted over all runs of the environment.
func addTraffic(g *gathering, l *numberList) {
	if g.drv.rt == nil {
		return
	}
	now := map[string]runtime.InterfaceStats{}
	if g.v.instance != nil {
		for _, link := range g.v.instance.Links() {
			if s, ok := g.traffic(link.ID); ok {
				now[link.Counter] = s
			}
		}
	}
	all, err := g.drv.rt.Traffic(g.d.uuid, now)
	if err != nil {
		g.drv.log.Warn("traffic of earlier runs is not in domstats", "uuid", g.d.uuid, "error", err)
		return
	}
	if g.v.instance == nil && all == (runtime.InterfaceStats{}) {
		return // it never ran
	}
	l.number("vz.net.rx.bytes", all.Received.Bytes)
	l.number("vz.net.rx.pkts", all.Received.Packets)
	l.number("vz.net.tx.bytes", all.Sent.Bytes)
	l.number("vz.net.tx.pkts", all.Sent.Packets)
}

// traffic is what an interface received and sent, seen from inside. Most have
// an end on the host, which counts the other way round; a macvlan has none and
// is read inside.
func (g *gathering) traffic(id string) (runtime.InterfaceStats, bool) {
	if g.links == nil {
		g.links = g.v.instance.Links()
	}
	n := slices.IndexFunc(g.links, func(l runtime.Link) bool { return l.ID == id })
	if n < 0 {
		return runtime.InterfaceStats{}, false
	}
	if end, ok := g.shared.interfaces()[g.links[n].Host]; ok && g.links[n].Paired {
		return runtime.InterfaceStats{Received: end.Sent, Sent: end.Received}, true
	}
	for _, l := range g.interfaces() {
		if l.ID == id {
			return l.Stats, true
		}
	}
	return runtime.InterfaceStats{}, false // deleted inside
}

// interfaces are those inside, read once.
func (g *gathering) interfaces() []runtime.InsideLink {
	if g.inside == nil {
		g.inside, _ = g.v.instance.InsideLinks() // none of one that has just ended
	}
	return g.inside
}

// hostName is the interface's name on the host.
func hostName(nic libvirtxml.DomainInterface) string {
	if nic.Target == nil {
		return ""
	}
	return nic.Target.Dev
}
