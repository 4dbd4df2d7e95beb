package runtime

import (
	"errors"
	"fmt"
	"maps"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"virtvzd/xml"
)

// joinBridge makes a link a port of a bridge. It may be repeated.
func joinBridge(h *netlink.Handle, link, bridge netlink.Link, isolated bool, vlan xml.VLAN) error {
	b, _ := bridge.(*netlink.Bridge)
	tells := tellsVLANs(b)
	if !vlan.IsZero() && !tells {
		return fmt.Errorf("a <vlan> is asked for, and the bridge does not tell VLANs apart: ip link set %s type bridge vlan_filtering 1", bridge.Attrs().Name)
	}
	join := func() error {
		if link.Attrs().MasterIndex == bridge.Attrs().Index {
			return nil
		}
		return h.LinkSetMaster(link, bridge)
	}
	if !tells {
		return errors.Join(join(), h.LinkSetIsolated(link, isolated))
	}
	return errors.Join(joinVLANs(h, link, b, vlan, join), h.LinkSetIsolated(link, isolated))
}

func tellsVLANs(b *netlink.Bridge) bool {
	return b != nil && b.VlanFiltering != nil && *b.VlanFiltering
}

// joinVLANs lets nothing pass before the port has the VLANs it is to have.
func joinVLANs(h *netlink.Handle, link netlink.Link, bridge *netlink.Bridge, vlan xml.VLAN, join func() error) (err error) {
	wanted := portVLANs(vlan, bridge)
	have, err := readVLANs(h, link)
	if err != nil {
		return err
	}
	if link.Attrs().MasterIndex == bridge.Index && maps.Equal(have, wanted) {
		return nil
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		if err := h.LinkSetDown(link); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.LinkSetUp(link)) }()
	}
	if err := join(); err != nil {
		return err
	}
	if have, err = readVLANs(h, link); err != nil {
		return err
	}
	for id := range have {
		if _, ok := wanted[id]; !ok {
			if err := h.BridgeVlanDel(link, id, false, false, false, true); err != nil {
				return fmt.Errorf("take VLAN %d away: %w", id, err)
			}
		}
	}
	for id, flags := range wanted {
		if have[id] == flags && flags != 0 {
			continue
		}
		if err := h.BridgeVlanAdd(link, id, flags&nl.BRIDGE_VLAN_INFO_PVID != 0, flags&nl.BRIDGE_VLAN_INFO_UNTAGGED != 0, false, true); err != nil {
			return fmt.Errorf("add VLAN %d: %w", id, err)
		}
	}
	return nil
}

// portVLANs are the VLANs of a port and the kernel's flags for each.
func portVLANs(vlan xml.VLAN, bridge *netlink.Bridge) map[uint16]uint16 {
	list := map[uint16]uint16{}
	if vlan.IsZero() {
		if bridge.VlanDefaultPVID != nil && *bridge.VlanDefaultPVID != 0 {
			list[*bridge.VlanDefaultPVID] = nl.BRIDGE_VLAN_INFO_PVID | nl.BRIDGE_VLAN_INFO_UNTAGGED
		}
		return list
	}
	for _, id := range vlan.Tags {
		list[id] = 0
	}
	if vlan.Native != 0 {
		list[vlan.Native] = nl.BRIDGE_VLAN_INFO_PVID
		if !vlan.Tagged {
			list[vlan.Native] |= nl.BRIDGE_VLAN_INFO_UNTAGGED
		}
	}
	return list
}

func readVLANs(h *netlink.Handle, link netlink.Link) (map[uint16]uint16, error) {
	all, err := settled(func() (map[int32][]*nl.BridgeVlanInfo, error) { return h.BridgeVlanList() })
	list := map[uint16]uint16{}
	for _, v := range all[int32(link.Attrs().Index)] {
		list[v.Vid] = v.Flags & (nl.BRIDGE_VLAN_INFO_PVID | nl.BRIDGE_VLAN_INFO_UNTAGGED)
	}
	return list, err
}
