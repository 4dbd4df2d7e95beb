package driver

import (
	"errors"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// withDisk adds to a definition that is shown whose disk it has, so that a copy
// of it under another UUID is known for a clone.
func (d *domain) withDisk(def *libvirtxml.Domain) (*libvirtxml.Domain, error) {
	if d.drv.layers == nil || !xml.HasTemplateRoot(def) || !d.drv.layers.Has(d.uuid) {
		return def, nil
	}
	return xml.WithDisk(def, d.uuid.String())
}

// takeDisk makes the disk of a clone: of a definition that was shown for
// another environment, which is defined and shut off. Of one that runs the
// clone is made at the first start, if it does not run any more.
func (c *change) takeDisk(def *libvirtxml.Domain) error {
	marked := xml.Copy(def)
	marker, err := xml.TakeDisk(def)
	if err != nil {
		return err
	}
	if err := c.allowClone(c.view().config, def); err != nil { // what <ve:clone> names
		return err
	}
	source := c.drv.domains.lookup(protocol.UUID(marker))
	switch {
	case marker == [16]byte{} || marker == [16]byte(c.uuid):
		return nil
	case c.drv.layers == nil || source == nil || !xml.HasTemplateRoot(def):
		return nil // nobody here has such a disk
	case c.drv.layers.Has(c.uuid) || !c.drv.layers.Has(marker):
		return nil
	}
	if err := c.allowDisk(protocol.UUID(marker)); err != nil {
		return err
	}
	err = c.drv.layers.Clone(marker, "", c.uuid)
	if errors.Is(err, runtime.ErrRunning) {
		*def = *marked
		return nil
	}
	if err == nil {
		c.drv.log.Info("disk cloned", "domain", def.Name, "from", source.view().name)
	}
	return err
}

// takeRoot refuses a root that another domain has: that of a clone, say, is
// copied only where it is a template's. What the domain had already it keeps.
func (c *change) takeRoot(def *libvirtxml.Domain) error {
	root := xml.OwnRoot(def)
	if old := c.view(); root == "" || !old.undefined() && xml.OwnRoot(old.definition(false)) == root {
		return nil
	}
	for _, d := range c.drv.domains.all() {
		if v := d.view(); d == c.domain || v.undefined() || xml.OwnRoot(v.definition(true)) != root {
			continue
		}
		return errorf(protocol.ErrOperationFailed, "the root %s is that of the domain '%s', and only a template's is copied for a clone: "+
			"copy it ('cp -a --reflink=auto') and name the copy, or make it <readonly/>", root, d.view().name)
	}
	return nil
}
