package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"virtvzd/xml"
)

// Filters is what is wanted of libvirt's network filters. Whoever makes them
// keeps them up to date when a filter changes, and over its own restarts.
type Filters interface {
	// Bind makes the rules for the host's end of an interface those of b, in
	// place of any that it had. When it fails these are still there, unless the
	// error is an UnboundError.
	Bind(ctx context.Context, b Binding) error
	// Unbind removes them. That there are none is no error.
	Unbind(ctx context.Context, device string) error
	// Keep has whoever makes them stay for the next minutes.
	Keep(ctx context.Context)
}

// Binding is a filter, filled in for one interface.
type Binding struct {
	Device           string // the host's end
	MAC              string // inside
	Owner, OwnerUUID string // the domain
	Filter           xml.Filter
}

// UnboundError is why an interface may have lost the rules it had.
type UnboundError struct{ Err error }

func (e *UnboundError) Error() string { return e.Err.Error() }
func (e *UnboundError) Unwrap() error { return e.Err }

// has tells whether a filter is bound, so that nothing need be held back.
func (l *recordedLink) has(f xml.Filter) bool { return !l.Rebinding && reflect.DeepEqual(l.Filter, f) }

func (i *Instance) has(l *recordedLink, f xml.Filter) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return l.has(f)
}

// bindFilter gives a link the filter that is planned, and then lets pass what
// comes from inside. One that it has stays in force while libvirt's daemon is away.
func (i *Instance) bindFilter(ctx context.Context, w *wires, l *recordedLink, p linkPlan) error {
	if p.Filter.Name == "" {
		if i.has(l, p.Filter) {
			return nil
		}
		if err := i.r.unbind(ctx, l.Host); err != nil {
			return err
		}
		return i.noteLink(func() { l.Filter, l.Rebinding = xml.Filter{}, false })
	}
	if i.r.config.Filters == nil {
		return errors.New("this daemon has no way to libvirt's network filters")
	}
	unsure, err := i.newBinding(ctx, l, p.Filter)
	if err != nil {
		return fmt.Errorf("network interface %s: %w", p.ID, err)
	}
	if !p.Guarded && !unsure {
		return nil
	}
	link, err := w.host.LinkByIndex(l.HostIndex)
	if err != nil {
		return errGone(err)
	}
	p.Guarded = false
	return w.setIngress(p, link)
}

// newBinding is in place of one that was left over of the same name, and is
// noted. It tells whether it was unknown before which filter was in force, if any.
func (i *Instance) newBinding(ctx context.Context, l *recordedLink, f xml.Filter) (unsure bool, err error) {
	i.r.binding.Lock()
	defer i.r.binding.Unlock()
	unsure = l.Rebinding
	if err := i.noteLink(func() { l.Rebinding = true }); err != nil {
		return unsure, err
	}
	atStep("filter")
	err = i.bind(ctx, l, f)
	if err == nil {
		os.Remove(i.r.debt(unbound, l.Host))
	}
	noted := i.noteLink(func() {
		switch {
		case err == nil:
			l.Filter, l.Rebinding = f, false
		case errors.As(err, new(*UnboundError)):
			l.Filter = xml.Filter{}
		default:
			l.Rebinding = unsure
		}
	})
	if i.has(l, f) {
		err = nil // as it was
	}
	return unsure, cmp.Or(err, noted)
}

func (i *Instance) bind(ctx context.Context, l *recordedLink, f xml.Filter) error {
	return i.r.config.Filters.Bind(ctx, Binding{
		Device: l.Host, MAC: l.MAC, Owner: i.Name(), OwnerUUID: formatUUID(i.uuid), Filter: f,
	})
}

// renewFilters binds again what an environment had when an earlier daemon
// ended, in case that it was taken away meanwhile. Where that cannot be nothing
// from inside passes until it can.
func (i *Instance) renewFilters(ctx context.Context) {
	if i.r.config.Filters == nil {
		return
	}
	for _, link := range i.Links() {
		i.renewFilter(ctx, link.ID)
	}
}

