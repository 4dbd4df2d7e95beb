package driver

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// networks are libvirt's virtual networks, of which environments get ports:
// the host's network daemon decides what an interface is plugged into, lists
// its ports (virsh net-port-list) and guarantees their bandwidth.
type networks struct{ *peer }

// networkTimeout bounds what is asked for one interface: an environment that
// starts waits for it.
const networkTimeout = 30 * time.Second

// NewNetworks gives environments the networks of the daemon that c leads to.
// It connects when the first is wanted.
func NewNetworks(c relay.Config) runtime.Networks {
	return &networks{newPeer(c, relay.Network)}
}

// find looks a network up.
func (n *networks) find(ctx context.Context, name string) (*relay.Client, protocol.NonnullNetwork, error) {
	client, found, err := askFirst(ctx, n.peer, protocol.NetworkLookupByName, &protocol.NetworkLookupByNameArgs{Name: name})
	return client, found.Net, err
}

// Find tells the bridge of an active network.
func (n *networks) Find(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	client, network, err := n.find(ctx, name)
	if err != nil {
		return "", errNetwork(name, err)
	}
	active, err := relay.Call(ctx, client, protocol.NetworkIsActive, &protocol.NetworkIsActiveArgs{Net: network})
	if err != nil {
		return "", err
	}
	if active.Active == 0 {
		return "", errInactive(name)
	}
	bridge, err := relay.Call(ctx, client, protocol.NetworkGetBridgeName, &protocol.NetworkGetBridgeNameArgs{Net: network})
	if answers(err, protocol.ErrInternalError) { // it has none
		return "", nil
	}
	return bridge.Name, err
}

func errNetwork(name string, err error) error {
	if answers(err, protocol.ErrNoNetwork) {
		return errorf(protocol.ErrNoNetwork, "there is no network '%s': virsh net-list --all shows those there are, virsh net-define makes one", name)
	}
	return err
}

func errInactive(name string) error {
	return errorf(protocol.ErrOperationInvalid, "network '%s' is not active: start it with virsh net-start %s", name, name)
}

// Plug makes a port for an interface.
func (n *networks) Plug(ctx context.Context, p runtime.Port) (plug runtime.Plug, err error) {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	client, network, err := n.find(ctx, p.Network)
	if err != nil {
		return plug, errNetwork(p.Network, err)
	}
	doc, err := portXML(p)
	if err != nil {
		return plug, err
	}
	made, err := relay.Call(ctx, client, protocol.NetworkPortCreateXML, &protocol.NetworkPortCreateXMLArgs{Network: network, XML: doc})
	if err = inactive(ctx, client, network, err); err != nil {
		return plug, fmt.Errorf("port in the network %s: %w", p.Network, err)
	}
	got, err := relay.Call(ctx, client, protocol.NetworkPortGetXMLDesc, &protocol.NetworkPortGetXMLDescArgs{Port: made.Port})
	if err != nil {
		return plug, fmt.Errorf("port in the network %s: %w", p.Network, err)
	}
	return parsePort(p.Network, got.XML)
}

// inactive says what to do where a call failed because the network is not
// active, which libvirt has the same code for as for other things.
func inactive(ctx context.Context, client *relay.Client, network protocol.NonnullNetwork, err error) error {
	if !answers(err, protocol.ErrOperationInvalid) {
		return err
	}
	ret, e := relay.Call(ctx, client, protocol.NetworkIsActive, &protocol.NetworkIsActiveArgs{Net: network})
	if e != nil || ret.Active != 0 {
		return err
	}
	return errInactive(network.Name)
}

// Unplug removes a port. A network that ended has taken its ports with it.
func (n *networks) Unplug(ctx context.Context, network, uuid string) error {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	client, port, err := n.port(ctx, network, uuid)
	if err == nil {
		_, err = relay.Call(ctx, client, protocol.NetworkPortDelete, &protocol.NetworkPortDeleteArgs{Port: port})
	}
	if answers(err, protocol.ErrNoNetwork) || answers(err, protocol.ErrNoNetworkPort) || answers(err, protocol.ErrOperationInvalid) {
		return nil
	}
	return err
}

func (n *networks) port(ctx context.Context, network, uuid string) (client *relay.Client, port protocol.NonnullNetworkPort, err error) {
	port.UUID, err = protocol.ParseUUID(uuid)
	if err == nil {
		client, port.Net, err = n.find(ctx, network)
	}
	return client, port, err
}

// Limit changes what the network guarantees and holds.
func (n *networks) Limit(ctx context.Context, network, uuid string, inbound, outbound xml.Rate) error {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	client, port, err := n.port(ctx, network, uuid)
	if err != nil {
		return err
	}
	var params []protocol.TypedParam
	for _, p := range rateParams(inbound, outbound) {
		params = append(params, protocol.TypedParam{Field: p.name, Value: protocol.UintValue(p.value)})
	}
	_, err = relay.Call(ctx, client, protocol.NetworkPortSetParameters, &protocol.NetworkPortSetParametersArgs{Port: port, Params: params})
	if answers(err, protocol.ErrNoNetworkPort) {
		return fmt.Errorf("network %s: %w", network, runtime.ErrNoPort)
	}
	if err = inactive(ctx, client, port.Net, err); err != nil {
		return fmt.Errorf("bandwidth in the network %s: %w", network, err)
	}
	return nil
}

