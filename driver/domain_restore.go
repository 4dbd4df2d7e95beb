package driver

import (
	"context"
	"errors"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
	"virtvzd/xml"
)

var restoring = table{
	call(protocol.DomainRestore, func(r *request, a *protocol.DomainRestoreArgs) (v xdr.Void, err error) {
		return v, r.restore(a.From, nil, 0)
	}),
	call(protocol.DomainRestoreFlags, func(r *request, a *protocol.DomainRestoreFlagsArgs) (v xdr.Void, err error) {
		return v, r.restore(a.From, a.Dxml, a.Flags)
	}),
	call(protocol.DomainRestoreParams, func(r *request, a *protocol.DomainRestoreParamsArgs) (v xdr.Void, err error) {
		p, err := readSaveParams(a.Params)
		if err != nil {
			return v, err
		}
		return v, r.restore(p.file, p.dxml, a.Flags)
	}),
	call(protocol.DomainSaveImageGetXMLDesc, func(r *request, a *protocol.DomainSaveImageGetXMLDescArgs) (ret protocol.DomainSaveImageGetXMLDescRet, err error) {
		if err := checkFlags(a.Flags, protocol.DomainSaveImageXMLSecure); err != nil {
			return ret, err
		}
		ret.XML, err = r.describeSaved(a.File, a.Flags&protocol.DomainSaveImageXMLSecure != 0)
		return ret, err
	}),
	call(protocol.DomainSaveImageDefineXML, func(r *request, a *protocol.DomainSaveImageDefineXMLArgs) (v xdr.Void, err error) {
		return v, r.redefineSaved(a.File, a.Dxml, a.Flags)
	}),
	query(protocol.DomainManagedSaveGetXMLDesc, func(r *request, d *domain, a *protocol.DomainManagedSaveGetXMLDescArgs) (ret protocol.DomainManagedSaveGetXMLDescRet, err error) {
		if err := checkFlags(a.Flags, protocol.DomainSaveImageXMLSecure); err != nil {
			return ret, err
		}
		if err := d.requireSaved(); err != nil {
			return ret, err
		}
		ret.XML, err = r.describeSaved(r.drv.rt.ManagedSave(d.view().name), a.Flags&protocol.DomainSaveImageXMLSecure != 0)
		return ret, err
	}),
	modifyWith(protocol.DomainManagedSaveDefineXML, func(r *request, c *change, a *protocol.DomainManagedSaveDefineXMLArgs) (v xdr.Void, err error) {
		if err := c.requireSaved(); err != nil {
			return v, err
		}
		return v, r.redefineSaved(r.drv.rt.ManagedSave(c.view().name), text(a.Dxml), a.Flags)
	}),
}

func (d *domain) requireSaved() error {
	if !d.view().saved {
		return errorf(protocol.ErrOperationInvalid, "domain '%s' does not have a managed save image", d.view().name)
	}
	return nil
}

// openSaved reads an image's header, and its definition with the access check on
// the name and UUID it claims.
func (r *request) openSaved(path string) (h runtime.SavedHeader, def *libvirtxml.Domain, err error) {
	if err := checkPath(path); err != nil {
		return h, nil, err
	}
	if h, err = runtime.ReadSaved(path); err != nil {
		return h, nil, errorf(protocol.ErrOperationFailed, "%v", err)
	}
	facts := r.drv.facts()
	facts.Templates = nil
	def, err = xml.Parse(h.XML, facts, xml.ParseOptions{
		Stored: true,
		Allow:  func(name string, id [16]byte) error { return r.allowNew(name, protocol.UUID(id)) },
	})
	return h, def, err
}

func (r *request) describeSaved(path string, secure bool) (string, error) {
	_, def, err := r.openSaved(path)
	if err != nil {
		return "", err
	}
	return xml.Format(def, xml.FormatOptions{Inactive: true, Secure: secure})
}

// redefineSaved changes the definition in an image, and how it goes on.
func (r *request) redefineSaved(path, doc string, flags uint32) error {
	if err := checkFlags(flags, protocol.DomainSaveRunning, protocol.DomainSavePaused); err != nil {
		return err
	}
	_, old, err := r.openSaved(path)
	if err != nil {
		return err
	}
	def, err := r.drv.savedDefinition(doc, old)
	if err != nil {
		return err
	}
	if doc, err = xml.Format(def, xml.FormatOptions{Inactive: true, Secure: true}); err != nil {
		return err
	}
	return runtime.EditSaved(path, func(h *runtime.SavedHeader) (err error) {
		h.XML = doc
		h.Paused, err = pausedAfter(flags, h.Paused)
		return err
	})
}

