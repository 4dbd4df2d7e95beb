package runtime

import (
	"context"
	"errors"
	"slices"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// unsettle notes, until Settle, that what is in force may be other than what
// the daemon has saved, and what it may be. A daemon that is killed meanwhile
// finds the note. It tells whether there was one already since Settle.
func (i *Instance) unsettle(states ...*xml.Environment) (already bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	already = len(i.rec.InForce) > i.tornStates
	i.rec.Unsettled, i.rec.InForce = true, append(i.rec.InForce, states...)
	return already, i.rec.save(i.dir)
}

// torn is called when what is in force may stay other than what is saved: Settle
// leaves the note of it for the next daemon, whose Enforce puts that right.
func (i *Instance) torn() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tornStates = len(i.rec.InForce)
}

// Settle is called when what Tune did is saved, or undone.
func (i *Instance) Settle() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.rec.Unsettled {
		return nil
	}
	i.rec.Unsettled, i.rec.InForce = i.tornStates > 0, append([]*xml.Environment(nil), i.rec.InForce[:i.tornStates]...)
	return i.rec.save(i.dir)
}

// Enforce puts the limits of env in force once more if an earlier daemon was
// killed while it changed them. What cannot be put in force keeps the rest
// from nothing, and is tried again by the next daemon. So is all of an
// environment that may run elsewhere: its interfaces are to stay cut off.
func (i *Instance) Enforce(ctx context.Context, env *xml.Environment) error {
	i.mu.Lock()
	unsettled, states := i.rec.Unsettled, slices.Clone(i.rec.InForce)
	i.mu.Unlock()
	if !unsettled || i.Leaving() != nil {
		return nil
	}
	errs := []error{i.restoreDisks(ctx, env.Devices)}
	disks := env.Devices
	env = i.resolved(env)
	for n, state := range states {
		states[n] = i.resolved(state)
	}
	errs = append(errs, i.enforceProperties(ctx, env, states))
	for _, state := range states {
		errs = append(errs, i.setRlimits(state.Counts, env.Counts), i.renewNodes(ctx, state.Devices, env.Devices),
			i.setResolver(state, env), i.setHostname(state, env))
	}
	none := xml.CountLimits{} // differs from each limit and from none
	errs = append(errs, i.setCounts(none, env.Counts),
		i.changeConsoles(i.recordedConsoles(env), env.Consoles),
		i.restoreFilesystems(ctx, env.Filesystems),
		i.restoreInterfaces(ctx, env.Interfaces, states))
	if err := errors.Join(errs...); err != nil {
		i.torn()
		return err
	}
	i.closeDisks(ctx, disks)
	return i.Settle()
}

// enforceProperties sends all limits of env, and takes away what one of the
// states has and env has not.
func (i *Instance) enforceProperties(ctx context.Context, env *xml.Environment, states []*xml.Environment) error {
	cpus, err := i.r.reassign(i.uuid, env.CPU)
	if err != nil {
		return err
	}
	all := cpus
	if all == nil {
		all = i.r.host.CPUs
	}
	wanted := limitProperties(env, all)
	var props []systemd.Property
	for _, state := range states {
		props = append(props, i.r.difference(limitProperties(state, nil), wanted)...)
	}
	if err := i.setProperties(ctx, append(props, wanted...)); err != nil {
		return err
	}
	return i.hold(cpus)
}
