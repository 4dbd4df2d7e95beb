package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"reflect"

	"virtvzd/xml"
)

// Networks is what is wanted of libvirt's virtual networks.
type Networks interface {
	// Find tells the bridge of a network, "" if it has none. The error of one
	// that is not there, or not active, says what to do.
	Find(ctx context.Context, network string) (bridge string, err error)
	// Plug makes a port, under the UUID it is given.
	Plug(ctx context.Context, p Port) (Plug, error)
	// Unplug removes one. That it or its network is gone is no error.
	Unplug(ctx context.Context, network, uuid string) error
	// Release ends what the network's DHCP server has leased to a MAC address.
	Release(ctx context.Context, network, mac string) error
	// Limit changes a port's bandwidth; ErrNoPort if there is none of that UUID.
	Limit(ctx context.Context, network, uuid string, inbound, outbound xml.Rate) error
}

// ErrNoPort is about a port that a network lost: its end takes all along.
var ErrNoPort = errors.New("the network has no such port")

// Port is an interface for a network.
type Port struct {
	UUID, Network, Group string
	Owner, OwnerUUID     string // the domain
	MAC                  string
	Isolated             bool
	VLAN                 xml.VLAN
	Inbound, Outbound    xml.Rate
}

// Plug is where a network wants an interface: a bridge, or a device of the
// host to make a macvlan of.
type Plug struct {
	Bridge            string
	Device, Mode      string
	Isolated          bool
	VLAN              xml.VLAN
	Inbound, Outbound xml.Rate // the network's own, for an interface that has none
}

// recordedPort is a port in a network; of several the last is the one in use.
type recordedPort struct{ Network, UUID string }

func (l *recordedLink) port() recordedPort {
	if len(l.Ports) == 0 {
		return recordedPort{}
	}
	return l.Ports[len(l.Ports)-1]
}

// plugIn asks the network of an interface for a place.
func (i *Instance) plugIn(ctx context.Context, l *recordedLink, n xml.Interface) (plug Plug, err error) {
	if n.Type != "network" {
		return plug, nil
	}
	if i.r.config.Networks == nil {
		return plug, errors.New("this daemon has no way to libvirt's networks")
	}
	port := recordedPort{n.Source, newPortID()}
	if err := i.noteLink(func() { l.Ports = append(l.Ports, port) }); err != nil {
		return plug, err
	}
	plug, err = i.r.config.Networks.Plug(ctx, Port{
		UUID: port.UUID, Network: n.Source, Group: n.PortGroup, Owner: i.Name(), OwnerUUID: formatUUID(i.uuid),
		MAC: n.MAC, Isolated: n.Isolated, VLAN: n.VLAN, Inbound: n.Inbound, Outbound: n.Outbound,
	})
	if err != nil { // it may be there all the same
		err = errors.Join(err, i.r.unplug(context.WithoutCancel(ctx), port))
		return plug, errors.Join(err, i.noteLink(func() { l.Ports = l.Ports[:len(l.Ports)-1] }))
	}
	return plug, i.noteLink(func() {
		l.Inbound, l.Outbound, l.PortVLAN, l.PortIsolated = plug.Inbound, plug.Outbound, plug.VLAN, plug.Isolated
	})
}

// replug has the network of an interface know of a change: it alters the port,
// or makes another where that cannot be, or where it is gone. Libvirt shows of a
// port what the interface asked for; what the network gives one that asks for
// nothing is seen only then.
func (i *Instance) replug(ctx context.Context, l *recordedLink, from, to xml.Interface) (Plug, error) {
	limited := func(n xml.Interface) bool { return n.Inbound != (xml.Rate{}) || n.Outbound != (xml.Rate{}) }
	switch {
	case l.port().Network != to.Source, from.PortGroup != to.PortGroup,
		from.Isolated != to.Isolated, !reflect.DeepEqual(from.VLAN, to.VLAN), limited(from) && !limited(to):
		return i.plugIn(ctx, l, to)
	case from.Inbound == to.Inbound && from.Outbound == to.Outbound:
		return l.plug(), nil
	}
	err := i.r.config.Networks.Limit(ctx, to.Source, l.port().UUID, to.Inbound, to.Outbound)
	if errors.Is(err, ErrNoPort) {
		return i.plugIn(ctx, l, to)
	}
	return l.plug(), err
}

// giveBack ends the leases of a link that is no more. Whoever cannot be told
// ends them by himself in time.
func (r *Runtime) giveBack(ctx context.Context, l *recordedLink, network string) {
	if r.config.Networks != nil {
		r.config.Networks.Release(ctx, network, l.MAC)
	}
}

// plug is where an interface's network has put it.
func (l *recordedLink) plug() Plug {
	plug := Plug{Bridge: l.Parent, Isolated: l.PortIsolated, VLAN: l.PortVLAN, Inbound: l.Inbound, Outbound: l.Outbound}
	if l.Type == "direct" {
		plug.Device = l.Parent
	}
	return plug
}

// newPortID makes a random UUID.
func newPortID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return formatUUID(b)
}