// restore starts a domain from an image; one that was not known is transient.
func (r *request) restore(path string, dxml *string, flags uint32) error {
	if err := checkFlags(flags, saveFlags...); err != nil {
		return err
	}
	h, def, err := r.openSaved(path)
	if err != nil {
		return err
	}
	if text(dxml) != "" {
		if def, err = r.drv.savedDefinition(*dxml, def); err != nil {
			return err
		}
	}
	paused, err := pausedAfter(flags, h.Paused)
	if err != nil {
		return err
	}
	id, err := protocol.ParseUUID(def.UUID)
	if err != nil {
		return err
	}
	c, err := r.drv.claim(r.ctx, r.client, id, def.Name, functionName(r.info))
	if err != nil {
		return err
	}
	defer c.release()
	if c.view().state.active() {
		return errorf(protocol.ErrOperationInvalid, "domain '%s' is already active", def.Name)
	}
	if err := errors.Join(c.refuseSaved("restore"), c.allowClone(c.view().config, def)); err != nil {
		return err
	}
	return c.restoreFrom(path, def, paused, nil, fromImage)
}

var (
	fromImage = origin{protocol.DomainJobOperationRestore, protocol.DomainRunningRestored, protocol.DomainPausedUser,
		protocol.DomainEventStartedRestored, protocol.DomainEventSuspendedRestored, false}
	fromManagedSave = origin{protocol.DomainJobOperationRestore, protocol.DomainRunningRestored, protocol.DomainPausedUser,
		protocol.DomainEventStartedRestored, protocol.DomainEventSuspendedRestored, true}
	fromSnapshot = origin{protocol.DomainJobOperationSnapshotRevert, protocol.DomainRunningFromSnapshot, protocol.DomainPausedFromSnapshot,
		protocol.DomainEventStartedFromSnapshot, protocol.DomainEventSuspendedFromSnapshot, false}
)

// boot starts a defined domain from its managed save image.
func (c *change) boot(flags uint32) error {
	v := c.view()
	path := c.drv.rt.ManagedSave(v.name)
	def, h, err := c.savedOwn(path)
	if err != nil {
		return errorf(protocol.ErrOperationFailed, "%v; 'virsh start --force-boot %s' starts without it", err, v.name)
	}
	return c.restoreFrom(path, def, h.Paused || flags&protocol.DomainStartPaused != 0, c.destroyer(flags), fromManagedSave)
}

// savedOwn reads the definition in an image that the daemon made for itself.
func (c *change) savedOwn(path string) (*libvirtxml.Domain, runtime.SavedHeader, error) {
	h, err := runtime.ReadSaved(path)
	if err != nil {
		return nil, h, err
	}
	facts := c.drv.facts()
	facts.Templates = nil
	def, err := xml.Parse(h.XML, facts, xml.ParseOptions{Stored: true})
	return def, h, err
}

// restoreFrom starts an environment from an image. One that is used up is gone
// before the processes run: with the disk that they change it does not go
// together any more.
func (c *change) restoreFrom(path string, def *libvirtxml.Domain, paused bool, with *client, from origin) error {
	as := view{state: Running, autodestroy: with}
	if from.once && !paused {
		as.state, as.reason = Paused, protocol.DomainPausedStartingUp
	}
	var inst *runtime.Instance
	var live *libvirtxml.Domain
	err := c.working(from.operation, func(ctx context.Context, w *work) (err error) {
		inst, live, err = c.launchWith(def, as, func(env *xml.Environment) (*runtime.Instance, error) {
			inst, err := c.drv.rt.Restore(ctx, env, path, paused || from.once, w.progress)
			if err == nil && from.once {
				err = c.useUp(inst)
			}
			return inst, err
		})
		return err
	})
	if errors.As(err, new(*runtime.NotSavedError)) {
		return errorf(protocol.ErrOperationFailed, "%v", err)
	}
	if err != nil {
		return unsupportedMode(err)
	}
	if from.once && !paused {
		if err = inst.Resume(c.ctx); err != nil {
			paused = true // and nothing is lost
			err = errorf(protocol.ErrOperationFailed, "domain '%s' is paused, and 'virsh resume' lets it go on: %v", def.Name, err)
		}
	}
	c.begun(inst, live, paused, with, from)
	return err
}

// useUp removes the managed save image, from which inst was made that has not run
// yet. After an error the image is there, and of inst nothing.
func (c *change) useUp(inst *runtime.Instance) error {
	err := runtime.AtStep("restored")
	if err == nil {
		err = c.dropManagedSave()
	}
	if err != nil {
		return errors.Join(err, inst.Kill(c.ctx), inst.Release(c.ctx))
	}
	runtime.AtStep("used up")
	return nil
}
