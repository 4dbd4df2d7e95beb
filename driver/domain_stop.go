package driver

import (
	"context"
	"errors"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

var stopping = table{
	modify(protocol.DomainShutdown, func(c *change, _ *protocol.DomainShutdownArgs) error {
		return c.ask(0, false)
	}),
	modify(protocol.DomainShutdownFlags, func(c *change, a *protocol.DomainShutdownFlagsArgs) error {
		return c.ask(a.Flags, false)
	}),
	modify(protocol.DomainReboot, func(c *change, a *protocol.DomainRebootArgs) error {
		return c.ask(a.Flags, true)
	}),
	modify(protocol.DomainReset, reset),
	modify(protocol.DomainDestroy, func(c *change, _ *protocol.DomainDestroyArgs) error {
		return c.destroy(0)
	}),
	modify(protocol.DomainDestroyFlags, func(c *change, a *protocol.DomainDestroyFlagsArgs) error {
		return c.destroy(a.Flags)
	}),
}

// modes are the ways of asking an init to stop, in the order in which
// libvirt's drivers try several that were given together. The numbers of
// virDomainShutdownFlagValues and virDomainRebootFlagValues are the same.
var modes = []struct {
	flag uint32
	mode runtime.ShutdownMode
}{
	{protocol.DomainShutdownInitctl, runtime.ShutdownInitctl},
	{protocol.DomainShutdownSignal, runtime.ShutdownSignal},
	{protocol.DomainShutdownGuestAgent, runtime.ShutdownDefault}, // the daemon is the agent
	{protocol.DomainShutdownParavirt, runtime.ShutdownParavirt},
	{protocol.DomainShutdownAcpiPowerBtn, runtime.ShutdownDefault},
}

// ask tells init to power off or reboot. What it makes of that shows when it
// exits.
func (c *change) ask(flags uint32, reboot bool) error {
	var known uint32
	for _, m := range modes {
		known |= uint32(m.flag)
	}
	if err := checkFlags(flags, known); err != nil {
		return err
	}
	if err := c.requireActive(); err != nil {
		return err
	}
	v := c.view()
	if v.state == Paused {
		return errorf(protocol.ErrOperationInvalid, "domain is paused and cannot hear a shutdown request: resume it first, or destroy it")
	}
	if err := c.askInit(v.instance, flags, reboot); err != nil {
		return unsupportedMode(err)
	}
	c.publish(func(v *view) { v.rebooting = reboot })
	return c.save()
}

// askInit tries the ways that flags name, or the usual one.
func (c *change) askInit(inst *runtime.Instance, flags uint32, reboot bool) (err error) {
	if flags == 0 {
		return inst.Shutdown(c.ctx, runtime.ShutdownDefault, reboot)
	}
	for _, m := range modes {
		if flags&m.flag != 0 {
			if err = inst.Shutdown(c.ctx, m.mode, reboot); err == nil {
				return nil
			}
		}
	}
	return err
}

func unsupportedMode(err error) error {
	if errors.Is(err, runtime.ErrUnsupported) {
		return errorf(protocol.ErrOperationUnsupported, "%v", err)
	}
	return err
}

// gracePeriod is how long a graceful destroy waits for the environment to
// end by itself, as libvirt waits for SIGTERM to work
// (util/virprocess.c, virProcessKillPainfully).
const gracePeriod = 15 * time.Second

// destroy ends an environment at once; with GRACEFUL it asks, and fails
// rather than kill.
func (c *change) destroy(flags uint32) error {
	if err := checkFlags(flags, protocol.DomainDestroyGraceful, protocol.DomainDestroyRemoveLogs); err != nil {
		return err
	}
	if err := c.requireActive(); err != nil {
		return err
	}
	inst := c.view().instance
	if flags&protocol.DomainDestroyGraceful != 0 {
		if err := c.endGracefully(inst); err != nil {
			return err
		}
	} else if err := c.controlled(inst.Kill(c.ctx)); err != nil {
		return err
	}
	return c.stopped(inst, protocol.DomainShutoffDestroyed, protocol.DomainEventStoppedDestroyed)
}

func (c *change) endGracefully(inst *runtime.Instance) error {
	if err := inst.Shutdown(c.ctx, runtime.ShutdownDefault, false); err != nil {
		return unsupportedMode(err)
	}
	select {
	case <-inst.Exited():
		return nil
	case <-time.After(gracePeriod):
		return errorf(protocol.ErrOperationFailed,
			"the environment did not end within %s of being asked to: destroy it without --graceful", gracePeriod)
	}
}

// controlled passes an error on and tells clients that control is lost.
func (c *change) controlled(err error) error {
	if err != nil {
		c.drv.events.emit(c.domain, controlErrorEvent())
	}
	return err
}

// stopped puts away what is left of an environment that ended and makes the
// domain shut off; a transient one is gone with it.
func (c *change) stopped(inst *runtime.Instance, reason int32, detail int32) error {
	// The rest is cleaned at the next start of the domain or of the daemon.
	if err := c.controlled(inst.Release(c.ctx)); err != nil {
		c.drv.log.Error("cannot clean up after an environment", "domain", c.view().name, "error", err)
	}
	err := c.enter(Shutoff, reason, func(v *view) {
		v.instance, v.live, v.autodestroy = nil, nil, nil
		v.updated, v.rebooting, v.restarts = false, false, 0
	}, lifecycleEvent(protocol.DomainEventStopped, int32(detail)))
	if v := c.view(); !v.persistent {
		c.drv.domains.drop(c)
	}
	return err
}

// reset starts init again from nothing, without asking it.
func reset(c *change, a *protocol.DomainResetArgs) error {
	if err := checkFlags(a.Flags); err != nil {
		return err
	}
	if err := c.requireActive(); err != nil {
		return err
	}
	inst := c.view().instance
	if err := c.controlled(inst.Kill(c.ctx)); err != nil {
		return err
	}
	return c.restart(inst)
}

// restart runs the same definition again after its environment ended. For
// clients the domain was running all the time and rebooted.
func (c *change) restart(inst *runtime.Instance) error {
	if err := c.controlled(inst.Release(c.ctx)); err != nil {
		return errors.Join(err, c.stopped(inst, protocol.DomainShutoffFailed, protocol.DomainEventStoppedFailed))
	}
	next, live, err := c.launch(c.view().live, runtime.StartOptions{})
	if err != nil {
		return errors.Join(err, c.stopped(inst, protocol.DomainShutoffFailed, protocol.DomainEventStoppedFailed))
	}
	err = c.enter(Running, protocol.DomainRunningBooted, func(v *view) {
		v.instance, v.live, v.rebooting = next, live, false
	}, rebootEvent())
	go c.domain.watch(next)
	return err
}

// watch waits for an environment to end by itself and does what the
// definition says for the way it ended.
func (d *domain) watch(inst *runtime.Instance) {
	for ended := false; !ended; {
		select {
		case <-inst.Exited():
			ended = true
		case <-inst.OutOfMemory():
			d.drv.log.Warn("the environment reached its memory limit and a process inside was killed", "domain", d.view().name)
			d.drv.events.emit(d, memoryFailureEvent())
		}
	}
	c := d.changeAlways("guest")
	defer c.done()
	if c.view().instance != inst {
		return // destroyed or reset meanwhile: that change saw to the rest
	}
	if err := c.ended(inst); err != nil {
		d.drv.log.Error("cannot finish what the end of an environment asks for", "domain", c.view().name, "error", err)
	}
}

// memoryFailureEvent tells that a process inside was killed for want of
// memory; the environment goes on.
func memoryFailureEvent() event {
	return event{protocol.DomainEventIDMemoryFailure, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		return protocol.DomainEventMemoryFailure.Info, &protocol.DomainEventMemoryFailureMsg{
			CallbackID: cb, Dom: dom,
			Recipient: protocol.DomainEventMemoryFailureRecipientGuest, Action: protocol.DomainEventMemoryFailureActionInject,
		}
	}}
}

