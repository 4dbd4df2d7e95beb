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
	if c.view().saved && len(files) == 0 && flags&protocol.DomainStartForceBoot == 0 {
		return c.boot(flags)
	}
	if err := c.passOverSaved(flags, "pass descriptors to"); err != nil {
		return err
	}
	return c.start(c.view().config, flags, files, booted)
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
	if err := c.passOverSaved(flags, "create"); err != nil {
		return ref, err
	}
	if err := c.takeDisk(def); err != nil {
		return ref, err
	}
	if err := c.start(def, flags, files, booted); err != nil {
		return ref, err
	}
	return c.ref(c.view()), nil
}

// origin is what an environment starts from, and what clients are told of it.
type origin struct {
	operation          int32 // VIR_DOMAIN_JOB_OPERATION_*
	running, paused    int32 // reason of the state
	started, suspended int32 // detail of the event
	once               bool  // an image that is used up
}

var booted = origin{protocol.DomainJobOperationStart, protocol.DomainRunningBooted, protocol.DomainPausedUser,
	protocol.DomainEventStartedBooted, protocol.DomainEventSuspendedPaused, false}

// start runs a definition and announces it.
func (c *change) start(def *libvirtxml.Domain, flags uint32, files []*os.File, from origin) error {
	paused := flags&protocol.DomainStartPaused != 0
	with := c.destroyer(flags)
	inst, live, err := c.launch(def, runtime.StartOptions{Paused: paused, Files: files}, with)
	if err != nil {
		return err
	}
	c.begun(inst, live, paused, with, from)
	return nil
}

// destroyer is the client with whose connection the domain is to end; nil: it goes
// on.
func (c *change) destroyer(flags uint32) *client {
	if flags&protocol.DomainStartAutodestroy == 0 {
		return nil
	}
	return c.client
}

// begun makes the domain one that has an environment.
func (c *change) begun(inst *runtime.Instance, live *libvirtxml.Domain, paused bool, with *client, from origin) {
	state, reason := Running, from.running
	happened := []event{lifecycleEvent(protocol.DomainEventStarted, from.started)}
	if paused {
		state, reason = Paused, from.paused
		happened = append(happened, lifecycleEvent(protocol.DomainEventSuspended, from.suspended))
	}
	err := c.enter(state, reason, func(v *view) {
		v.instance, v.live, v.autodestroy = inst, live, with
	}, happened...)
	if err != nil {
		c.drv.log.Error("cannot save the status of a started domain", "domain", live.Name, "error", err)
	}
	go c.domain.watch(inst)
}

// launch starts the environment of a definition. The status is saved before
// anything is made, so that a daemon killed meanwhile finds the definition of
// what it then has to adopt; on failure nothing of either remains.
func (c *change) launch(def *libvirtxml.Domain, o runtime.StartOptions, with *client) (*runtime.Instance, *libvirtxml.Domain, error) {
	return c.launchWith(def, view{state: Running, autodestroy: with}, func(env *xml.Environment) (*runtime.Instance, error) { return c.drv.rt.Start(c.ctx, env, o) })
}

// launchWith is launch by start. A daemon killed meanwhile finds the domain in
// the state that as has.
func (c *change) launchWith(def *libvirtxml.Domain, as view, start func(*xml.Environment) (*runtime.Instance, error)) (*runtime.Instance, *libvirtxml.Domain, error) {
	env, err := xml.NewEnvironment(def)
	if err != nil {
		return nil, nil, err
	}
	runtime.AtStep("status")
	v := c.view()
	as.name, as.live, as.persistent, as.restarting = def.Name, def, v.persistent, v.restarting
	if err := c.saveStatus(&as); err != nil {
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
