package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var renaming = table{
	reply(protocol.DomainRename, rename),
}

// rename gives a shut off domain another name.
func rename(c *change, a *protocol.DomainRenameArgs) (ret protocol.DomainRenameRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if err := c.requirePersistent("rename"); err != nil {
		return ret, err
	}
	if c.view().state.active() {
		return ret, errorf(protocol.ErrOperationInvalid, "cannot rename active domain")
	}
	if err := c.refuseSaved("rename"); err != nil {
		return ret, err
	}
	name := text(a.NewName)
	if err := xml.CheckName(name); err != nil {
		return ret, err
	}
	old := c.view()
	if old.name == name {
		return ret, errorf(protocol.ErrOperationInvalid, "new domain name '%s' is the one it has", name)
	}
	def := xml.Copy(old.config)
	def.Name = name
	doc, err := xml.Format(def, xml.FormatOptions{Inactive: true, Secure: true})
	if err != nil {
		return ret, err
	}
	err = c.drv.domains.rename(c, name, def, func() error {
		return c.drv.store.renameDefinition(old.name, name, doc)
	})
	if err != nil {
		return ret, err
	}
	c.drv.log.Info("domain renamed", "domain", name, "was", old.name)
	c.drv.events.emitAs(c.domain, c.ref(old), lifecycleEvent(protocol.DomainEventUndefined, protocol.DomainEventUndefinedRenamed))
	c.drv.events.emit(c.domain, lifecycleEvent(protocol.DomainEventDefined, protocol.DomainEventDefinedRenamed))
	return ret, nil
}
