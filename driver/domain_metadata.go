package driver

import (
	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var metadata = table{
	get(protocol.DomainGetMetadata, getMetadata),
	modify(protocol.DomainSetMetadata, setMetadata),
}

func getMetadata(d *domain, a *protocol.DomainGetMetadataArgs) (ret protocol.DomainGetMetadataRet, err error) {
	v := d.view()
	live, config, err := v.affects(a.Flags)
	if err != nil {
		return ret, err
	}
	if live && config {
		return ret, errorf(protocol.ErrInvalidArg, "flags VIR_DOMAIN_AFFECT_LIVE and VIR_DOMAIN_AFFECT_CONFIG exclude each other here")
	}
	var found bool
	switch def := v.definition(config); a.Type {
	case protocol.DomainMetadataDescription:
		ret.Metadata, found = def.Description, def.Description != ""
	case protocol.DomainMetadataTitle:
		ret.Metadata, found = def.Title, def.Title != ""
	case protocol.DomainMetadataElement:
		ret.Metadata, found, err = xml.Metadata(def, text(a.Uri))
	default:
		return ret, errorf(protocol.ErrInvalidArg, "unknown metadata type %d", a.Type)
	}
	if err == nil && !found {
		err = errorf(protocol.ErrNoDomainMetadata, "Requested metadata element is not present")
	}
	return ret, err
}

// setMetadata changes the running definition, the saved one or both; if one
// of them cannot be changed neither is.
func setMetadata(c *change, a *protocol.DomainSetMetadataArgs) error {
	live, config, err := c.view().affects(a.Flags)
	if err != nil {
		return err
	}
	kind := a.Type
	edit := func(def *libvirtxml.Domain) (*libvirtxml.Domain, error) {
		next := xml.Copy(def)
		switch kind {
		case protocol.DomainMetadataDescription:
			next.Description = text(a.Metadata)
		case protocol.DomainMetadataTitle:
			next.Title = text(a.Metadata)
			return next, xml.CheckTitle(next.Title)
		case protocol.DomainMetadataElement:
			return next, xml.SetMetadata(next, text(a.Metadata), text(a.Key), text(a.Uri))
		default:
			return nil, errorf(protocol.ErrInvalidArg, "unknown metadata type %d", a.Type)
		}
		return next, nil
	}
	if err := c.editDefinitions(live, config, edit); err != nil {
		return err
	}
	c.drv.events.emit(c.domain, metadataEvent(kind, a.Uri))
	return nil
}

// affects tells which definitions a call with VIR_DOMAIN_AFFECT_* flags is
// about; none means the running one if there is one, else the saved one
// (virDomainObjUpdateModificationImpact).
func (v *view) affects(flags uint32) (live, config bool, err error) {
	if err := checkFlags(flags, protocol.DomainAffectLive, protocol.DomainAffectConfig); err != nil {
		return false, false, err
	}
	live = flags&protocol.DomainAffectLive != 0
	config = flags&protocol.DomainAffectConfig != 0
	if !live && !config {
		live, config = v.state.active(), !v.state.active()
	}
	if live && !v.state.active() {
		return false, false, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	if config && !v.persistent {
		return false, false, errorf(protocol.ErrOperationInvalid, "transient domains do not have any persistent config")
	}
	return live, config, nil
}

// editDefinitions changes copies of the definitions, saves them and only
// then puts them in force: the change is whole or not at all.
func (c *change) editDefinitions(live, config bool, edit func(*libvirtxml.Domain) (*libvirtxml.Domain, error)) (err error) {
	before := c.view()
	next := *before
	if live {
		if next.live, err = edit(before.live); err != nil {
			return err
		}
		next.updated = true
	}
	if config {
		if next.config, err = edit(before.config); err != nil {
			return err
		}
		doc, err := xml.Format(next.config, xml.FormatOptions{Inactive: true, Secure: true})
		if err != nil {
			return err
		}
		if err := c.drv.store.saveDefinition(next.name, doc); err != nil {
			return err
		}
	}
	if live {
		if err := c.saveStatus(&next); err != nil {
			return err
		}
	}
	c.publish(func(v *view) { v.live, v.config, v.updated = next.live, next.config, next.updated })
	return nil
}
