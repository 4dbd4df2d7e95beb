package driver

import (
	"virtvzd/driver/protocol"
)

var autostarting = table{
	get(protocol.DomainGetAutostart, func(d *domain, _ *protocol.DomainGetAutostartArgs) (protocol.DomainGetAutostartRet, error) {
		return protocol.DomainGetAutostartRet{Autostart: number(d.view().autostart)}, nil
	}),
	get(protocol.DomainGetAutostartOnce, func(d *domain, _ *protocol.DomainGetAutostartOnceArgs) (protocol.DomainGetAutostartOnceRet, error) {
		return protocol.DomainGetAutostartOnceRet{Autostart: number(d.view().once)}, nil
	}),
	modify(protocol.DomainSetAutostart, func(c *change, a *protocol.DomainSetAutostartArgs) error {
		on := a.Autostart != 0
		return c.setAutostart(c.drv.store.autostartLink(c.view().name), on, func(v *view) { v.autostart = on })
	}),
	modify(protocol.DomainSetAutostartOnce, func(c *change, a *protocol.DomainSetAutostartOnceArgs) error {
		on := a.Autostart != 0
		return c.setAutostart(c.drv.store.onceLink(c.view().name), on, func(v *view) { v.once = on })
	}),
}

func (c *change) setAutostart(link string, on bool, edit func(*view)) error {
	if !c.view().persistent {
		return errorf(protocol.ErrOperationInvalid, "cannot set autostart for transient domain")
	}
	if err := c.drv.store.setLink(link, c.view().name, on); err != nil {
		return err
	}
	c.publish(edit)
	return nil
}

// startMarked starts what is marked for the host's start, in the order of
// names. A domain that cannot start does not keep the others back.
func (drv *Driver) startMarked() {
	for _, d := range drv.domains.all() {
		if v := d.view(); !v.autostart && !v.once || v.state.active() {
			continue
		}
		c := d.changeAlways("autostart")
		if err := c.startMarked(); err != nil {
			drv.log.Error("cannot autostart", "domain", c.view().name, "error", err)
		}
		c.done()
	}
}

func (c *change) startMarked() error {
	v := c.view()
	if v.removed || v.state.active() || v.config == nil {
		return nil
	}
	if err := c.drv.rt.RefuseLeft(c.uuid); err != nil {
		return err // it is started if it turns out not to run there
	}
	if v.once {
		if err := c.setAutostart(c.drv.store.onceLink(v.name), false, func(v *view) { v.once = false }); err != nil {
			return err
		}
	}
	if v.saved {
		return c.boot(0)
	}
	return c.start(v.config, 0, nil, booted)
}

// number is a truth value on the wire.
func number(b bool) int32 {
	if b {
		return 1
	}
	return 0
}
