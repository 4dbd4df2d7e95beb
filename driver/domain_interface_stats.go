package driver

import (
	"strconv"
	"strings"

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
	g := &gathering{drv: r.drv, d: d, v: v, shared: &sharedStats{}}
	for _, nic := range v.definition(false).Devices.Interfaces {
		if a.Device == "" || a.Device != hostName(nic) && !strings.EqualFold(a.Device, nic.MAC.Address) {
			continue
		}
		s, ok := g.traffic(nic)
		if !ok {
			return ret, errorf(protocol.ErrOperationFailed, "interface '%s' is not in force: the environment does not have it", a.Device)
		}
		in, out := s.Received, s.Sent
		return protocol.DomainInterfaceStatsRet{
			RxBytes: int64(in.Bytes), RxPackets: int64(in.Packets), RxErrs: int64(in.Errors), RxDrop: int64(in.Dropped),
			TxBytes: int64(out.Bytes), TxPackets: int64(out.Packets), TxErrs: int64(out.Errors), TxDrop: int64(out.Dropped),
		}, nil
	}
	return ret, errorf(protocol.ErrInvalidArg, "'%s' is not a known interface", a.Device)
}

func addInterfaces(g *gathering, l *numberList) {
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
		if s, ok := g.traffic(nic); ok {
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

// traffic is what an interface received and sent, seen from inside. Most have
// an end on the host, which counts the other way round; one that was moved
// into the environment as a whole is read there.
func (g *gathering) traffic(nic libvirtxml.DomainInterface) (runtime.InterfaceStats, bool) {
	inside := g.interfaces()
	if len(inside) < 2 {
		return runtime.InterfaceStats{}, false // only the loopback: none is in force
	}
	if nic.Source != nil && nic.Source.Direct == nil && nic.Source.Hostdev == nil {
		if end, ok := g.shared.hostInterfaces()[hostName(nic)]; ok {
			return runtime.InterfaceStats{Received: end.Sent, Sent: end.Received}, true
		}
	}
	if nic.Guest == nil {
		return runtime.InterfaceStats{}, false
	}
	s, ok := inside[nic.Guest.Dev]
	return s, ok
}

// interfaces are those inside, read once.
func (g *gathering) interfaces() map[string]runtime.InterfaceStats {
	if g.inside == nil {
		g.inside, _ = g.v.instance.Interfaces() // none of one that has just ended
	}
	return g.inside
}

// hostInterfaces reads them once for a call.
func (s *sharedStats) hostInterfaces() map[string]runtime.InterfaceStats {
	if s.interfaces == nil {
		s.interfaces, _ = runtime.HostInterfaces() // without /proc there is nothing at all
	}
	return s.interfaces
}

// hostName is the interface's name on the host.
func hostName(nic libvirtxml.DomainInterface) string {
	if nic.Target == nil {
		return ""
	}
	return nic.Target.Dev
}
