package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// relayed makes the table of all procedures on the host's networks, storage,
// node devices, interfaces, secrets and network filters: libvirt's own daemons
// answer them.
func relayed(all []*protocol.Info) (t table) {
	for _, info := range all {
		if d, ok := relay.Owner(info); ok && !info.IsEvent() {
			t = append(t, passOn(info, d))
		}
	}
	return t
}

// passOn is a procedure that is checked without a look at its arguments: the
// access driver is asked about the kind of object and the permission, not
// about the object itself. It runs apart from the others, as the daemon that
// answers it may hang.
func passOn(info *protocol.Info, d relay.Driver) procedure {
	return procedure{info: info, mode: rpc.Apart, relay: d, serve: func(r *request) (xdr.Marshaler, error) {
		if err := r.client.admit(info); err != nil {
			return nil, err
		}
		if r.client.readOnly.Load() && info.Access != protocol.Allowed {
			return nil, readOnlyError(info)
		}
		if err := r.allow(nil, nil); err != nil {
			return nil, err
		}
		return r.client.relay.Forward(r.client.caller(), d, r.call, info)
	}}
}

// caller is whom the host's daemons decide about.
func (c *client) caller() relay.Caller {
	who := c.who()
	return relay.Caller{PID: who.PID, StartTime: who.StartTime, UID: who.UID, Stated: who.stated, ReadOnly: c.readOnly.Load()}
}
