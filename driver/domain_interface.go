package driver

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

var networkInterfaces = table{
	get(protocol.DomainGetInterfaceParameters, interfaceParameters),
	modify(protocol.DomainSetInterfaceParameters, setInterfaceParameters),
	query(protocol.DomainInterfaceAddresses, interfaceAddresses),
}

// findInterface finds one by its name on the host or its MAC address
// (virDomainNetFind).
func findInterface(def *libvirtxml.Domain, device string) (*libvirtxml.DomainInterface, error) {
	for i := range def.Devices.Interfaces {
		nic := &def.Devices.Interfaces[i]
		if device != "" && (device == hostName(*nic) || strings.EqualFold(device, nic.MAC.Address)) {
			return nic, nil
		}
	}
	return nil, errorf(protocol.ErrInvalidArg, "'%.40s' is not a known interface: virsh domiflist shows names and MAC addresses", device)
}

// bandwidthParams are the parameters of domiftune in libvirt's order, and
// where the definition has them.
var bandwidthParams = []struct {
	name     string
	outbound bool
	field    func(*libvirtxml.DomainInterfaceBandwidthParams) **int
}{
	{protocol.DomainBandwidthInAverage, false, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Average }},
	{protocol.DomainBandwidthInPeak, false, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Peak }},
	{protocol.DomainBandwidthInBurst, false, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Burst }},
	{protocol.DomainBandwidthInFloor, false, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Floor }},
	{protocol.DomainBandwidthOutAverage, true, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Average }},
	{protocol.DomainBandwidthOutPeak, true, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Peak }},
	{protocol.DomainBandwidthOutBurst, true, func(p *libvirtxml.DomainInterfaceBandwidthParams) **int { return &p.Burst }},
}

func interfaceParameters(d *domain, a *protocol.DomainGetInterfaceParametersArgs) (ret protocol.DomainGetInterfaceParametersRet, err error) {
	def, _, err := d.view().affected(a.Flags)
	if err != nil {
		return ret, err
	}
	var in, out *libvirtxml.DomainInterfaceBandwidthParams
	if a.Nparams != 0 { // 0 asks for how many there are, of no interface yet
		nic, err := findInterface(def, a.Device)
		if err != nil {
			return ret, err
		}
		if nic.Bandwidth != nil {
			in, out = nic.Bandwidth.Inbound, nic.Bandwidth.Outbound
		}
	}
	var list []named
	for _, b := range bandwidthParams {
		rate, value := in, 0
		if b.outbound {
			rate = out
		}
		if rate != nil && *b.field(rate) != nil {
			value = **b.field(rate)
		}
		list = append(list, named{b.name, value})
	}
	ret.Params, ret.Nparams, err = limited(numbers(list...), a.Nparams)
	return ret, err
}

// setInterfaceParameters changes <bandwidth>. A direction that has an average,
// or a floor, is given whole; neither of them takes its limit away; a
// direction that is not mentioned keeps it.
func setInterfaceParameters(c *change, a *protocol.DomainSetInterfaceParametersArgs) error {
	values := make([]int, len(bandwidthParams))
	into := map[string]any{}
	for i, b := range bandwidthParams {
		into[b.name] = &values[i]
	}
	given, err := readParams(a.Params, into)
	if err != nil {
		return err
	}
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		nic, err := findInterface(def, a.Device)
		if err != nil {
			return err
		}
		next := libvirtxml.DomainInterfaceBandwidth{}
		if nic.Bandwidth != nil {
			next = *nic.Bandwidth
		}
		if given[protocol.DomainBandwidthInAverage] || given[protocol.DomainBandwidthInFloor] {
			next.Inbound = bandwidth(values, false)
		}
		if given[protocol.DomainBandwidthOutAverage] {
			next.Outbound = bandwidth(values, true)
		}
		nic.Bandwidth = &next
		if next.Inbound == nil && next.Outbound == nil {
			nic.Bandwidth = nil
		}
		return nil
	})
}

// bandwidth makes the element of one direction, nil for none.
func bandwidth(values []int, outbound bool) *libvirtxml.DomainInterfaceBandwidthParams {
	p := &libvirtxml.DomainInterfaceBandwidthParams{}
	for i, b := range bandwidthParams {
		if b.outbound == outbound && values[i] != 0 {
			*b.field(p) = &values[i]
		}
	}
	if p.Average == nil && p.Floor == nil {
		return nil
	}
	return p
}

// interfaceAddresses answers for every source from the environment's own
// network namespace, which knows better than a lease or the host's ARP table.
// As with those, lease and arp tell of the interfaces of the definition, by
// their names on the host; agent of all there are, by their names inside.
func interfaceAddresses(_ *request, d *domain, a *protocol.DomainInterfaceAddressesArgs) (ret protocol.DomainInterfaceAddressesRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if a.Source > protocol.DomainInterfaceAddressesSrcArp {
		return ret, errorf(protocol.ErrArgumentUnsupported, "Unknown IP address data source %d", a.Source)
	}
	v := d.view()
	if v.instance == nil {
		return ret, errNotRunning()
	}
	links, err := v.instance.InsideLinks()
	if err != nil {
		return ret, err
	}
	names := map[string]string{} // on the host, by MAC
	for _, nic := range v.definition(false).Devices.Interfaces {
		names[nic.MAC.Address] = hostName(nic)
	}
	for _, l := range links {
		if a.Source != protocol.DomainInterfaceAddressesSrcAgent {
			name, ours := names[l.ID]
			l.Name = name
			l.Addresses = slices.DeleteFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
			if !ours || len(l.Addresses) == 0 {
				continue
			}
		}
		ret.Ifaces = append(ret.Ifaces, wireInterface(l))
	}
	return ret, nil
}

// renewInterfaces connects an environment again that changes of the host's own
// links have cut off.
func (d *domain) renewInterfaces(inst *runtime.Instance) {
	c := d.changeAlways("network")
	defer c.done()
	if c.view().instance != inst {
		return // destroyed or reset meanwhile
	}
	before := liveFacts(inst)
	env, err := xml.NewEnvironment(c.view().live)
	if err == nil {
		err = inst.RenewInterfaces(c.ctx, env.Interfaces)
	}
	if after := liveFacts(inst); !reflect.DeepEqual(before, after) { // another port
		c.publish(func(v *view) { v.live = xml.Live(v.live, after) })
		err = errors.Join(err, c.saveStatus(c.view()))
	}
	select {
	case <-inst.Exited(): // and all its interfaces
	default:
		if err != nil {
			d.drv.log.Warn("after a change of the host's network an environment's could not be renewed", "domain", c.view().name, "error", err)
		}
	}
}

// virIPAddrType.
const (
	ipv4 = 0
	ipv6 = 1
)

func wireInterface(l runtime.InsideLink) protocol.DomainInterface {
	nic := protocol.DomainInterface{Name: l.Name}
	if l.MAC != "" {
		nic.Hwaddr = &l.MAC
	}
	for _, p := range l.Addresses {
		kind := int32(ipv4)
		if p.Addr().Is6() {
			kind = ipv6
		}
		nic.Addrs = append(nic.Addrs, protocol.DomainIpAddr{Type: kind, Addr: p.Addr().String(), Prefix: uint32(p.Bits())})
	}
	return nic
}
