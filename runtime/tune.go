package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

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
func (i *Instance) Tune(ctx context.Context, before, after *xml.Environment, progress func(done, total uint64)) error {
	if reflect.DeepEqual(before, after) {
		return nil
	}
	if err := nextStartOnly(before.Counts, after.Counts); err != nil {
		return err
	}
	removed, added := changedDevices(before.Devices, after.Devices)
	if err := checkDevices(added); err != nil {
		return err
	}
	if err := i.unsettle(); err != nil {
		return err
	}
	cpus, err := i.r.reassign(i.uuid, after.CPU)
	if err != nil {
		return err
	}
	held := i.rec.CPUs
	old, wanted := limitProperties(before, held), limitProperties(after, cpus)
	forth := i.r.difference(old, wanted)
	if err := i.shrink(ctx, before.Memory, after.Memory, progress); err != nil {
		return err
	}
	if err := i.setProperties(ctx, forth); err != nil {
		return errors.Join(err, i.unshrink(ctx, before.Memory, after.Memory))
	}
	err = i.setCounts(before.Counts, after.Counts)
	if err == nil {
		err = i.addNodes(added)
	}
	if err == nil {
		err = i.changeConsoles(before.Consoles, after.Consoles)
	}
	if err == nil {
		err = i.changeFilesystems(ctx, before.Filesystems, after.Filesystems)
	}
	if err == nil {
		err = i.changeInterfaces(ctx, before.Interfaces, after.Interfaces)
	}
	if err == nil {
		err = i.setResolver(before, after)
	}
	if err == nil {
		err = i.removeNodes(removed)
	}
	if err != nil {
		i.setCounts(after.Counts, before.Counts) // what could not be set need not be set back
		return errors.Join(err, i.setProperties(ctx, i.r.difference(wanted, old)))
	}
	if slices.Equal(held, cpus) {
		return nil
	}
	i.r.mu.Lock()
	i.r.claims[i.uuid] = claim{i.r.claims[i.uuid].ids, cpus}
	i.r.mu.Unlock()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.CPUs = cpus
	return i.rec.save(i.dir)
}

// unsettle notes that the limits in force may be others than those the daemon
// has saved, until Settle. A daemon that is killed meanwhile finds the note.
func (i *Instance) unsettle() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Unsettled = true
	return i.rec.save(i.dir)
}

// Settle is called when what Tune did is saved, or undone.
func (i *Instance) Settle() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.rec.Unsettled {
		return nil
	}
	i.rec.Unsettled = false
	return i.rec.save(i.dir)
}

// Enforce puts the limits of env in force once more if an earlier daemon was
// killed while it changed them.
func (i *Instance) Enforce(ctx context.Context, env *xml.Environment) error {
	i.mu.Lock()
	unsettled := i.rec.Unsettled
	i.mu.Unlock()
	if !unsettled {
		return nil
	}
	cpus, err := i.r.reassign(i.uuid, env.CPU)
	if err != nil {
		return err
	}
	if cpus == nil {
		cpus = i.r.host.CPUs
	}
	if err := i.setProperties(ctx, limitProperties(env, cpus)); err != nil {
		return err
	}
	none := xml.CountLimits{} // differs from each limit and from none
	if err := i.setCounts(none, env.Counts); err != nil {
		return err
	}
	if err := i.changeConsoles(i.recordedConsoles(env), env.Consoles); err != nil {
		return err
	}
	if err := i.restoreFilesystems(ctx, env.Filesystems); err != nil {
		return err
	}
	if err := i.restoreInterfaces(ctx, env.Interfaces); err != nil {
		return err
	}
	return i.Settle()
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

// nextStartOnly refuses a change of what a running process was given for
// good.
func nextStartOnly(before, after xml.CountLimits) error {
	for _, c := range []struct {
		name          string
		before, after uint64
	}{
		{"numfile", before.Files, after.Files},
		{"lockedpages", before.LockedPages, after.LockedPages},
		{"numsiginfo", before.Signals, after.Signals},
	} {
		if c.before != c.after {
			return fmt.Errorf("%s of a running environment cannot be changed, its processes have it from their start: use --config, it holds from the next start on: %w", c.name, ErrUnsupported)
		}
	}
	return nil
}

// setCounts changes the limits that systemd knows nothing of.
func (i *Instance) setCounts(before, after xml.CountLimits) error {
	if before.Cgroups != after.Cgroups {
		if err := i.writeCgroup("cgroup.max.descendants", orMax(after.Cgroups)); err != nil {
			return err
		}
	}
	if before.SharedPages != after.SharedPages {
		if err := i.setSharedPages(after.SharedPages); err != nil {
			return err
		}
	}
	if before.Terminals != after.Terminals {
		return i.setTerminals(after.Terminals)
	}
	return nil
}

func (i *Instance) writeCgroup(name, value string) error {
	if err := os.WriteFile(filepath.Join(i.CgroupPath(), name), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s of %s: %w", name, i.Name(), err)
	}
	return nil
}

func orMax(n uint64) string {
	if n == unlimited {
		return "max"
	}
	return strconv.FormatUint(n, 10)
}

// maxSharedPages is the kernel's default, SHMALL: no limit.
const maxSharedPages = ^uint64(0) - 1<<24

// setSharedPages sets kernel.shmall of the environment's IPC namespace, which
// is that of the thread that writes. From Linux 6.9 on that is for the
// namespace's root to do, before for the host's.
func (i *Instance) setSharedPages(pages uint64) error {
	return i.inside("shmpages", []string{"ipc"}, func() error {
		text := []byte(strconv.FormatUint(min(pages, maxSharedPages), 10))
		err := os.WriteFile("/proc/sys/kernel/shmall", text, 0)
		if !errors.Is(err, unix.EACCES) || i.rec.IDMap.Mode == xml.Privileged {
			return err
		}
		// Not unix.Setresuid, which is for all threads of the process: this one
		// ends when it is done.
		uid, _ := i.rootIDs()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			return errno
		}
		return os.WriteFile("/proc/sys/kernel/shmall", text, 0)
	})
}

// maxTerminals is the kernel's default of a devpts instance, NR_UNIX98_PTY_MAX.
const maxTerminals = 1 << 20

// setTerminals reconfigures the environment's devpts, /dev/pts in its mount
// namespace. The kernel takes all options anew, with ids of the host.
func (i *Instance) setTerminals(n uint64) error {
	return i.inside("numpty", []string{"mnt"}, func() error {
		t, err := openTreeRoot("/")
		if err != nil {
			return err
		}
		defer t.Close()
		dir, err := openDevpts(t)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		config, err := unix.Fspick(dir, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(config)
		options := [][2]string{{"mode", "620"}, {"ptmxmode", "666"}, {"max", strconv.FormatUint(min(n, maxTerminals), 10)}}
		if gid := hostID(ranges(i.rec.IDMap.GIDs), 5); i.rec.IDMap.Mode == xml.Privileged {
			options = append(options, [2]string{"gid", "5"})
		} else if gid != 65534 {
			options = append(options, [2]string{"gid", strconv.FormatUint(uint64(gid), 10)})
		}
		for _, o := range options {
			if err := unix.FsconfigSetString(config, o[0], o[1]); err != nil {
				return err
			}
		}
		return unix.FsconfigReconfigure(config)
	})
}
