package driver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

var saving = table{
	modify(protocol.DomainSave, func(c *change, a *protocol.DomainSaveArgs) error {
		return c.saveTo(a.To, nil, 0)
	}),
	modify(protocol.DomainSaveFlags, func(c *change, a *protocol.DomainSaveFlagsArgs) error {
		return c.saveTo(a.To, a.Dxml, a.Flags)
	}),
	modify(protocol.DomainSaveParams, func(c *change, a *protocol.DomainSaveParamsArgs) error {
		p, err := readSaveParams(a.Params)
		if err != nil {
			return err
		}
		return c.saveTo(p.file, p.dxml, a.Flags)
	}),
	modify(protocol.DomainManagedSave, managedSave),
	modify(protocol.DomainManagedSaveRemove, func(c *change, a *protocol.DomainManagedSaveRemoveArgs) error {
		if err := checkFlags(a.Flags); err != nil {
			return err
		}
		return c.dropManagedSave()
	}),
	get(protocol.DomainHasManagedSaveImage, func(d *domain, a *protocol.DomainHasManagedSaveImageArgs) (ret protocol.DomainHasManagedSaveImageRet, err error) {
		ret.Result = number(d.view().saved)
		return ret, checkFlags(a.Flags)
	}),
}

// saveFlags are those of virDomainSaveRestoreFlags that mean something for an
// environment. What is written does not stay in the page cache in any case.
var saveFlags = []uint32{protocol.DomainSaveBypassCache, protocol.DomainSaveRunning, protocol.DomainSavePaused}

type saveParams struct {
	file string
	dxml *string
}

func readSaveParams(list []protocol.TypedParam) (p saveParams, err error) {
	var dxml string
	given, err := readParams(list, map[string]any{protocol.DomainSaveParamFile: &p.file, protocol.DomainSaveParamDxml: &dxml})
	if err != nil {
		return p, err
	}
	if p.file == "" {
		return p, errorf(protocol.ErrInvalidArg, "the parameter '%s' is missing: name the image's file", protocol.DomainSaveParamFile)
	}
	if given[protocol.DomainSaveParamDxml] {
		p.dxml = &dxml
	}
	return p, nil
}

// checkPath wants a path of the daemon's host, as virDomainSave makes it.
func checkPath(path string) error {
	if !filepath.IsAbs(path) {
		return errorf(protocol.ErrInvalidArg, "'%s' is not an absolute path", path)
	}
	return nil
}

func managedSave(c *change, a *protocol.DomainManagedSaveArgs) error {
	if err := c.requireActive(); err != nil {
		return err
	}
	if !c.view().persistent {
		return errorf(protocol.ErrOperationInvalid, "cannot do managed save for transient domain")
	}
	return c.saveTo(c.drv.rt.ManagedSave(c.view().name), nil, a.Flags)
}

// saveTo writes the environment with its processes to a file, and ends it. If
// that fails it goes on.
func (c *change) saveTo(path string, dxml *string, flags uint32) error {
	if err := errors.Join(checkFlags(flags, saveFlags...), c.requireActive(), checkPath(path)); err != nil {
		return err
	}
	v := c.view()
	paused, err := pausedAfter(flags, v.state == Paused)
	if err != nil {
		return err
	}
	def := v.live
	if text(dxml) != "" {
		if def, err = c.drv.savedDefinition(*dxml, v.live); err != nil {
			return err
		}
	}
	doc, err := xml.Format(def, xml.FormatOptions{Migratable: true, Secure: true})
	if err != nil {
		return err
	}
	env, err := xml.NewEnvironment(v.live)
	if err != nil {
		return err
	}
	held, err := c.holdSeen(protocol.DomainPausedSave, true)
	if err != nil {
		return err
	}
	header := runtime.SavedHeader{Name: v.name, XML: doc, Paused: paused}
	err = c.working(protocol.DomainJobOperationSave, func(ctx context.Context, w *work) error {
		return v.instance.Save(ctx, path, header, env.Interfaces, w.progress)
	})
	if err != nil {
		if held {
			err = errors.Join(err, c.enter(Running, protocol.DomainRunningSaveCanceled, nil, lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedUnpaused)))
		}
		return unsupportedMode(err)
	}
	return c.endSaved(v.instance)
}

