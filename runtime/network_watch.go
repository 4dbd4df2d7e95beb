package runtime

import (
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A bridge that goes while environments are connected to it takes the
// connections along: virsh net-destroy, for one. When one of its name is there
// again they are its ports again, as nobody inside can tell why there was
// silence.

// watchBridges does so until the runtime is closed.
func (r *Runtime) watchBridges() {
	known := map[string]int{} // index of each bridge by name
	for {
		updates := make(chan netlink.LinkUpdate, 64)
		if err := netlink.LinkSubscribe(updates, r.stop); err != nil {
			return // without netlink there are no interfaces either
		}
		if links, err := settled(r.links.host.LinkList); err == nil {
			for _, link := range links {
				r.sawBridge(known, link)
			}
		}
		for u := range updates {
			if u.Header.Type == unix.RTM_NEWLINK {
				r.sawBridge(known, u.Link)
			}
		}
		// Either stopped, or more came than there was room for.
		select {
		case <-r.stop:
			return
		case <-time.After(time.Second):
		}
	}
}

// sawBridge connects what belongs to a bridge that was not there before.
func (r *Runtime) sawBridge(known map[string]int, link netlink.Link) {
	a := link.Attrs()
	if link.Type() != "bridge" || known[a.Name] == a.Index {
		return
	}
	known[a.Name] = a.Index
	r.mu.Lock()
	var list []*Instance
	for _, i := range r.instances {
		if i != nil {
			list = append(list, i)
		}
	}
	r.mu.Unlock()
	for _, i := range list {
		i.reconnect(r.links.host, link)
	}
}

// reconnect makes the host's ends that have no bridge ports of theirs.
func (i *Instance) reconnect(h *netlink.Handle, bridge netlink.Link) {
	i.mu.Lock()
	var ends []*recordedLink
	for _, l := range i.rec.Links {
		cutOff := i.rec.Checkpoint != nil // see unplugLinks
		if !cutOff && l.Type == "bridge" && l.Parent == bridge.Attrs().Name && l.HostIndex != 0 {
			ends = append(ends, l)
		}
	}
	i.mu.Unlock()
	for _, l := range ends {
		end, err := h.LinkByIndex(l.HostIndex)
		if err == nil && end.Attrs().MasterIndex == 0 {
			joinBridge(h, end, bridge, l.Isolated, l.VLAN) // the bridge may have gone again
		}
	}
}
