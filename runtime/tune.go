package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// ErrTooMuchInUse is returned by Tune when memory is to be less than what
// cannot be reclaimed.
var ErrTooMuchInUse = errors.New("too much memory is in use")

// Tune brings a running environment's limits from what before says to what
// after says: all of them, or the error says why not and the old ones are in
// force. systemd gets all of its part in one call and is told nothing that did
// not change.
//
// What takes long is to reclaim memory: progress, unless it is nil, hears of
// how many bytes of how many that is done, and a cancelled ctx ends it.
func (i *Instance) Tune(ctx context.Context, before, after *xml.Environment, progress func(done, total uint64)) (err error) {
	if reflect.DeepEqual(before, after) {
		return nil
	}
	if err := checkDevices(without(after.Devices, before.Devices)); err != nil {
		return err
	}
	if !reflect.DeepEqual(before.Interfaces, after.Interfaces) { // they are cut off, see unplugLinks
		if err := i.RefuseLeaving(); err != nil {
			return err
		}
	}
	if writesInside(before, after) {
		release, err := i.keepThawed()
		if err != nil {
			return err
		}
		defer release()
	}
	again, err := i.unsettle(before, after)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && again { // it was to undo one that could not be saved
			i.torn()
		}
	}()
	had, has := before.Devices, after.Devices
	defer func() {
		if err != nil {
			has = had
		}
		i.closeDisks(context.WithoutCancel(ctx), has)
	}()
	if err := i.openDisks(ctx, without(after.Devices, before.Devices)); err != nil {
		return err
	}
	before, after = i.resolved(before), i.resolved(after)
	cpus, err := i.r.reassign(i.uuid, after.CPU)
	if err != nil {
		return err
	}
	shrunk := *before
	if shrunk.Memory.High, err = i.shrink(ctx, before.Memory, after.Memory, progress); err != nil {
		return err
	}
	held, back := i.rec.CPUs, context.WithoutCancel(ctx)
	old, wanted, now := limitProperties(before, held), limitProperties(after, cpus), limitProperties(&shrunk, held)
	if err := i.setProperties(back, i.r.difference(now, wanted)); err != nil {
		if errors.As(err, new(*systemd.UnavailableError)) {
			// It may yet do the one, and then this after it.
			if i.setProperties(back, i.r.difference(wanted, old)) != nil {
				i.torn()
			}
		}
		return errors.Join(err, i.writeCgroup("memory.high", orMax(orInfinity(before.Memory.High))))
	}
	atStep("tune properties")
	changes := i.changes(cpus)
	for n, change := range changes {
		err := change(ctx, before, after)
		if err == nil {
			continue
		}
		var undone []error
		for _, change := range slices.Backward(changes[:n]) {
			undone = append(undone, change(back, after, before))
		}
		failed := errors.Join(append(undone, i.setProperties(back, i.r.difference(wanted, old)))...)
		if failed != nil {
			i.torn()
		}
		return errors.Join(err, failed)
	}
	atStep("tune done")
	return nil
}

// writesInside tells whether a change needs to write to a file system there, or
// takes one away.
func writesInside(before, after *xml.Environment) bool {
	return !slices.Equal(before.Filesystems, after.Filesystems) || resolverText(before) != resolverText(after)
}

// changes are what Tune changes besides properties of the scope. Each is whole
// or not at all, and is undone by the way back.
func (i *Instance) changes(cpus []int) []func(ctx context.Context, from, to *xml.Environment) error {
	return []func(ctx context.Context, from, to *xml.Environment) error{
		func(_ context.Context, from, to *xml.Environment) error { return i.setCgroups(from.Counts, to.Counts) },
		func(_ context.Context, from, to *xml.Environment) error {
			return i.setSharedPages(from.Counts, to.Counts)
		},
		func(_ context.Context, from, to *xml.Environment) error {
			return i.setTerminals(from.Counts, to.Counts)
		},
		func(_ context.Context, from, to *xml.Environment) error { return i.setRlimits(from.Counts, to.Counts) },
		func(ctx context.Context, from, to *xml.Environment) error {
			return i.changeNodes(ctx, from.Devices, to.Devices)
		},
		func(_ context.Context, from, to *xml.Environment) error {
			return i.changeConsoles(from.Consoles, to.Consoles)
		},
		func(ctx context.Context, from, to *xml.Environment) error {
			return i.changeFilesystems(ctx, from.Filesystems, to.Filesystems)
		},
		func(ctx context.Context, from, to *xml.Environment) error {
			return i.changeInterfaces(ctx, from.Interfaces, to.Interfaces)
		},
		func(_ context.Context, from, to *xml.Environment) error { return i.setResolver(from, to) },
		func(_ context.Context, from, to *xml.Environment) error { return i.setHostname(from, to) },
		func(context.Context, *xml.Environment, *xml.Environment) error { return i.hold(cpus) }, // the last, so never undone
	}
}

