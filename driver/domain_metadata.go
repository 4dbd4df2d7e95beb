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
	edit := func(def *libvirtxml.Domain) error {
		switch kind {
		case protocol.DomainMetadataDescription:
			def.Description = text(a.Metadata)
		case protocol.DomainMetadataTitle:
			def.Title = text(a.Metadata)
		case protocol.DomainMetadataElement:
			return xml.SetMetadata(def, text(a.Metadata), text(a.Key), text(a.Uri))
		default:
			return errorf(protocol.ErrInvalidArg, "unknown metadata type %d", a.Type)
		}
		return nil
	}
	if err := c.edit(live, config, edit); err != nil {
		return err
	}
	c.drv.events.emit(c.domain, metadataEvent(kind, a.Uri))
	return nil
}
