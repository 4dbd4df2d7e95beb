package driver

import (
	"os"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

var starting = table{
	modify(protocol.DomainCreate, func(c *change, _ *protocol.DomainCreateArgs) error {
		return c.create(0, nil)
	}),
	reply(protocol.DomainCreateWithFlags, func(c *change, a *protocol.DomainCreateWithFlagsArgs) (ret protocol.DomainCreateWithFlagsRet, err error) {
		err = c.create(a.Flags, nil)
		return protocol.DomainCreateWithFlagsRet{Dom: c.ref(c.view())}, err
	}),
	modifyWith(protocol.DomainCreateWithFiles, func(r *request, c *change, a *protocol.DomainCreateWithFilesArgs) (ret protocol.DomainCreateWithFilesRet, err error) {
		err = c.create(a.Flags, r.call.Files)
		return protocol.DomainCreateWithFilesRet{Dom: c.ref(c.view())}, err
	}),
	call(protocol.DomainCreateXML, func(r *request, a *protocol.DomainCreateXMLArgs) (ret protocol.DomainCreateXMLRet, err error) {
		ret.Dom, err = r.createXML(a.XMLDesc, a.Flags, nil)
		return ret, err
	}),
	call(protocol.DomainCreateXMLWithFiles, func(r *request, a *protocol.DomainCreateXMLWithFilesArgs) (ret protocol.DomainCreateXMLWithFilesRet, err error) {
		ret.Dom, err = r.createXML(a.XMLDesc, a.Flags, r.call.Files)
		return ret, err
	}),
}

// startFlags are those of virDomainCreateFlags.
var startFlags = []uint32{
	protocol.DomainStartPaused, protocol.DomainStartAutodestroy,
	protocol.DomainStartBypassCache, protocol.DomainStartForceBoot,
}

// create starts a defined domain.
func (c *change) create(flags uint32, files []*os.File) error {
	if err := checkFlags(flags, startFlags...); err != nil {
		return err
	}
	if err := c.requireInactive(); err != nil {
		return err
	}
	if c.view().saved && len(files) == 0 {
		return c.boot(flags)
	}
	return c.start(c.view().config, flags, files)
}

// createXML starts a transient domain, or a persistent one from another
// definition.
func (r *request) createXML(doc string, flags uint32, files []*os.File) (ref protocol.NonnullDomain, err error) {
	if err := checkFlags(flags, append(startFlags, protocol.DomainStartValidate)...); err != nil {
		return ref, err
	}
	def, id, err := r.parse(doc, flags&protocol.DomainStartValidate != 0)
	if err != nil {
		return ref, err
	}
	c, err := r.drv.claim(r.ctx, r.client, id, def.Name, functionName(r.info))
	if err != nil {
		return ref, err
	}
	defer c.release()
	if c.view().state.active() {
		return ref, errorf(protocol.ErrOperationInvalid, "domain '%s' is already active", def.Name)
	}
	if err := c.takeDisk(def); err != nil {
		return ref, err
	}
	if err := c.start(def, flags, files); err != nil {
		return ref, err
	}
	return c.ref(c.view()), nil
}

// start runs a definition and announces it.
func (c *change) start(def *libvirtxml.Domain, flags uint32, files []*os.File) error {
	paused := flags&protocol.DomainStartPaused != 0
	inst, live, err := c.launch(def, runtime.StartOptions{Paused: paused, Files: files})
	if err != nil {
		return err
	}
	state, reason := Running, int32(protocol.DomainRunningBooted)
	happened := []event{lifecycleEvent(protocol.DomainEventStarted, protocol.DomainEventStartedBooted)}
	if paused {
		state, reason = Paused, protocol.DomainPausedUser
		happened = append(happened, lifecycleEvent(protocol.DomainEventSuspended, protocol.DomainEventSuspendedPaused))
	}
	err = c.enter(state, reason, func(v *view) {
		v.instance, v.live = inst, live
		if flags&protocol.DomainStartAutodestroy != 0 {
			v.autodestroy = c.client
		}
	}, happened...)
	if err != nil {
		c.drv.log.Error("cannot save the status of a started domain", "domain", def.Name, "error", err)
	}
	go c.domain.watch(inst)
	return nil
}

// launch starts the environment of a definition. The status is saved before
// anything is made, so that a daemon killed meanwhile finds the definition of
// what it then has to adopt; on failure nothing of either remains.
func (c *change) launch(def *libvirtxml.Domain, o runtime.StartOptions) (*runtime.Instance, *libvirtxml.Domain, error) {
	return c.launchWith(def, func(env *xml.Environment) (*runtime.Instance, error) { return c.drv.rt.Start(c.ctx, env, o) })
}

func (c *change) launchWith(def *libvirtxml.Domain, start func(*xml.Environment) (*runtime.Instance, error)) (*runtime.Instance, *libvirtxml.Domain, error) {
	env, err := xml.NewEnvironment(def)
	if err != nil {
		return nil, nil, err
	}
	runtime.AtStep("status")
	v := c.view()
	if err := c.saveStatus(&view{name: def.Name, state: Running, persistent: v.persistent, live: def, restarting: v.restarting}); err != nil {
		return nil, nil, err
	}
	for _, warning := range xml.Unrealised(def, c.drv.facts()) {
		c.drv.log.Warn(warning, "domain", def.Name)
	}
	inst, err := start(env)
	if err != nil {
		runtime.AtStep("undo status")
		if cleanup := c.drv.store.removeStatus(c.uuid); cleanup != nil {
			c.drv.log.Error("cannot remove the status of a failed start", "domain", def.Name, "error", cleanup)
		}
		return nil, nil, err
	}
	for _, warning := range append(inst.Warnings(), c.drv.rt.Unanswered(env.Interfaces)...) {
		c.drv.log.Warn(warning, "domain", def.Name)
	}
	return inst, xml.Live(def, liveFacts(inst)), nil
}

// liveFacts are what only the running environment can tell of itself.
func liveFacts(inst *runtime.Instance) xml.LiveFacts {
	facts := xml.LiveFacts{ID: inst.Init(), IDMap: inst.IDMap(), Consoles: map[string]string{}, Interfaces: map[string]xml.InterfaceFacts{}}
	for _, c := range inst.Consoles() {
		facts.Consoles[c.ID()] = c.Path()
	}
	for _, l := range inst.Links() {
		facts.Interfaces[l.ID] = xml.InterfaceFacts{Target: l.Host, Guest: l.Guest, Bridge: l.Bridge, Port: l.Port}
	}
	return facts
}