// rateParams are rates by libvirt's names, in KiB.
func rateParams(in, out xml.Rate) []named {
	return []named{
		{protocol.DomainBandwidthInAverage, int(in.Average >> 10)}, {protocol.DomainBandwidthInPeak, int(in.Peak >> 10)},
		{protocol.DomainBandwidthInBurst, int(in.Burst >> 10)}, {protocol.DomainBandwidthInFloor, int(in.Floor >> 10)},
		{protocol.DomainBandwidthOutAverage, int(out.Average >> 10)}, {protocol.DomainBandwidthOutPeak, int(out.Peak >> 10)},
		{protocol.DomainBandwidthOutBurst, int(out.Burst >> 10)},
	}
}

// portXML asks for a port (conf/virnetworkportdef.c reads it).
func portXML(p runtime.Port) (string, error) {
	port := libvirtxml.NetworkPort{
		UUID: p.UUID, Owner: &libvirtxml.NetworkPortOwner{Name: p.Owner, UUID: p.OwnerUUID},
		MAC: &libvirtxml.NetworkPortMAC{Address: p.MAC}, Group: p.Group,
	}
	if !p.VLAN.IsZero() {
		port.VLAN = &libvirtxml.NetworkPortVLAN{}
		if len(p.VLAN.Tags) > 0 {
			port.VLAN.Trunk = "yes"
		}
		if p.VLAN.Native != 0 {
			tag := libvirtxml.NetworkPortVLANTag{ID: uint(p.VLAN.Native)}
			if p.VLAN.Tagged {
				tag.NativeMode = "tagged"
			} else if len(p.VLAN.Tags) > 0 {
				tag.NativeMode = "untagged"
			}
			port.VLAN.Tags = append(port.VLAN.Tags, tag)
		}
		for _, id := range p.VLAN.Tags {
			port.VLAN.Tags = append(port.VLAN.Tags, libvirtxml.NetworkPortVLANTag{ID: uint(id)})
		}
	}
	if p.Isolated {
		port.PortOptions = &libvirtxml.NetworkPortPortOptions{Isolated: "yes"}
	}
	in, out := portRate(p.Inbound), portRate(p.Outbound)
	if in != nil || out != nil {
		port.Bandwidth = &libvirtxml.NetworkBandwidth{Inbound: in, Outbound: out}
	}
	return port.Marshal()
}

func portRate(r xml.Rate) *libvirtxml.NetworkBandwidthParams {
	if r == (xml.Rate{}) {
		return nil
	}
	p := &libvirtxml.NetworkBandwidthParams{}
	for _, f := range []struct {
		to   **uint
		from uint64
	}{{&p.Average, r.Average}, {&p.Peak, r.Peak}, {&p.Burst, r.Burst}, {&p.Floor, r.Floor}} {
		if v := uint(f.from >> 10); v != 0 {
			*f.to = &v
		}
	}
	return p
}

// parsePort reads where the port is.
func parsePort(network, doc string) (plug runtime.Plug, err error) {
	var port libvirtxml.NetworkPort
	if err := port.Unmarshal(doc); err != nil {
		return plug, fmt.Errorf("port in the network %s: %w", network, err)
	}
	plug.Isolated = port.PortOptions != nil && port.PortOptions.Isolated == "yes"
	if v := port.VLAN; v != nil {
		def := libvirtxml.DomainInterfaceVLan{Trunk: v.Trunk}
		for _, t := range v.Tags {
			def.Tags = append(def.Tags, libvirtxml.DomainInterfaceVLanTag(t))
		}
		plug.VLAN = xml.NewVLAN(&def)
	}
	if b := port.Bandwidth; b != nil {
		plug.Inbound, plug.Outbound = rateOf(b.Inbound), rateOf(b.Outbound)
	}
	switch p := port.Plug; {
	case port.VirtualPort != nil:
		err = errorf(protocol.ErrConfigUnsupported, "the network '%s' has a <virtualport>, which environments cannot be connected to: use one with a Linux bridge", network)
	case p != nil && p.Bridge != nil:
		plug.Bridge = p.Bridge.Bridge
	case p != nil && p.Network != nil:
		plug.Bridge = p.Network.Bridge
	case p != nil && p.Direct != nil:
		plug.Device, plug.Mode = p.Direct.Dev, cmp.Or(p.Direct.Mode, "vepa")
	default:
		err = errorf(protocol.ErrConfigUnsupported, "the network '%s' hands out PCI devices, which an environment cannot have: use one with a bridge", network)
	}
	return plug, err
}

func rateOf(p *libvirtxml.NetworkBandwidthParams) (r xml.Rate) {
	if p == nil {
		return r
	}
	for _, f := range []struct {
		from *uint
		to   *uint64
	}{{p.Average, &r.Average}, {p.Peak, &r.Peak}, {p.Burst, &r.Burst}, {p.Floor, &r.Floor}} {
		if f.from != nil {
			*f.to = uint64(*f.from) << 10
		}
	}
	return r
}