// renewFilter leaves alone what is being removed, or changed: the link goes
// first, then its rules, which wait for these here.
func (i *Instance) renewFilter(ctx context.Context, id string) {
	i.r.binding.Lock()
	defer i.r.binding.Unlock()
	l := i.filtered(id)
	host := i.r.hostLinks()
	if l == nil || host == nil {
		return
	}
	link, err := host.LinkByIndex(l.HostIndex)
	if err != nil {
		return
	}
	err = i.bind(ctx, l, l.Filter) // what was there is, if libvirt's daemon is not
	if !errors.As(err, new(*UnboundError)) {
		return
	}
	// First the note: it is what has this undone.
	err = errors.Join(i.noteLink(func() { l.Rebinding = true }), setIngress(host, link, xml.Rate{}, true, nil))
	if err != nil {
		i.warn(fmt.Sprintf("what comes from inside of interface %s cannot be held back, and passes unchecked: detach it: %v", l.ID, err))
	}
}

// keepFilters has libvirt's daemon stay while there are filters: it ends when
// it has no clients, and learns then no address that a filter is to let pass.
func (r *Runtime) keepFilters(ctx context.Context) {
	has := func(i *Instance) bool {
		return slices.ContainsFunc(i.Links(), func(l Link) bool { return i.filtered(l.ID) != nil })
	}
	if r.config.Filters != nil && slices.ContainsFunc(r.running(), has) {
		r.config.Filters.Keep(ctx)
	}
}

// filtered is the record of an interface with a filter in force, nil if there
// is none.
func (i *Instance) filtered(id string) *recordedLink {
	l := i.link(id)
	i.mu.Lock()
	defer i.mu.Unlock()
	if l == nil || l.Filter.Name == "" || l.Rebinding {
		return nil
	}
	return l
}

// retryFilters has bound what could not be (RenewInterfaces).
func (r *Runtime) retryFilters() {
	for _, i := range r.running() {
		if len(i.unfiltered()) > 0 {
			i.tellChanged()
		}
	}
}

// unfiltered are the interfaces from which nothing passes for want of a filter.
func (i *Instance) unfiltered() (ids []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, l := range i.rec.Links {
		if l.Rebinding {
			ids = append(ids, l.ID)
		}
	}
	return ids
}

// What libvirt's daemons are to remove and could not, because they are away,
// is noted for when they are back, and does not keep the environment from
// ending: a file for each, its name is that of the port or of the device, in it
// is the network's. It is tried again now and then.
const (
	unplugged = "ports"
	unbound   = "bindings"
)

func (r *Runtime) debt(kind, name string) string { return filepath.Join(r.config.StateDir, kind, name) }

func (r *Runtime) settleDebt(kind, name, content string, err error) error {
	file := r.debt(kind, name)
	if err == nil {
		os.Remove(file)
		os.Remove(filepath.Dir(file)) // fails unless it was the last
		return nil
	}
	if e := os.MkdirAll(filepath.Dir(file), 0o700); e != nil {
		return errors.Join(err, e)
	}
	return os.WriteFile(file, []byte(content), 0o600)
}

// unplug removes a port.
func (r *Runtime) unplug(ctx context.Context, port recordedPort) error {
	err := errors.New("no network daemon is configured")
	if r.config.Networks != nil {
		err = r.config.Networks.Unplug(ctx, port.Network, port.UUID)
	}
	return r.settleDebt(unplugged, port.UUID, port.Network, err)
}

// unbind removes the rules for a device.
func (r *Runtime) unbind(ctx context.Context, device string) error {
	r.binding.Lock()
	defer r.binding.Unlock()
	return r.unbindLocked(ctx, device)
}

func (r *Runtime) unbindLocked(ctx context.Context, device string) error {
	err := errors.New("no filter daemon is configured")
	if r.config.Filters != nil {
		err = r.config.Filters.Unbind(ctx, device)
	}
	return r.settleDebt(unbound, device, "", err)
}

// retryDebts removes what could not be removed before.
func (r *Runtime) retryDebts(ctx context.Context) {
	ports, _ := os.ReadDir(filepath.Join(r.config.StateDir, unplugged))
	for _, e := range ports {
		if network, err := os.ReadFile(r.debt(unplugged, e.Name())); err == nil && r.config.Networks != nil {
			r.unplug(ctx, recordedPort{string(network), e.Name()})
		}
	}
	devices, _ := os.ReadDir(filepath.Join(r.config.StateDir, unbound))
	for _, e := range devices {
		r.retryUnbind(ctx, e.Name())
	}
}

// retryUnbind leaves alone what has been bound anew meanwhile.
func (r *Runtime) retryUnbind(ctx context.Context, device string) {
	r.binding.Lock()
	defer r.binding.Unlock()
	if r.config.Filters != nil && exists(r.debt(unbound, device)) {
		r.unbindLocked(ctx, device)
	}
}
