package driver

import (
	"context"
	"errors"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var dumping = table{
	modify(protocol.DomainCoreDump, func(c *change, a *protocol.DomainCoreDumpArgs) error {
		return c.dump(a.To, a.Flags)
	}),
	modify(protocol.DomainCoreDumpWithFormat, func(c *change, a *protocol.DomainCoreDumpWithFormatArgs) error {
		if a.Dumpformat != protocol.DomainCoreDumpFormatRaw {
			return errorf(protocol.ErrOperationUnsupported, "the dump of an environment is a tar of CRIU's images: the other formats are of a kernel's memory")
		}
		return c.dump(a.To, a.Flags)
	}),
}

// dumpFlags are those of virDomainCoreDumpFlags. It always stands still for as
// long as CRIU takes, and only memory is dumped.
var dumpFlags = []uint32{
	protocol.DumpCrash, protocol.DumpLive, protocol.DumpBypassCache, protocol.DumpReset, protocol.DumpMemoryOnly,
}

// dump writes the processes to a file, for whoever wants to look at them. The
// domain goes on, unless it is to end as if it had crashed, or to start anew.
func (c *change) dump(path string, flags uint32) error {
	if err := errors.Join(checkFlags(flags, dumpFlags...), c.requireActive(), checkPath(path)); err != nil {
		return err
	}
	crash, again, live := flags&protocol.DumpCrash != 0, flags&protocol.DumpReset != 0, flags&protocol.DumpLive != 0
	if crash && again || crash && live || again && live { // as virDomainCoreDump
		return errorf(protocol.ErrInvalidArg, "flags 'crash', 'reset' and 'live' are mutually exclusive")
	}
	v := c.view()
	env, err := xml.NewEnvironment(v.live)
	if err != nil {
		return err
	}
	held, err := c.holdSeen(protocol.DomainPausedDump, false)
	if err != nil {
		return err
	}
	end := crash || again
	err = c.working(protocol.DomainJobOperationDump, func(ctx context.Context, w *work) error {
		return v.instance.Dump(ctx, path, env.Interfaces, end, w.progress)
	})
	if err != nil || !end {
		if held {
			err = errors.Join(err, c.enter(Running, protocol.DomainRunningUnpaused, nil, lifecycleEvent(protocol.DomainEventResumed, protocol.DomainEventResumedUnpaused)))
		}
		return unsupportedMode(err)
	}
	if err := c.controlled(v.instance.Kill(c.ctx)); err != nil {
		return errorf(protocol.ErrOperationFailed, "the domain was dumped, and cannot be ended: %v", err)
	}
	if again {
		return c.restart(v.instance)
	}
	return c.stopped(v.instance, protocol.DomainShutoffCrashed, protocol.DomainEventStoppedCrashed)
}
