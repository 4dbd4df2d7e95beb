package xml

import (
	"net/netip"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Filter is a network filter of the host's (virsh nwfilter-list) and what its
// rules are to be filled with. Without a Name there is none.
type Filter struct {
	Name       string
	Parameters []FilterParameter
}

// FilterParameter is a value; one name may have several.
type FilterParameter struct{ Name, Value string }

// VLAN is the traffic of a bridge that an interface takes part in: what it
// sends and gets without a tag belongs to Native, what is tagged to Tags.
// The zero value is whatever the bridge gives its ports.
type VLAN struct {
	Native uint16   // 1 to 4094; 0: none
	Tagged bool     // what belongs to Native goes to the environment with its tag
	Tags   []uint16 // 1 to 4094, sorted
}

// IsZero tells whether nothing is wanted of the bridge's VLANs.
func (v VLAN) IsZero() bool { return v.Native == 0 && len(v.Tags) == 0 }

const (
	maxVLAN             = 4094 // 0 and 4095 mean something else to IEEE 802.1Q
	maxFilterParameters = 256
	maxFilterName       = 255
)

// validateFilter has the characters that libvirt accepts (nwfilter_params.h).
func validateFilter(f *libvirtxml.DomainInterfaceFilterRef) error {
	if f == nil {
		return nil
	}
	if f.Filter == "" || len(f.Filter) > maxFilterName || !only(f.Filter, "_.:-") {
		return invalid("<filterref>", "has filter='%s': a name that virsh nwfilter-list shows is needed", shorten(f.Filter))
	}
	if n := len(f.Parameters); n > maxFilterParameters {
		return invalid("<filterref>", "has %d parameters, the limit is %d", n, maxFilterParameters)
	}
	for _, p := range f.Parameters {
		if p.Name == "" || len(p.Name) > maxFilterName || !only(p.Name, "_") {
			return invalid("<filterref><parameter>", "has name='%s': letters, digits and _ are accepted", shorten(p.Name))
		}
		if p.Value == "" || len(p.Value) > maxFilterName || !only(p.Value, "_.:") {
			return invalid("<filterref><parameter>", "has value='%s': letters, digits, _, . and : are accepted", shorten(p.Value))
		}
	}
	return nil
}

// only tells whether s has nothing but letters, digits and more.
func only(s, more string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune(more, c))
	})
}

// filter adds to what is said the addresses that the definition gives the
// interface: otherwise libvirt would take the first one it sees for the right
// one.
func filter(n libvirtxml.DomainInterface, addresses []netip.Prefix) (f Filter) {
	if n.FilterRef == nil {
		return f
	}
	f.Name = n.FilterRef.Filter
	for _, p := range n.FilterRef.Parameters {
		f.Parameters = append(f.Parameters, FilterParameter(p))
	}
	said := func(name string) bool {
		return slices.ContainsFunc(n.FilterRef.Parameters, func(p libvirtxml.DomainInterfaceFilterParam) bool { return p.Name == name })
	}
	for _, family := range []struct {
		name string
		is6  bool
	}{{"IP", false}, {"IPV6", true}} {
		for _, a := range addresses {
			if a.Addr().Is6() == family.is6 && !said(family.name) {
				f.Parameters = append(f.Parameters, FilterParameter{family.name, a.Addr().String()})
			}
		}
	}
	return f
}

// validateVLAN has libvirt's rules (virNetDevVlanParse, virNetDevSupportsVlan).
func validateVLAN(n libvirtxml.DomainInterface) error {
	v := n.VLan
	if v == nil {
		return nil
	}
	if n.Source.Bridge == nil && n.Source.Network == nil {
		return unsupported("<vlan>", "can only be had by an interface of type 'bridge' or 'network'")
	}
	if len(v.Tags) == 0 {
		return invalid("<vlan>", "needs at least one <tag id=…/>")
	}
	native := false
	for k, t := range v.Tags {
		if t.ID == 0 || t.ID > maxVLAN {
			return invalid("<vlan><tag>", "has id='%d': 1 to %d are accepted", t.ID, maxVLAN)
		}
		if slices.ContainsFunc(v.Tags[:k], func(o libvirtxml.DomainInterfaceVLanTag) bool { return o.ID == t.ID }) {
			return invalid("<vlan><tag>", "has id='%d' twice", t.ID)
		}
		if t.NativeMode == "" {
			continue
		}
		if t.NativeMode != "tagged" && t.NativeMode != "untagged" {
			return invalid("<vlan><tag>", "has nativeMode='%s': tagged and untagged are accepted", shorten(t.NativeMode))
		}
		if native {
			return invalid("<vlan>", "has two tags with a nativeMode")
		}
		native = true
	}
	switch {
	case v.Trunk != "" && v.Trunk != "yes" && v.Trunk != "no":
		return invalid("<vlan>", "has trunk='%s': yes and no are accepted", shorten(v.Trunk))
	case v.Trunk == "no" && len(v.Tags) > 1:
		return invalid("<vlan>", "has trunk='no' and more than one tag")
	case v.Trunk == "no" && native:
		return invalid("<vlan>", "has trunk='no' and a nativeMode")
	}
	return nil
}

// NewVLAN reads a checked <vlan>.
func NewVLAN(def *libvirtxml.DomainInterfaceVLan) (v VLAN) {
	if def == nil {
		return v
	}
	trunk := def.Trunk == "yes" || len(def.Tags) > 1
	for _, t := range def.Tags {
		if !trunk || t.NativeMode != "" {
			v.Native, v.Tagged = uint16(t.ID), t.NativeMode == "tagged"
		} else {
			v.Tags = append(v.Tags, uint16(t.ID))
		}
	}
	slices.Sort(v.Tags)
	return v
}
