package driver

import (
	"errors"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/xml"
)

var devices = table{
	modify(protocol.DomainAttachDevice, func(c *change, a *protocol.DomainAttachDeviceArgs) error {
		return attachDevice(c, a.XML, protocol.DomainAffectLive)
	}),
	modify(protocol.DomainAttachDeviceFlags, func(c *change, a *protocol.DomainAttachDeviceFlagsArgs) error {
		return attachDevice(c, a.XML, a.Flags)
	}),
	modify(protocol.DomainDetachDevice, func(c *change, a *protocol.DomainDetachDeviceArgs) error {
		return detachDevice(c, a.XML, protocol.DomainAffectLive)
	}),
	modify(protocol.DomainDetachDeviceFlags, func(c *change, a *protocol.DomainDetachDeviceFlagsArgs) error {
		return detachDevice(c, a.XML, a.Flags)
	}),
	modify(protocol.DomainDetachDeviceAlias, detachAlias),
	modify(protocol.DomainUpdateDeviceFlags, func(c *change, a *protocol.DomainUpdateDeviceFlagsArgs) error {
		return updateDevice(c, a.XML, a.Flags&^protocol.DomainDeviceModifyForce)
	}),
}

// liveDevices can be changed while the environment runs; the others, from its
// next start on.
var liveDevices = map[string]bool{"console": true, "disk": true, "filesystem": true, "hostdev": true, "interface": true}

// parseDevice reads a device that is to be changed.
func (c *change) parseDevice(doc string, flags uint32) (*xml.DeviceChange, error) {
	device, err := xml.ParseDevice(doc)
	if err != nil {
		return nil, err
	}
	return device, c.checkLive(device, flags)
}

func (c *change) checkLive(device *xml.DeviceChange, flags uint32) error {
	live, _, err := c.view().affects(flags)
	if err == nil && live {
		err = changesLive(device)
	}
	return err
}

func changesLive(device *xml.DeviceChange) error {
	if !liveDevices[device.Kind] {
		return errorf(protocol.ErrOperationUnsupported, "a <%s> of a running environment cannot be changed by this version: use --config, it holds from the next start on", device.Kind)
	}
	return nil
}

func attachDevice(c *change, doc string, flags uint32) error {
	device, err := c.parseDevice(doc, flags)
	if err != nil {
		return err
	}
	added := ""
	err = c.tune(flags, func(def *libvirtxml.Domain) error {
		alias, err := device.Attach(def, def.ID != nil)
		if def.ID != nil {
			added = alias
		}
		return err
	})
	if err == nil && added != "" {
		c.drv.events.emit(c.domain, deviceAddedEvent(added))
	}
	return err
}

func detachDevice(c *change, doc string, flags uint32) error {
	device, err := c.parseDevice(doc, flags)
	if err != nil {
		return err
	}
	return c.detach(flags, device.Detach)
}

func detachAlias(c *change, a *protocol.DomainDetachDeviceAliasArgs) error {
	return c.detach(a.Flags, func(def *libvirtxml.Domain) (string, error) {
		device := xml.FindAlias(def, a.Alias)
		if device == nil {
			return "", errorf(protocol.ErrDeviceMissing, "no device found with alias %s", a.Alias)
		}
		if def.ID != nil {
			if err := changesLive(device); err != nil {
				return "", err
			}
		}
		return device.Detach(def)
	})
}

// detach removes a device, of which from tells the alias.
func (c *change) detach(flags uint32, from func(*libvirtxml.Domain) (alias string, err error)) error {
	removed := ""
	err := c.tune(flags, func(def *libvirtxml.Domain) error {
		alias, err := from(def)
		if def.ID != nil {
			removed = alias
		}
		return err
	})
	switch {
	case removed == "":
	case err == nil:
		c.drv.events.emit(c.domain, deviceRemovedEvent(removed))
	case errors.As(err, new(*unrealisedError)):
		c.drv.events.emit(c.domain, deviceRemovalFailedEvent(removed))
	}
	return err
}

func updateDevice(c *change, doc string, flags uint32) error {
	device, err := c.parseDevice(doc, flags)
	if err != nil {
		return err
	}
	return c.tune(flags, func(def *libvirtxml.Domain) error {
		_, err := device.Update(def)
		return err
	})
}

func deviceAddedEvent(alias string) event {
	return event{protocol.DomainEventIDDeviceAdded, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		return protocol.DomainEventCallbackDeviceAdded.Info, &protocol.DomainEventCallbackDeviceAddedMsg{CallbackID: cb, Dom: dom, DevAlias: alias}
	}}
}

func deviceRemovedEvent(alias string) event {
	return event{protocol.DomainEventIDDeviceRemoved, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		msg := protocol.DomainEventDeviceRemovedMsg{Dom: dom, DevAlias: alias}
		if cb == legacyCallback {
			return protocol.DomainEventDeviceRemoved.Info, &msg
		}
		return protocol.DomainEventCallbackDeviceRemoved.Info, &protocol.DomainEventCallbackDeviceRemovedMsg{CallbackID: cb, Msg: msg}
	}}
}

func deviceRemovalFailedEvent(alias string) event {
	return event{protocol.DomainEventIDDeviceRemovalFailed, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		return protocol.DomainEventCallbackDeviceRemovalFailed.Info, &protocol.DomainEventCallbackDeviceRemovalFailedMsg{CallbackID: cb, Dom: dom, DevAlias: alias}
	}}
}