// hold notes which CPUs the environment has.
func (i *Instance) hold(cpus []int) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	held := i.rec.CPUs
	if slices.Equal(held, cpus) {
		return nil
	}
	i.rec.CPUs = cpus
	if err := i.rec.save(i.dir); err != nil {
		i.rec.CPUs = held
		return err
	}
	i.r.mu.Lock()
	defer i.r.mu.Unlock()
	c := i.r.claims[i.uuid]
	c.cpus = cpus
	i.r.claims[i.uuid] = c
	return nil
}

// CPUs are those of the host that the environment runs on, in the order of
// those it sees.
func (i *Instance) CPUs() []int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.rec.CPUs == nil {
		return slices.Clone(i.r.host.CPUs)
	}
	return slices.Clone(i.rec.CPUs)
}

// reassign chooses CPUs for a running environment, which keeps those it has
// as far as that can be.
func (r *Runtime) reassign(uuid [16]byte, c xml.CPULimits) ([]int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	load := map[int]int{}
	for id, other := range r.claims {
		if id != uuid {
			for _, cpu := range other.cpus {
				load[cpu]++
			}
		}
	}
	return chooseCPUs(c, r.host, load, r.claims[uuid].cpus)
}

func (i *Instance) setProperties(ctx context.Context, props []systemd.Property) error {
	if len(props) == 0 {
		return nil
	}
	if err := i.r.config.Scopes.SetProperties(ctx, i.rec.Scope, props...); err != nil {
		return fmt.Errorf("change the limits of %s: %w", i.Name(), err)
	}
	return nil
}

// difference are the properties that make limits what wanted says where they
// are what old says. A property that is in one of them only is a set of
// CPUs, of nodes or of devices.
func (r *Runtime) difference(old, wanted []systemd.Property) (props []systemd.Property) {
	was, is := byName(old), byName(wanted)
	for _, p := range wanted {
		if q, ok := was[p.Name]; !ok || !reflect.DeepEqual(q.Value, p.Value) {
			if ok && p.Name == "DeviceAllow" {
				props = append(props, systemd.DeviceAllow()) // or it would be added to
			}
			props = append(props, p)
		}
	}
	for _, p := range old {
		if _, ok := is[p.Name]; ok {
			continue
		}
		switch p.Name {
		case "AllowedCPUs":
			props = append(props, systemd.AllowedCPUs(r.host.CPUs...))
		case "DeviceAllow":
			props = append(props, systemd.DeviceAllow())
		case "AllowedMemoryNodes":
			props = append(props, systemd.AllowedMemoryNodes(onlineNodes()...))
		}
	}
	return append(ioRemoved(was, is), props...)
}

func byName(props []systemd.Property) map[string]systemd.Property {
	m := map[string]systemd.Property{}
	for _, p := range props {
		m[p.Name] = p
	}
	return m
}

// ioRemoved takes their limits off devices that have them in was and not in
// is: systemd adds to a list what it gets and forgets nothing by itself.
func ioRemoved(was, is map[string]systemd.Property) (props []systemd.Property) {
	for _, kind := range ioKinds {
		name := kind.property().Name
		gone := devicesOf(was[name])
		for path := range devicesOf(is[name]) {
			delete(gone, path)
		}
		var list []systemd.DeviceValue
		for _, path := range slices.Sorted(maps.Keys(gone)) {
			list = append(list, systemd.DeviceValue{Path: path, Value: kind.none})
		}
		if len(list) > 0 {
			props = append(props, kind.property(list...))
		}
	}
	return props
}

func devicesOf(p systemd.Property) map[string]bool {
	paths := map[string]bool{}
	if list, ok := p.Value.Value().([]systemd.DeviceValue); ok {
		for _, d := range list {
			paths[d.Path] = true
		}
	}
	return paths
}

// onlineNodes are the host's NUMA nodes; 0 on a kernel without NUMA.
func onlineNodes() []int {
	text, err := os.ReadFile("/sys/devices/system/node/online")
	if err == nil {
		if nodes, err := systemd.ParseCPUList(string(text[:max(0, len(text)-1)])); err == nil {
			return nodes
		}
	}
	return []int{0}
}
