package driver

import (
	"context"
	"errors"
	"slices"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/xml"
)

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

// affected is the definition a question with such flags is about: one.
func (v *view) affected(flags uint32) (def *libvirtxml.Domain, live bool, err error) {
	live, config, err := v.affects(flags &^ protocol.TypedParamStringOkay)
	if err == nil && live && config {
		err = errorf(protocol.ErrInvalidArg, "flags VIR_DOMAIN_AFFECT_LIVE and VIR_DOMAIN_AFFECT_CONFIG exclude each other here")
	}
	return v.definition(config), live, err
}

// tune is an edit by a call with VIR_DOMAIN_AFFECT_* flags; the events are
// those of a change of the running environment.
func (c *change) tune(flags uint32, edit func(*libvirtxml.Domain) error, events ...event) error {
	live, config, err := c.view().affects(flags)
	if err != nil {
		return err
	}
	if err := c.edit(live, config, edit); err != nil || !live {
		return err
	}
	for _, e := range events {
		c.drv.events.emit(c.domain, e)
	}
	return nil
}

// edit changes copies of the running definition, the saved one or both, and
// checks them; then the environment is made what the running one says, both
// are saved, and only then they are in force. Each setter is such an edit and
// nothing else. The change is whole or not at all.
func (c *change) edit(live, config bool, edit func(*libvirtxml.Domain) error) (err error) {
	before := c.view()
	next := *before
	if live {
		if next.live, err = c.edited(before.live, edit); err != nil {
			return err
		}
		next.updated = true
	}
	if config {
		if next.config, err = c.edited(before.config, edit); err != nil {
			return err
		}
	}
	if live {
		defer before.instance.Settle()
		if err := c.realise(before.live, next.live); err != nil {
			return &unrealisedError{err}
		}
		next.live = xml.Live(next.live, liveFacts(before.instance))
	}
	if err := c.saveEdited(&next, live, config); err != nil {
		// A disk that is full takes the old ones, which are not longer, or has
		// them still.
		errs := []error{err}
		if live {
			errs = append(errs, c.controlled(c.realise(next.live, before.live)))
		}
		return errors.Join(append(errs, c.saveEdited(before, live, config))...)
	}
	c.publish(func(v *view) { v.live, v.config, v.updated = next.live, next.config, next.updated })
	return nil
}

// unrealisedError is that of an environment which could not be made what its
// definition was to say.
type unrealisedError struct{ error }

func (e *unrealisedError) Unwrap() error { return e.error }

func (c *change) edited(def *libvirtxml.Domain, edit func(*libvirtxml.Domain) error) (*libvirtxml.Domain, error) {
	next := xml.Copy(def)
	if err := edit(next); err != nil {
		return nil, err
	}
	facts := c.drv.facts()
	facts.Templates = nil // one that is gone since hinders nothing
	if err := xml.Check(next, facts); err != nil {
		return nil, err
	}
	return next, c.allowClone(def, next)
}

// realise makes the running environment what a definition says.
func (c *change) realise(from, to *libvirtxml.Domain) error {
	before, err := xml.NewEnvironment(from)
	if err != nil {
		return err
	}
	after, err := xml.NewEnvironment(to)
	if err != nil {
		return err
	}
	err = c.working(protocol.DomainJobOperationUnknown, func(ctx context.Context, w *work) error {
		return c.view().instance.Tune(ctx, before, after, w.progress)
	})
	if err != nil {
		return err
	}
	known := c.drv.rt.Unanswered(before.Interfaces)
	for _, warning := range c.drv.rt.Unanswered(after.Interfaces) {
		if !slices.Contains(known, warning) {
			c.drv.log.Warn(warning, "domain", to.Name)
		}
	}
	return nil
}

func (c *change) saveEdited(v *view, live, config bool) error {
	if config {
		doc, err := xml.Format(v.config, xml.FormatOptions{Inactive: true, Secure: true})
		if err != nil {
			return err
		}
		if err := c.drv.store.saveDefinition(v.name, doc); err != nil {
			return err
		}
	}
	if live {
		return c.saveStatus(v)
	}
	return nil
}

// tunableEvent tells of changed limits, by names such as "cputune.cpu_shares".
func tunableEvent(params ...protocol.TypedParam) event {
	return event{protocol.DomainEventIDTunable, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		return protocol.DomainEventCallbackTunable.Info,
			&protocol.DomainEventCallbackTunableMsg{CallbackID: cb, Dom: dom, Params: params}
	}}
}
