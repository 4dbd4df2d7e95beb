package driver

import (
	"slices"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

// watch waits for an environment to end by itself and does what the
// definition says for the way it ended.
func (d *domain) watch(inst *runtime.Instance) {
	began := time.Now()
	for ended := false; !ended; {
		select {
		case <-inst.Exited():
			ended = true
		case <-inst.OutOfMemory():
			d.drv.log.Warn("the environment reached its memory limit and a process inside was killed", "domain", d.view().name)
			d.drv.events.emit(d, memoryFailureEvent())
		case <-inst.HostChanged():
			d.renewInterfaces(inst)
		}
	}
	ran := time.Since(began)
	c := d.changeAlways("guest")
	defer c.done()
	if c.view().instance != inst {
		return // destroyed or reset meanwhile: that change saw to the rest
	}
	if err := c.ended(inst, ran); err != nil {
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
func (c *change) ended(inst *runtime.Instance, ran time.Duration) error {
	exit, v := inst.Exit(), c.view()
	then := consequence(exit.Cause, v.rebooting, v.live)
	c.drv.log.Info("environment ended", "domain", v.name, "cause", exit.Cause, "restart", then.restart)
	if then.restart {
		if c.countRestart(ran) {
			return c.restart(inst)
		}
		c.drv.log.Error("environment keeps ending at once and is not restarted any more", "domain", v.name, "cause", exit.Cause)
		then = endedAs{reason: protocol.DomainShutoffFailed, detail: protocol.DomainEventStoppedFailed}
	}
	return c.stopped(inst, then.reason, then.detail)
}

// endedAs is what the end of an environment is for libvirt.
type endedAs struct {
	reason, detail int32
	restart        bool
}

// consequence tells what the definition asks for.
func consequence(cause runtime.ExitCause, rebooting bool, def *libvirtxml.Domain) endedAs {
	if cause == runtime.ExitUnknown && rebooting {
		// Before 6.15 the kernel tells only its parent how an init ended, and
		// that was the daemon before this one: go by what init was asked.
		cause = runtime.ExitReboot
	}
	shutdown := endedAs{reason: protocol.DomainShutoffShutdown, detail: protocol.DomainEventStoppedShutdown}
	switch cause {
	case runtime.ExitPoweroff:
		return shutdown.then(def.OnPoweroff)
	case runtime.ExitReboot:
		return shutdown.then(orElse(def.OnReboot, "restart"))
	case runtime.ExitCrash:
		return endedAs{reason: protocol.DomainShutoffCrashed, detail: protocol.DomainEventStoppedCrashed}.then(def.OnCrash)
	case runtime.ExitKilled:
		return endedAs{reason: protocol.DomainShutoffDestroyed, detail: protocol.DomainEventStoppedDestroyed}
	}
	return endedAs{reason: protocol.DomainShutoffUnknown, detail: protocol.DomainEventStoppedShutdown}
}

// then adds one of libvirt's actions; of those that it has, all that are not a
// restart leave the domain shut off.
func (e endedAs) then(action string) endedAs {
	e.restart = slices.Contains([]string{"restart", "rename-restart", "coredump-restart"}, action)
	return e
}

// An init that ends as soon as it starts would keep the host busy for ever.
const (
	soon        = 5 * time.Second
	maxRestarts = 5
)

// countRestart tells whether an environment may be restarted once more that ran
// for so long. What its start took does not count.
func (c *change) countRestart(ran time.Duration) bool {
	n := 0
	if ran < soon {
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