// ended carries out <on_poweroff>, <on_reboot> or <on_crash>.
func (c *change) ended(inst *runtime.Instance) error {
	exit, def := inst.Exit(), c.view().live
	reason, detail, action := int32(protocol.DomainShutoffShutdown), int32(protocol.DomainEventStoppedShutdown), def.OnPoweroff
	if exit.Cause == runtime.ExitUnknown && c.view().rebooting {
		// Before 6.15 the kernel tells only its parent how an init ended, and
		// that was the daemon before this one: go by what init was asked.
		exit.Cause = runtime.ExitReboot
	}
	switch exit.Cause {
	case runtime.ExitReboot:
		action = orElse(def.OnReboot, "restart")
	case runtime.ExitCrash, runtime.ExitKilled:
		reason, detail, action = protocol.DomainShutoffCrashed, protocol.DomainEventStoppedCrashed, def.OnCrash
	case runtime.ExitUnknown:
		reason, detail, action = protocol.DomainShutoffUnknown, protocol.DomainEventStoppedShutdown, ""
	}
	c.drv.log.Info("environment ended", "domain", c.view().name, "cause", exit.Cause, "action", orElse(action, "destroy"))
	switch action {
	case "restart", "rename-restart", "coredump-restart":
		if c.countRestart(inst) {
			return c.restart(inst)
		}
		c.drv.log.Error("environment keeps ending at once and is not restarted any more", "domain", c.view().name, "cause", exit.Cause)
		reason, detail = protocol.DomainShutoffFailed, protocol.DomainEventStoppedFailed
	}
	return c.stopped(inst, reason, detail)
}

// An init that ends as soon as it starts would keep the host busy for ever.
const (
	soon        = 5 * time.Second
	maxRestarts = 5
)

// countRestart tells whether the environment may be restarted once more.
func (c *change) countRestart(inst *runtime.Instance) bool {
	n := 0
	if time.Since(inst.StartedAt()) < soon {
		n = c.view().restarts + 1
	}
	c.publish(func(v *view) { v.restarts = n })
	return n <= maxRestarts
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// changeAlways takes the job however long that takes: for what has happened
// already and cannot be refused.
func (d *domain) changeAlways(procedure string) *change {
	for {
		if err := d.job.begin(context.Background(), procedure); err == nil {
			return &change{domain: d, ctx: context.Background(), procedure: procedure, started: time.Now()}
		}
	}
}

// autodestroy ends what a client wanted to end with its connection.
func (drv *Driver) autodestroy(c *client) {
	for _, d := range drv.domains.all() {
		if d.view().autodestroy != c {
			continue
		}
		ch := d.changeAlways("autodestroy")
		if ch.view().autodestroy == c {
			if err := ch.destroy(0); err != nil {
				drv.log.Error("cannot destroy a domain with its client", "domain", ch.view().name, "error", err)
			}
		}
		ch.done()
	}
}
