package runtime

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"virtvzd/xml"
)

// changeInterfaces makes the interfaces of a running environment what after
// says instead of before: all, or they are again what they were.
func (i *Instance) changeInterfaces(ctx context.Context, before, after []xml.Interface) error {
	old := map[string]xml.Interface{}
	for _, n := range before {
		old[n.ID()] = n
	}
	var added, changed []xml.Interface
	for _, n := range after {
		was, there := old[n.ID()]
		delete(old, n.ID())
		switch {
		case !there || i.link(n.ID()) == nil:
			added = append(added, n)
		case !sameInterface(was, n):
			if err := changeable(i.link(n.ID()), was, n); err != nil {
				return interfaceError(err)
			}
			changed = append(changed, n)
		case leads(n, before) != leads(n, after):
			changed = append(changed, n)
		}
	}
	if len(old)+len(added)+len(changed) == 0 {
		return nil
	}
	w, err := i.wires()
	if err != nil {
		return err
	}
	defer w.close()
	if err := i.addInterfaces(ctx, added, after); err != nil {
		return err
	}
	undo := func(err error, done []xml.Interface) error {
		ctx := context.WithoutCancel(ctx)
		for _, n := range done {
			k := slices.IndexFunc(before, func(b xml.Interface) bool { return b.ID() == n.ID() })
			err = errors.Join(err, i.changeInterface(ctx, w, n, before[k], after, before))
		}
		for _, n := range added {
			err = errors.Join(err, i.removeInterface(ctx, w, n.ID()))
		}
		return interfaceError(err)
	}
	for k, n := range changed {
		b := slices.IndexFunc(before, func(b xml.Interface) bool { return b.ID() == n.ID() })
		if err := i.changeInterface(ctx, w, before[b], n, before, after); err != nil {
			return undo(err, changed[:k+1])
		}
	}
	for _, n := range before {
		if _, gone := old[n.ID()]; gone {
			if err := i.removeInterface(ctx, w, n.ID()); err != nil {
				return undo(err, changed)
			}
		}
	}
	return nil
}

// sameInterface compares what was said of an interface; names that are not
// given are those it has.
func sameInterface(a, b xml.Interface) bool {
	if b.Target == "" {
		b.Target = a.Target
	}
	if b.Guest == "" {
		b.Guest = a.Guest
	}
	return reflect.DeepEqual(a, b)
}

// changeable refuses what an interface is made with.
func changeable(l *recordedLink, from, to xml.Interface) error {
	bridged := func(kind string) bool { return kind == "bridge" || kind == "network" }
	for _, c := range []struct {
		what    string
		changed bool
	}{
		{"type", from.Type != to.Type && !(bridged(from.Type) && bridged(to.Type))},
		{"<source>", from.Source != to.Source && l.Type != "bridge"},
		{"mode", from.Mode != to.Mode},
		{"<target>", to.Target != "" && to.Target != l.Host},
		{"<guest>", to.Guest != "" && to.Guest != l.Guest},
		{"<mtu>", from.MTU != to.MTU},
	} {
		if c.changed {
			return fmt.Errorf("the %s of a network interface cannot be changed while the environment has it: detach it and attach it again: %w", c.what, ErrUnsupported)
		}
	}
	return nil
}

// changeInterface changes one interface of those that an environment has, and is
// to have. What fails may be half done: the caller changes it back.
func (i *Instance) changeInterface(ctx context.Context, w *wires, from, to xml.Interface, before, all []xml.Interface) error {
	l := i.link(to.ID())
	if err := changeable(l, from, to); err != nil {
		return err
	}
	plug := l.plug()
	if to.Type == "network" {
		var err error
		if plug, err = i.replug(ctx, l, from, to); err != nil {
			return err
		}
	}
	was, err := i.plan(w, from, before, plug)
	if err != nil {
		return err
	}
	p, err := i.plan(w, to, all, plug)
	if err != nil {
		return err
	}
	if p.Type != l.Type {
		return fmt.Errorf("the network %s has another kind of interface: detach it and attach it again: %w", to.Source, ErrUnsupported)
	}
	return i.rewire(ctx, w, l, was, p, to.Type == "network")
}