// holdSeen has clients see that an environment is paused that is about to be
// checkpointed, if it can be; its processes stop when all is ready. whole is
// Savable's.
func (c *change) holdSeen(reason int32, whole bool) (held bool, err error) {
	if err := c.view().instance.Savable(c.ctx, whole); err != nil {
		return false, unsupportedMode(err)
	}
	if c.view().state != Running {
		return false, nil
	}
	return true, c.enter(Paused, reason, nil, lifecycleEvent(protocol.DomainEventSuspended, protocol.DomainEventSuspendedPaused))
}

// finishSave does what is left of a save in which an earlier daemon was killed.
func (c *change) finishSave() error {
	v := c.view()
	env, err := xml.NewEnvironment(v.live)
	if err != nil {
		return err
	}
	saved, err := v.instance.FinishSave(c.ctx, env.Interfaces)
	if err != nil {
		return err
	}
	if saved {
		return c.endSaved(v.instance)
	}
	if v.state != Paused {
		return nil
	}
	if frozen, err := v.instance.Frozen(); err != nil || frozen || !v.instance.Started() {
		return err
	}
	return c.enter(Running, protocol.DomainRunningSaveCanceled, nil, lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedUnpaused))
}

// endSaved ends an environment of which there is an image.
func (c *change) endSaved(inst *runtime.Instance) error {
	c.lookForSaved()
	if err := c.controlled(inst.Kill(c.ctx)); err != nil {
		return err
	}
	return c.stopped(inst, protocol.DomainShutoffSaved, protocol.DomainEventStoppedSaved)
}

// pausedAfter tells how an environment goes on that was paused or was not.
func pausedAfter(flags uint32, was bool) (bool, error) {
	running, paused := flags&protocol.DomainSaveRunning != 0, flags&protocol.DomainSavePaused != 0
	if running && paused {
		return false, errorf(protocol.ErrInvalidArg, "flags 'running' and 'paused' are mutually exclusive")
	}
	return paused || was && !running, nil
}

// savedDefinition reads a definition that is to be used for another's processes.
func (drv *Driver) savedDefinition(doc string, of *libvirtxml.Domain) (*libvirtxml.Domain, error) {
	facts := drv.facts()
	facts.Templates = nil
	def, err := xml.Parse(doc, facts, xml.ParseOptions{})
	if err != nil {
		return nil, err
	}
	if def.Name != of.Name || def.UUID != of.UUID {
		return nil, errorf(protocol.ErrConfigUnsupported, "the definition is of '%s' (%s) and not of '%s' (%s)", def.Name, def.UUID, of.Name, of.UUID)
	}
	if clone := cloneOf(def); clone != [16]byte{} && clone != cloneOf(of) {
		return nil, errorf(protocol.ErrConfigUnsupported, "the definition asks for the disk of %s, which would not be that of the processes: take <disk:disk> and <ve:clone> out of it", protocol.UUID(clone))
	}
	return def, nil
}

// lookForSaved notes whether the next start goes on from an image.
func (c *change) lookForSaved() {
	if c.drv.rt == nil {
		return
	}
	_, err := os.Lstat(c.drv.rt.ManagedSave(c.view().name))
	c.publish(func(v *view) { v.saved = err == nil })
}

// dropManagedSave forgets the processes that the next start would go on with.
func (c *change) dropManagedSave() error {
	image := c.drv.rt.ManagedSave(c.view().name)
	err := os.Remove(image)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil { // it must not be back after the host lost its power
		if err := syncDir(filepath.Dir(image)); err != nil {
			c.drv.log.Warn("a managed save image may be there again after a crash of the host", "image", image, "error", err)
		}
	}
	c.publish(func(v *view) { v.saved = false })
	return nil
}

// passOverSaved is for a start that is not from the managed save image: it has to
// go, if that was asked for, and keeps it from starting otherwise. So does that
// the domain was sent to another host.
func (c *change) passOverSaved(flags uint32, what string) error {
	if flags&protocol.DomainStartForceBoot == 0 {
		return c.refuseSaved(what)
	}
	if _, err := c.forgetLeft("it is said not to run there"); err != nil {
		return err
	}
	if c.view().saved {
		return c.dropManagedSave()
	}
	return nil
}

// refuseSaved is for what would pull the disk away from under saved processes.
func (c *change) refuseSaved(what string) error {
	if c.view().saved {
		return errorf(protocol.ErrOperationInvalid, "cannot %s domain '%s' while it has a managed save image: start it, or remove that with 'virsh managedsave-remove'", what, c.view().name)
	}
	return nil
}
