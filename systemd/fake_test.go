package systemd

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"virtvzd/systemd/bustest"
)

// fake is an org.freedesktop.systemd1 and org.freedesktop.machine1 with just enough behaviour. Its knobs are turned by with.
type fake struct {
	mu       sync.Mutex
	conn     *dbus.Conn
	version  string
	units    map[string]map[string]any
	machines map[string]fakeMachine
	jobs     int
	calls    []string

	jobResult string        // what jobs end in, "done" if empty
	silent    bool          // no JobRemoved is sent
	early     bool          // JobRemoved goes out before the reply
	jobDelay  time.Duration // how long a job takes
	onStart   func()        // after StartTransientUnit has made the unit, before the reply
	onBusy    func()        // when StartTransientUnit refuses because the unit exists
}

type fakeMachine struct {
	ID     []byte
	Class  string
	Leader uint32
	NetIfs []int32
}

func newFake(t *testing.T, b *bustest.Bus, machined bool) *fake {
	t.Helper()
	f := &fake{version: "257.9-1~deb13u1", units: map[string]map[string]any{}, machines: map[string]fakeMachine{}}
	f.attach(t, b, machined)
	return f
}

func (f *fake) attach(t *testing.T, b *bustest.Bus, machined bool) {
	t.Helper()
	conn, err := dbus.Connect(b.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	export := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	export(conn.ExportMethodTable(map[string]any{
		"StartTransientUnit": f.startTransientUnit, "StopUnit": f.stopUnit, "GetUnit": f.getUnit, "GetUnitByPID": f.getUnitByPID,
		"SetUnitProperties": f.setUnitProperties, "ResetFailedUnit": f.resetFailedUnit, "ListUnitsByPatterns": f.listUnitsByPatterns,
		"FreezeUnit": f.freezer("frozen"), "ThawUnit": f.freezer("running"), "KillUnit": f.killUnit,
	}, systemdPath, managerInterface))
	properties := map[string]any{"Get": f.get, "GetAll": f.getAll}
	export(conn.ExportMethodTable(properties, systemdPath, "org.freedesktop.DBus.Properties"))
	export(conn.ExportSubtreeMethodTable(properties, systemdPath+"/unit", "org.freedesktop.DBus.Properties"))
	names := []string{systemdName}
	if machined {
		export(conn.ExportMethodTable(map[string]any{
			"RegisterMachineWithNetwork": f.registerMachine, "UnregisterMachine": f.unregisterMachine, "TerminateMachine": f.unregisterMachine,
		}, "/org/freedesktop/machine1", machinedName+".Manager"))
		names = append(names, machinedName)
	}
	for _, name := range names {
		if reply, err := conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
			t.Fatalf("cannot own %s: %v %v", name, reply, err)
		}
	}
}

// String is the whole state, for comparison.
func (f *fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, unit := range slices.Sorted(maps.Keys(f.units)) {
		fmt.Fprintf(&b, "%s\n", unit)
		for _, p := range slices.Sorted(maps.Keys(f.units[unit])) {
			fmt.Fprintf(&b, "\t%s=%v\n", p, f.units[unit][p])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.machines)) {
		fmt.Fprintf(&b, "machine %s %+v\n", name, f.machines[name])
	}
	return b.String()
}

// with turns knobs while the fake is in use.
func (f *fake) with(turn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	turn()
}

func (f *fake) called(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if strings.HasPrefix(c, name) {
			n++
		}
	}
	return n
}

func (f *fake) set(unit, property string, value any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.units[unit] == nil {
		f.units[unit] = map[string]any{}
	}
	f.units[unit][property] = value
}

func (f *fake) remove(unit string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.units, unit)
}

func refusal(name, format string, args ...any) *dbus.Error {
	return dbus.NewError(name, []any{fmt.Sprintf(format, args...)})
}

func noSuchUnit(unit string) *dbus.Error {
	return refusal("org.freedesktop.systemd1.NoSuchUnit", "Unit %s not loaded.", unit)
}

// job ends after jobDelay. It returns before, except with early, where the signal overtakes the reply.
func (f *fake) job(unit string) dbus.ObjectPath {
	f.jobs++
	path := dbus.ObjectPath(fmt.Sprintf("%s/job/%d", systemdPath, f.jobs))
	result, id, conn := "done", uint32(f.jobs), f.conn
	if f.jobResult != "" {
		result = f.jobResult
	}
	end := func() {
		// Somebody else's job of the same unit first: it must not be taken for ours.
		conn.Emit(systemdPath, managerInterface+".JobRemoved", id+1000, systemdPath+"/job/9999", unit, "canceled")
		conn.Emit(systemdPath, managerInterface+".JobRemoved", id, path, unit, result)
	}
	switch {
	case f.silent:
	case f.early:
		end()
	default:
		time.AfterFunc(f.jobDelay, end)
	}
	return path
}