// rewire brings a link from one plan to another.
func (i *Instance) rewire(ctx context.Context, w *wires, l *recordedLink, was, p linkPlan, plugged bool) error {
	p.Guarded = p.Filter.Name != "" && !i.has(l, p.Filter)
	claims := p.claims()
	fresh := without(claims, l.Claims)
	if err := i.r.claimLinks(i.Name(), fresh); err != nil {
		return err
	}
	var proxies []proxy
	if p.Checked {
		added := p
		added.Addresses = without(p.Addresses, was.Addresses)
		var err error
		if proxies, err = w.planProxies(added); err != nil {
			i.r.releaseLinks(i.Name(), fresh)
			return err
		}
	}
	err := i.noteLink(func() {
		l.Claims, l.Proxies = append(l.Claims, fresh...), append(l.Proxies, proxies...)
		l.Isolated, l.VLAN, l.Routed = p.Isolated, p.VLAN, p.Checked
	})
	if err != nil {
		return err
	}
	if l.HostIndex != 0 {
		if err := w.setUpHost(p, l.HostIndex); err != nil {
			return fmt.Errorf("network interface %s: %w", l.ID, err)
		}
	}
	if err := i.bindFilter(ctx, w, l, p); err != nil {
		return err
	}
	if err := w.setUpInside(p, l.GuestIndex, &was); err != nil {
		return fmt.Errorf("network interface %s: %w", l.ID, err)
	}
	if err := w.addProxies(proxies); err != nil {
		return err
	}
	return i.dropStale(ctx, w, l, p, claims, plugged)
}

// dropStale gives up what a link had only before it was changed.
func (i *Instance) dropStale(ctx context.Context, w *wires, l *recordedLink, p linkPlan, claims []string, plugged bool) error {
	stale := slices.DeleteFunc(slices.Clone(l.Proxies), func(q proxy) bool {
		return slices.ContainsFunc(p.Addresses, func(a netip.Prefix) bool { return a.Addr() == q.Address })
	})
	if err := removeProxies(w.host, stale); err != nil {
		return err
	}
	ports := l.Ports
	if plugged && len(ports) > 0 {
		ports = ports[:len(ports)-1]
	}
	for _, port := range ports {
		if port.Network != l.port().Network || !plugged {
			i.r.giveBack(ctx, l, port.Network)
		}
		if err := i.r.unplug(ctx, port); err != nil {
			return err
		}
	}
	i.r.releaseLinks(i.Name(), without(l.Claims, claims))
	return i.noteLink(func() {
		l.Parent, l.Claims, l.Proxies = p.Parent, claims, without(l.Proxies, stale)
		l.Ports = slices.Clone(l.Ports[len(ports):])
	})
}

func without[T comparable](list, other []T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(v T) bool { return slices.Contains(other, v) })
}

// restoreInterfaces makes the interfaces what list says, whatever an earlier
// daemon was about to do with them when it was killed: to make them one of states.
func (i *Instance) restoreInterfaces(ctx context.Context, list []xml.Interface, states []*xml.Environment) error {
	if len(i.Links()) == 0 && len(list) == 0 {
		return nil
	}
	w, err := i.wires()
	if err != nil {
		return err
	}
	defer w.close()
	var errs []error
	for _, link := range i.Links() {
		l := i.link(link.ID)
		wanted := slices.ContainsFunc(list, func(n xml.Interface) bool { return n.ID() == l.ID })
		if wanted && (l.HostIndex != 0 || l.GuestIndex != 0) && w.whole(l) {
			continue
		}
		errs = append(errs, i.removeInterface(ctx, w, l.ID))
	}
	for _, n := range list {
		l := i.link(n.ID())
		if l == nil {
			errs = append(errs, i.addInterfaces(ctx, []xml.Interface{n}, list))
			continue
		}
		from, before := n, list
		for _, state := range states {
			at := slices.IndexFunc(state.Interfaces, func(o xml.Interface) bool { return o.ID() == n.ID() })
			if at >= 0 && !sameInterface(state.Interfaces[at], n) && changeable(l, state.Interfaces[at], n) == nil {
				from, before = state.Interfaces[at], state.Interfaces
			}
		}
		errs = append(errs, i.changeInterface(ctx, w, from, n, before, list))
	}
	return errors.Join(errs...)
}

// whole tells whether a link is still there.
func (w *wires) whole(l *recordedLink) bool {
	if l.HostIndex != 0 {
		_, err := w.host.LinkByIndex(l.HostIndex)
		return err == nil
	}
	_, err := w.inside.LinkByIndex(l.GuestIndex)
	return err == nil
}
