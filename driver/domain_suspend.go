package driver

import "virtvzd/driver/protocol"

var suspending = table{
	modifyAfter(hastenMigration, protocol.DomainSuspend, suspend),
	modify(protocol.DomainResume, resume),
}

// suspend freezes every process of the environment. Suspending a paused
// domain succeeds and changes nothing, as with libvirt's lxc driver.
func suspend(c *change, _ *protocol.DomainSuspendArgs) error {
	if err := c.requireActive(); err != nil {
		return err
	}
	if c.view().state == Paused {
		return nil
	}
	if err := c.view().instance.Suspend(c.ctx); err != nil {
		return err
	}
	return c.enter(Paused, protocol.DomainPausedUser, nil,
		lifecycleEvent(protocol.DomainEventSuspended, protocol.DomainEventSuspendedPaused))
}

// resume thaws, or lets an environment that was started paused run its
// first instruction.
func resume(c *change, _ *protocol.DomainResumeArgs) error {
	if err := c.requireActive(); err != nil {
		return err
	}
	if c.view().state == Running {
		return errorf(protocol.ErrOperationInvalid, "domain is already running")
	}
	if err := c.stay(); err != nil {
		return err
	}
	if err := c.view().instance.Resume(c.ctx); err != nil {
		return err
	}
	return c.enter(Running, protocol.DomainRunningUnpaused, nil,
		lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedUnpaused))
}
