package systemd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	systemdName      = "org.freedesktop.systemd1"
	systemdPath      = dbus.ObjectPath("/org/freedesktop/systemd1")
	managerInterface = "org.freedesktop.systemd1.Manager"
	unitInterface    = "org.freedesktop.systemd1.Unit"
	getProperty      = "org.freedesktop.DBus.Properties.Get"
	getAllProperties = "org.freedesktop.DBus.Properties.GetAll"
)

func manager(name string) Method {
	return Method{Service: systemdName, Path: systemdPath, Name: managerInterface + "." + name}
}

// unitPath is bus_label_escape of src/shared/bus-label.c below systemd's unit directory.
func unitPath(unit string) dbus.ObjectPath {
	var b strings.Builder
	b.WriteString(string(systemdPath) + "/unit/")
	for i := 0; i < len(unit); i++ {
		switch c := unit[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9' && i > 0:
			b.WriteByte(c)
		default:
			b.Write([]byte{'_', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	if unit == "" {
		b.WriteByte('_')
	}
	return dbus.ObjectPath(b.String())
}

// SetProperties changes properties of a loaded unit until it is gone or the host reboots. It is one call: systemd
// checks all of props before it applies any. A list property (DeviceAllow, IO*Max) is added to, not replaced; see
// the constructors. MemoryMax below what is in use succeeds and makes the kernel kill inside: reclaim first.
func (c *Conn) SetProperties(ctx context.Context, unit string, props ...Property) error {
	if len(props) == 0 {
		return nil
	}
	return about(unit, c.call(ctx, manager("SetUnitProperties"), []any{unit, true, props}))
}

// Freeze stops every process of the unit, inner services included, and returns when the kernel reports them frozen.
// Freezing a frozen unit succeeds.
func (c *Conn) Freeze(ctx context.Context, unit string) error {
	return about(unit, c.call(ctx, manager("FreezeUnit"), []any{unit}))
}

// Thaw undoes Freeze and returns when the processes run again.
func (c *Conn) Thaw(ctx context.Context, unit string) error {
	return about(unit, c.call(ctx, manager("ThawUnit"), []any{unit}))
}

// Kill sends a signal to every process of the unit. Fork-safe killing without D-Bus is the cgroup's cgroup.kill.
func (c *Conn) Kill(ctx context.Context, unit string, signal int) error {
	return about(unit, c.call(ctx, manager("KillUnit"), []any{unit, "all", int32(signal)}))
}

// ResetFailed lets systemd forget a failed unit. It is nil if there is no such unit.
func (c *Conn) ResetFailed(ctx context.Context, unit string) error {
	return unlessAbsent(unit, c.call(ctx, manager("ResetFailedUnit"), []any{unit}))
}

// Unit is one line of ListUnits; Load, Active and Sub are the words that systemctl prints.
type Unit struct{ Name, Description, Load, Active, Sub string }

// ListUnits returns the loaded units whose name matches any of the shell patterns, in systemd's order. Without
// patterns it is every unit of the host.
func (c *Conn) ListUnits(ctx context.Context, patterns ...string) ([]Unit, error) {
	var answer []struct {
		Name, Description, Load, Active, Sub, Followed string
		Path                                           dbus.ObjectPath
		JobID                                          uint32
		JobType                                        string
		JobPath                                        dbus.ObjectPath
	}
	if patterns == nil {
		patterns = []string{}
	}
	if err := c.call(ctx, manager("ListUnitsByPatterns"), []any{[]string{}, patterns}, &answer); err != nil {
		return nil, err
	}
	units := make([]Unit, len(answer))
	for i, u := range answer {
		units[i] = Unit{u.Name, u.Description, u.Load, u.Active, u.Sub}
	}
	return units, nil
}

// Properties returns every property of the unit, those of its type included, in one round trip. Values have the Go
// types godbus decodes to; a limit that is not set is Infinity. It is expensive for systemd (it reads the cgroup's
// counters): for one value use Property, for counters the cgroup's own files.
func (c *Conn) Properties(ctx context.Context, unit string) (map[string]any, error) {
	var answer map[string]dbus.Variant
	all := Method{Service: systemdName, Path: unitPath(unit), Name: getAllProperties}
	if err := c.call(ctx, all, []any{""}, &answer); err != nil { // "" is every interface
		return nil, about(unit, err)
	}
	// Asking for the object of an unknown unit makes systemd load it as an empty one instead of refusing.
	if load, _ := answer["LoadState"].Value().(string); load == "not-found" {
		return nil, about(unit, ErrNoSuchUnit)
	}
	values := make(map[string]any, len(answer))
	for name, v := range answer {
		values[name] = v.Value()
	}
	return values, nil
}

// generic are the properties of every unit type that are of use for one scope; D-Bus wants to know the interface.
var generic = map[string]bool{
	"Id": true, "Names": true, "Description": true, "LoadState": true, "ActiveState": true, "SubState": true,
	"FreezerState": true, "InvocationID": true, "Job": true, "CollectMode": true, "Transient": true,
	"ActiveEnterTimestamp": true, "InactiveEnterTimestamp": true, "StateChangeTimestamp": true,
}

// Property returns one property. For a unit that does not exist systemd answers with the default of that property.
func (c *Conn) Property(ctx context.Context, unit, name string) (any, error) {
	in := unitInterface
	if !generic[name] {
		kind := unit[strings.LastIndexByte(unit, '.')+1:]
		if kind == "" {
			return nil, fmt.Errorf("unit name %q has no suffix such as .scope", unit)
		}
		in = systemdName + "." + strings.ToUpper(kind[:1]) + kind[1:]
	}
	var v dbus.Variant
	get := Method{Service: systemdName, Path: unitPath(unit), Name: getProperty}
	if err := c.call(ctx, get, []any{in, name}, &v); err != nil {
		return nil, about(unit, err)
	}
	return v.Value(), nil
}

// State is where a unit stands, in systemd's words.
type State struct {
	Load, Active, Sub string // "loaded"; "active", "deactivating", "inactive", "failed"; "running", "abandoned", "dead"
	Freezer           string // "running", "freezing", "frozen", "thawing"
	// Result is why a scope failed: "success", "oom-kill" (only with OOMPolicy stop or kill), "timeout" (it had to be
	// killed after TimeoutStopUSec), "resources". A scope with CollectMode "inactive-or-failed" is forgotten before
	// it can be asked; CollectMode "inactive" keeps a failed one until ResetFailed.
	Result       string
	ControlGroup string // "" when there is none (any more)
	InvocationID [16]byte
}

// State asks for the state of a unit; ErrNoSuchUnit if it is not loaded.
func (c *Conn) State(ctx context.Context, unit string) (State, error) {
	props, err := c.Properties(ctx, unit)
	if err != nil {
		return State{}, err
	}
	text := func(name string) string { s, _ := props[name].(string); return s }
	s := State{
		Load: text("LoadState"), Active: text("ActiveState"), Sub: text("SubState"), Freezer: text("FreezerState"),
		Result: text("Result"), ControlGroup: text("ControlGroup"),
	}
	if id, ok := props["InvocationID"].([]byte); ok {
		copy(s.InvocationID[:], id)
	}
	return s, nil
}

// Version is systemd's major version, such as 257. Scopes know OOMPolicy from 253 and MemoryPressureWatch from 254 on;
// an unknown property makes the whole call fail.
func (c *Conn) Version(ctx context.Context) (int, error) {
	if known := c.version.Load(); known != 0 {
		return int(known), nil
	}
	var v dbus.Variant
	get := Method{Service: systemdName, Path: systemdPath, Name: getProperty}
	if err := c.call(ctx, get, []any{managerInterface, "Version"}, &v); err != nil {
		return 0, err
	}
	text, _ := v.Value().(string) // "257.9-1~deb13u1"; some distributions put a "v" or "systemd " before it
	digits := strings.TrimLeft(text, "systemdv ")
	if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		digits = digits[:end]
	}
	version, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("systemd's version %q does not start with a number", text)
	}
	c.version.Store(int32(version))
	return version, nil
}

// about says which unit an error is about.
func about(unit string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("unit %s: %w", unit, err)
}

func unlessAbsent(unit string, err error) error {
	if errors.Is(err, ErrNoSuchUnit) {
		return nil
	}
	return about(unit, err)
}
