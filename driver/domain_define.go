package driver

import (
	"context"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var definition = table{
	call(protocol.DomainDefineXML, func(r *request, a *protocol.DomainDefineXMLArgs) (ret protocol.DomainDefineXMLRet, err error) {
		ret.Dom, err = r.define(a.XML, 0)
		return ret, err
	}),
	call(protocol.DomainDefineXMLFlags, func(r *request, a *protocol.DomainDefineXMLFlagsArgs) (ret protocol.DomainDefineXMLFlagsRet, err error) {
		ret.Dom, err = r.define(a.XML, a.Flags)
		return ret, err
	}),
	modify(protocol.DomainUndefine, func(c *change, _ *protocol.DomainUndefineArgs) error { return undefine(c, 0) }),
	modify(protocol.DomainUndefineFlags, func(c *change, a *protocol.DomainUndefineFlagsArgs) error {
		if err := checkFlags(a.Flags, undefineFlags...); err != nil {
			return err
		}
		return undefine(c, a.Flags)
	}),
	get(protocol.DomainGetXMLDesc, describe),
}

// undefineFlags name things a domain may have besides its definition. What
// an environment cannot have (firmware variables, a TPM) is removed by doing
// nothing, so that tools may always ask for it.
var undefineFlags = []uint32{
	protocol.DomainUndefineManagedSave, protocol.DomainUndefineSnapshotsMetadata,
	protocol.DomainUndefineCheckpointsMetadata,
	protocol.DomainUndefineNvram, protocol.DomainUndefineKeepNvram,
	protocol.DomainUndefineTpm, protocol.DomainUndefineKeepTpm,
}

// parse reads a definition a client brought, with the access check on the
// name and UUID it claims.
func (r *request) parse(doc string, validate bool) (*libvirtxml.Domain, protocol.UUID, error) {
	def, err := xml.Parse(doc, r.drv.facts(), xml.ParseOptions{
		Validate: validate,
		Allow:    func(name string, id [16]byte) error { return r.allowNew(name, protocol.UUID(id)) },
	})
	if err != nil {
		return nil, protocol.UUID{}, err
	}
	id, err := protocol.ParseUUID(def.UUID)
	return def, id, err
}

// define makes or replaces a persistent definition. Of a running domain it
// is what the next start uses.
func (r *request) define(doc string, flags uint32) (ref protocol.NonnullDomain, err error) {
	if err := checkFlags(flags, protocol.DomainDefineValidate); err != nil {
		return ref, err
	}
	def, id, err := r.parse(doc, flags&protocol.DomainDefineValidate != 0)
	if err != nil {
		return ref, err
	}
	c, err := r.drv.claim(r.ctx, r.client, id, def.Name, functionName(r.info))
	if err != nil {
		return ref, err
	}
	defer c.release()
	if err := c.takeRoot(def); err != nil {
		return ref, err
	}
	if err := c.takeDisk(def); err != nil {
		return ref, err
	}
	if err := c.define(def); err != nil {
		return ref, err
	}
	return c.ref(c.view()), nil
}

// claim takes the job of the domain a definition means, adding the domain
// if there is none. The caller must call release.
func (drv *Driver) claim(ctx context.Context, who *client, id protocol.UUID, name, procedure string) (*change, error) {
	for {
		d, err := drv.domains.claim(drv, id, name)
		if err != nil {
			return nil, err
		}
		c, err := d.change(ctx, who, procedure)
		if gone := d.view().removed; gone && err != nil {
			continue // it was undefined while we waited for its job
		}
		if err == nil && c.view().undefined() {
			c.loadSnapshots()
		}
		return c, err
	}
}

// release ends a change and forgets the domain if nothing is left of it: no
// definition and no environment.
func (c *change) release() {
	if v := c.view(); v.config == nil && v.live == nil {
		c.drv.domains.drop(c)
	}
	c.done()
}

func (c *change) define(def *libvirtxml.Domain) error {
	if c.view().config != nil {
		return c.defineAs(def, protocol.DomainEventDefinedUpdated)
	}
	return c.defineAs(def, protocol.DomainEventDefinedAdded)
}

// defineAs saves the definition first: if that fails the old one stays in
// force. The event tells why it was defined.
func (c *change) defineAs(def *libvirtxml.Domain, detail int32) error {
	doc, err := xml.Format(def, xml.FormatOptions{Inactive: true, Secure: true})
	if err != nil {
		return err
	}
	if c.view().config == nil {
		if err := c.drv.store.refuseSkipped(def.Name); err != nil {
			return err
		}
	}
	if err := c.drv.store.saveDefinition(def.Name, doc); err != nil {
		return err
	}
	c.publish(func(v *view) { v.config, v.persistent = def, true })
	if v := c.view(); v.state.active() {
		if err := c.saveStatus(v); err != nil {
			return err
		}
	}
	c.drv.log.Info("domain defined", "domain", def.Name, "uuid", c.uuid)
	c.drv.events.emit(c.domain, lifecycleEvent(protocol.DomainEventDefined, detail))
	return nil
}

// undefine forgets the definition. A running domain becomes transient. The
// private root stays, and so do the layers of snapshots: nothing a user wrote is
// deleted by a default. What is known of snapshots goes only if a flag says so,
// or stays with a running domain.
func undefine(c *change, flags uint32) error {
	if err := c.requirePersistent("undefine"); err != nil {
		return err
	}
	v := c.view()
	snapshots := len(v.snapshots.all)
	if v.state.active() {
		snapshots = 0
	}
	switch { // before anything is gone
	case snapshots > 0 && flags&protocol.DomainUndefineSnapshotsMetadata == 0:
		return errorf(protocol.ErrOperationInvalid, "cannot delete inactive domain with %d snapshots", snapshots)
	case v.saved && flags&protocol.DomainUndefineManagedSave == 0:
		return errorf(protocol.ErrOperationInvalid, "Refusing to undefine while domain managed save image exists")
	}
	if snapshots > 0 {
		if err := c.forgetSnapshots(); err != nil {
			return err
		}
	}
	if v.saved {
		if err := c.dropManagedSave(); err != nil {
			return err
		}
	}
	if err := c.drv.store.removeDefinition(v.name); err != nil {
		return err
	}
	ref := c.ref(v)
	c.publish(func(v *view) {
		v.persistent, v.autostart, v.once = false, false, false
		v.config = nil
	})
	if v.state.active() {
		if err := c.saveStatus(c.view()); err != nil {
			return err
		}
	} else {
		c.drv.domains.drop(c)
	}
	c.drv.log.Info("domain undefined", "domain", v.name, "uuid", c.uuid)
	c.drv.events.emitAs(c.domain, ref, lifecycleEvent(protocol.DomainEventUndefined, protocol.DomainEventUndefinedRemoved))
	return nil
}

// describe gives the definition.
func describe(d *domain, a *protocol.DomainGetXMLDescArgs) (ret protocol.DomainGetXMLDescRet, err error) {
	if err := checkFlags(a.Flags, protocol.DomainXMLSecure, protocol.DomainXMLInactive,
		protocol.DomainXMLUpdateCPU, protocol.DomainXMLMigratable); err != nil {
		return ret, err
	}
	inactive := a.Flags&protocol.DomainXMLInactive != 0
	v := d.view()
	def := v.definition(inactive)
	if a.Flags&protocol.DomainXMLMigratable == 0 {
		if def, err = d.withDisk(def); err != nil {
			return ret, err
		}
	}
	ret.XML, err = xml.Format(def, xml.FormatOptions{
		Inactive:   inactive || v.live == nil,
		Secure:     a.Flags&protocol.DomainXMLSecure != 0,
		Migratable: a.Flags&protocol.DomainXMLMigratable != 0,
	})
	return ret, err
}
