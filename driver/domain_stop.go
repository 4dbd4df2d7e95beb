package driver

import (
	"context"
	"errors"
	"strings"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
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
	modifyAfter(abandonWork, protocol.DomainDestroy, func(c *change, _ *protocol.DomainDestroyArgs) error {
		return c.destroy(0)
	}),
	modifyAfter(abandonWork, protocol.DomainDestroyFlags, func(c *change, a *protocol.DomainDestroyFlagsArgs) error {
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
	if err := c.requireListening(); err != nil {
		return err
	}
	if err := c.askInit(c.view().instance, flags, reboot); err != nil {
		return unsupportedMode(err)
	}
	c.publish(func(v *view) { v.rebooting = reboot })
	return c.save()
}

func (c *change) requireListening() error {
	if c.view().state == Paused {
		return errorf(protocol.ErrOperationInvalid, "domain is paused and cannot hear a shutdown request: resume it first, or destroy it")
	}
	return nil
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
		return errorf(protocol.ErrOperationUnsupported, "%s", strings.TrimSuffix(err.Error(), ": "+runtime.ErrUnsupported.Error()))
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
	if !c.view().state.active() {
		if left, err := c.forgetLeft("it is said to run there"); left || err != nil {
			return err
		}
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
	var left error
	if c.client != nil { // else nobody has said anything
		_, left = c.forgetLeft("it is said to run there")
	}
	return errors.Join(left, c.stopped(inst, protocol.DomainShutoffDestroyed, protocol.DomainEventStoppedDestroyed))
}

func (c *change) endGracefully(inst *runtime.Instance) error {
	if err := c.requireListening(); err != nil {
		return err
	}
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
		v.updated, v.rebooting, v.restarting, v.restarts = false, false, false, 0
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
	if err := inst.RefuseLeaving(); err != nil {
		return err
	}
	if err := c.noteRestart(); err != nil {
		return err
	}
	if err := c.controlled(inst.Kill(c.ctx)); err != nil {
		c.publish(func(v *view) { v.restarting = false })
		return errors.Join(err, c.save())
	}
	return c.restart(inst)
}

// noteRestart writes down that another environment is to follow, for a later
// daemon that finds none.
func (c *change) noteRestart() error {
	c.publish(func(v *view) { v.restarting = true })
	err := c.save()
	runtime.AtStep("restarting")
	return err
}

// restart runs the same definition again after its environment ended. For
// clients the domain was running all the time and rebooted.
func (c *change) restart(inst *runtime.Instance) error {
	err := c.noteRestart()
	if err == nil {
		err = c.controlled(inst.Release(c.ctx))
	}
	if err == nil {
		err = c.launchAgain(c.view().live)
	}
	if err != nil {
		return errors.Join(err, c.stopped(inst, protocol.DomainShutoffFailed, protocol.DomainEventStoppedFailed))
	}
	return nil
}

// launchAgain is launch in the course of a restart.
func (c *change) launchAgain(def *libvirtxml.Domain) error {
	inst, live, err := c.launch(def, runtime.StartOptions{}, c.view().autodestroy)
	if err != nil {
		return err
	}
	err = c.enter(Running, protocol.DomainRunningBooted, func(v *view) {
		v.instance, v.live, v.rebooting, v.restarting = inst, live, false, false
	}, rebootEvent())
	if err != nil {
		c.drv.log.Error("cannot save the status of a restarted domain", "domain", def.Name, "error", err)
	}
	go c.domain.watch(inst)
	return nil
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
