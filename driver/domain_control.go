package driver

import (
	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
)

var controlling = table{
	modify(protocol.DomainSetLifecycleAction, setLifecycleAction),
	modify(protocol.DomainSendProcessSignal, sendSignal),
}

// lifecycleActions are the words for virDomainLifecycleAction.
var lifecycleActions = []string{"destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart"}

// setLifecycleAction changes <on_poweroff>, <on_reboot> or <on_crash>, of a
// running environment for its next end.
func setLifecycleAction(c *change, a *protocol.DomainSetLifecycleActionArgs) error {
	if int(a.Action) >= len(lifecycleActions) {
		return errorf(protocol.ErrInvalidArg, "lifecycle action %d is unknown", a.Action)
	}
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		switch a.Type {
		case protocol.DomainLifecyclePoweroff:
			def.OnPoweroff = lifecycleActions[a.Action]
		case protocol.DomainLifecycleReboot:
			def.OnReboot = lifecycleActions[a.Action]
		case protocol.DomainLifecycleCrash:
			def.OnCrash = lifecycleActions[a.Action]
		default:
			return errorf(protocol.ErrInvalidArg, "lifecycle type %d is unknown", a.Type)
		}
		return nil
	})
}

// sendSignal sends a signal to a process inside, by the number it has there;
// a negative number is a process group. libvirt's lxc driver can reach init
// only.
func sendSignal(c *change, a *protocol.DomainSendProcessSignalArgs) error {
	if err := checkFlags(a.Flags); err != nil {
		return err
	}
	if a.Signum > protocol.DomainProcessSignalRt32 {
		return errorf(protocol.ErrInvalidArg, "signum value %d is out of range", a.Signum)
	}
	if err := c.requireActive(); err != nil {
		return err
	}
	return c.view().instance.Signal(a.PidValue, int(a.Signum))
}
