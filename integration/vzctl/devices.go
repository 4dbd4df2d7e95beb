package main

import (
	"net/netip"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// definitions are the two of a domain: of what runs, and of its next start.
// They may differ, so that what is changed of one is made of this one.
type definitions interface {
	GetXMLDesc(libvirt.DomainXMLFlags) (string, error)
	SetMemoryFlags(uint64, libvirt.DomainMemoryModFlags) error
	GetMemoryParameters(libvirt.DomainModificationImpact) (*libvirt.DomainMemoryParameters, error)
	SetMemoryParameters(*libvirt.DomainMemoryParameters, libvirt.DomainModificationImpact) error
	AttachDeviceFlags(string, libvirt.DomainDeviceModifyFlags) error
	DetachDeviceFlags(string, libvirt.DomainDeviceModifyFlags) error
	UpdateDeviceFlags(string, libvirt.DomainDeviceModifyFlags) error
}

// part is one of the two that a change is for.
type part libvirt.DomainModificationImpact

func parts(impact libvirt.DomainModificationImpact) (list []part) {
	for _, one := range []libvirt.DomainModificationImpact{libvirt.DOMAIN_AFFECT_LIVE, libvirt.DOMAIN_AFFECT_CONFIG} {
		if impact&one != 0 {
			list = append(list, part(one))
		}
	}
	return list
}

// flags are those that its definition is read with.
func (p part) flags() libvirt.DomainXMLFlags {
	if p == part(libvirt.DOMAIN_AFFECT_CONFIG) {
		return libvirt.DOMAIN_XML_INACTIVE
	}
	return 0
}

// definition reads what runs, or else what is defined.
func definition(dom definitions, flags libvirt.DomainXMLFlags) (*libvirtxml.Domain, error) {
	doc, err := dom.GetXMLDesc(flags)
	if err != nil {
		return nil, err
	}
	def := &libvirtxml.Domain{}
	return def, def.Unmarshal(doc)
}

// exchange is of a device: old for next. One that is empty is not there.
type exchange struct {
	of        libvirt.DomainDeviceModifyFlags
	old, next string
}

// exchanges asks for each part by its own definition. What is the same for
// both is one change, which the daemon does to both or to none.
func exchanges(dom definitions, impact libvirt.DomainModificationImpact, of func(*libvirtxml.Domain) (old, next string, err error)) (list []exchange, err error) {
	for _, one := range parts(impact) {
		def, err := definition(dom, one.flags())
		if err != nil {
			return nil, err
		}
		e := exchange{of: libvirt.DomainDeviceModifyFlags(one)}
		if e.old, e.next, err = of(def); err != nil {
			return nil, err
		}
		if len(list) > 0 && list[0].old == e.old && list[0].next == e.next {
			list[0].of |= e.of
			continue
		}
		list = append(list, e)
	}
	return list, nil
}

// setAddresses has the interface that changes taken away, and come back with
// the new ones. When one part fails, both are as they were.
func (o options) setAddresses(dom definitions, impact libvirt.DomainModificationImpact) error {
	list, err := exchanges(dom, impact, o.routed)
	if err != nil {
		return err
	}
	for n, e := range list {
		if err := e.do(dom); err != nil {
			for _, done := range list[:n] {
				exchange{done.of, done.next, done.old}.do(dom)
			}
			return err
		}
	}
	return nil
}

func (e exchange) do(dom definitions) error {
	if e.old != "" {
		if err := dom.DetachDeviceFlags(e.old, e.of); err != nil {
			return err
		}
	}
	if e.next == "" {
		return nil
	}
	err := dom.AttachDeviceFlags(e.next, e.of)
	if err != nil && e.old != "" {
		dom.AttachDeviceFlags(e.old, e.of) // as it was a moment ago
	}
	return err
}

// routed gives the interface there is and the one there is to be; empty: none.
func (o options) routed(def *libvirtxml.Domain) (old, next string, err error) {
	nic := libvirtxml.DomainInterface{Source: &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}}}
	if def.Devices != nil {
		for _, n := range def.Devices.Interfaces {
			if n.Source != nil && n.Source.Ethernet != nil && len(n.IP) > 0 {
				n.Alias, n.Target = nil, nil
				nic = n
				if old, err = nic.Marshal(); err != nil {
					return "", "", err
				}
				break
			}
		}
	}
	nic.IP = slices.Clone(nic.IP)
	for _, text := range o["ipdel"] {
		nic.IP = slices.DeleteFunc(nic.IP, func(ip libvirtxml.DomainInterfaceIP) bool { return text == "all" || ip.Address == text })
	}
	for _, text := range o["ipadd"] {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return "", "", failf(exitValue, "--ipadd is %q: an address such as 192.0.2.7 is accepted", text)
		}
		ip := libvirtxml.DomainInterfaceIP{Address: addr.String(), Family: "ipv6", Prefix: uint(addr.BitLen())}
		if addr.Is4() {
			ip.Family = "ipv4"
		}
		if !slices.ContainsFunc(nic.IP, func(have libvirtxml.DomainInterfaceIP) bool { return have.Address == ip.Address }) {
			nic.IP = append(nic.IP, ip)
		}
	}
	if len(nic.IP) > 0 {
		next, err = nic.Marshal()
	}
	return old, next, err
}

// setRoot limits the space of the root, in KiB.
func setRoot(dom definitions, impact libvirt.DomainModificationImpact, soft, hard uint64) error {
	list, err := exchanges(dom, impact, func(def *libvirtxml.Domain) (string, string, error) {
		for _, f := range def.Devices.Filesystems {
			if f.Target == nil || f.Target.Dir != "/" {
				continue
			}
			f.Alias = nil
			f.SpaceSoftLimit = &libvirtxml.DomainFilesystemSpaceSoftLimit{Value: uint(soft), Unit: "KiB"}
			f.SpaceHardLimit = &libvirtxml.DomainFilesystemSpaceHardLimit{Value: uint(hard), Unit: "KiB"}
			doc, err := f.Marshal()
			return "", doc, err
		}
		return "", "", failf(exitValue, "Container has no root of its own that --diskspace could limit")
	})
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := dom.UpdateDeviceFlags(e.next, e.of); err != nil {
			return err
		}
	}
	return nil
}