func (f *fake) startTransientUnit(name, mode string, props []Property, _ []struct {
	Name  string
	Props []Property
}) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	f.calls = append(f.calls, "StartTransientUnit "+name)
	if _, ok := f.units[name]; ok {
		busy := f.onBusy
		f.mu.Unlock()
		if busy != nil {
			busy()
		}
		return "", refusal("org.freedesktop.systemd1.UnitExists", "Unit %s was already loaded or has a fragment file.", name)
	}
	unit := map[string]any{"ActiveState": "active", "SubState": "running"}
	for _, p := range props {
		if p.Name == "Nonsense" {
			f.mu.Unlock()
			return "", refusal("org.freedesktop.DBus.Error.PropertyReadOnly", "Cannot set property Nonsense, or unknown property.")
		}
		unit[p.Name] = p.Value.Value()
	}
	f.units[name] = unit
	if f.jobResult == "failed" {
		unit["ActiveState"] = "failed"
	}
	started := f.onStart
	job := f.job(name)
	f.mu.Unlock()
	if started != nil {
		started()
	}
	return job, nil
}

func (f *fake) stopUnit(name, _ string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.units[name] == nil {
		return "", noSuchUnit(name)
	}
	delete(f.units, name)
	return f.job(name), nil
}

func (f *fake) getUnit(name string) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "GetUnit "+name)
	if f.units[name] == nil {
		return "", noSuchUnit(name)
	}
	return unitPath(name), nil
}

func (f *fake) getUnitByPID(pid uint32) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, unit := range f.units {
		if pids, ok := unit["PIDs"].([]uint32); ok && slices.Contains(pids, pid) {
			return unitPath(name), nil
		}
	}
	return unitPath("session-1.scope"), nil
}

func (f *fake) setUnitProperties(name string, runtime bool, props []Property) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.units[name] == nil {
		return noSuchUnit(name)
	}
	if !runtime {
		return refusal("test", "not a runtime change")
	}
	for _, p := range props {
		f.units[name][p.Name] = p.Value.Value()
	}
	return nil
}

func (f *fake) resetFailedUnit(name string) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	unit := f.units[name]
	if unit == nil {
		return noSuchUnit(name)
	}
	if unit["ActiveState"] == "failed" {
		delete(f.units, name)
	}
	return nil
}

func (f *fake) freezer(state string) any {
	return func(name string) *dbus.Error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.units[name] == nil {
			return noSuchUnit(name)
		}
		f.units[name]["FreezerState"] = state
		return nil
	}
}

func (f *fake) killUnit(name, who string, signal int32) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.units[name] == nil {
		return noSuchUnit(name)
	}
	f.calls = append(f.calls, fmt.Sprintf("KillUnit %s %s %d", name, who, signal))
	return nil
}

type fakeListing struct {
	Name, Description, Load, Active, Sub, Followed string
	Path                                           dbus.ObjectPath
	JobID                                          uint32
	JobType                                        string
	JobPath                                        dbus.ObjectPath
}

func (f *fake) listUnitsByPatterns(_, patterns []string) ([]fakeListing, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := []fakeListing{}
	for _, name := range slices.Sorted(maps.Keys(f.units)) {
		for _, p := range patterns { // FNM_NOESCAPE
			if ok, _ := filepath.Match(strings.ReplaceAll(p, `\`, `\\`), name); ok {
				found = append(found, fakeListing{Name: name, Load: "loaded", Active: "active", Sub: "running", Path: unitPath(name), JobPath: "/"})
			}
		}
	}
	return found, nil
}

func (f *fake) unitAt(msg dbus.Message) map[string]any {
	path := msg.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	for name, unit := range f.units {
		if unitPath(name) == path {
			all := map[string]any{"LoadState": "loaded", "Id": name}
			maps.Copy(all, unit)
			return all
		}
	}
	return map[string]any{"LoadState": "not-found", "ActiveState": "inactive", "ControlGroup": ""}
}

func (f *fake) getAll(msg dbus.Message, _ string) (map[string]dbus.Variant, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[string]dbus.Variant{}
	for name, value := range f.unitAt(msg) {
		all[name] = dbus.MakeVariant(value)
	}
	return all, nil
}

func (f *fake) get(msg dbus.Message, iface, name string) (dbus.Variant, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "Get "+iface+"."+name)
	if iface == managerInterface && name == "Version" {
		return dbus.MakeVariant(f.version), nil
	}
	value, ok := f.unitAt(msg)[name]
	if !ok {
		return dbus.Variant{}, refusal("org.freedesktop.DBus.Error.UnknownProperty", "Unknown property %s", name)
	}
	return dbus.MakeVariant(value), nil
}

func (f *fake) registerMachine(name string, id []byte, _, class string, leader uint32, _ string, netifs []int32) (dbus.ObjectPath, *dbus.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.machines[name]; ok {
		return "", refusal("org.freedesktop.machine1.MachineExists", "Machine '%s' already exists", name)
	}
	f.machines[name] = fakeMachine{id, class, leader, netifs}
	return "/org/freedesktop/machine1/machine/x", nil
}

func (f *fake) unregisterMachine(name string) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.machines[name]; !ok {
		return refusal("org.freedesktop.machine1.NoSuchMachine", "No machine '%s' known", name)
	}
	delete(f.machines, name)
	return nil
}
