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
	if d.drv.rt == nil || !xml.HasTemplateRoot(def) || !d.drv.rt.Layers().Has(d.uuid) {
		return def, nil
	}
	return xml.WithDisk(def, d.uuid.String())
}

// takeDisk makes the disk of a clone: of a definition that was shown for
// another environment, which is defined and shut off. Of one that runs the
// clone is made at the first start, if it does not run any more.
func (c *change) takeDisk(r *request, def *libvirtxml.Domain) error {
	env, err := xml.NewEnvironment(def)
	if err != nil {
		return err
	}
	of := protocol.UUID(env.CloneOf)
	source := c.drv.domains.lookup(of)
	if env.CloneOf != [16]byte{} && source != nil {
		if err := r.allowNew(source.view().name, of); err != nil {
			return err
		}
	}
	marked := xml.Copy(def)
	marker, err := xml.TakeDisk(def)
	switch {
	case err != nil || marker == [16]byte{} || marker == [16]byte(c.uuid):
		return err
	case c.drv.rt == nil || source == nil || !xml.HasTemplateRoot(def):
		return nil // nobody here has such a disk
	case c.drv.rt.Layers().Has(c.uuid) || !c.drv.rt.Layers().Has(marker):
		return nil
	}
	err = c.drv.rt.Layers().Clone(marker, "", c.uuid)
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
