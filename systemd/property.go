package systemd

import (
	"math"
	"time"

	"github.com/godbus/dbus/v5"
)

// Infinity is "no limit" for every limit in bytes, tasks or microseconds. For CPUWeight and IOWeight it is "not set".
const Infinity = math.MaxUint64

// Property is one property of a unit on its way to systemd. Use the constructors: systemd refuses a value of the
// wrong D-Bus type.
type Property struct {
	Name  string
	Value dbus.Variant
}

func property(name string, value any) Property { return Property{name, dbus.MakeVariant(value)} }

// Memory. All in bytes, rounded down to pages by the kernel. Infinity takes a maximum away; for MemoryLow and
// MemoryMin 0 takes the protection away and Infinity protects everything.
// MemoryMax is the limit beyond which the kernel kills, MemoryHigh the one beyond which it slows down and
// reclaims. MemorySwapMax is swap alone, without memory. MemoryZSwapMax is what may sit compressed in memory.
func MemoryMax(bytes uint64) Property      { return property("MemoryMax", bytes) }
func MemoryHigh(bytes uint64) Property     { return property("MemoryHigh", bytes) }
func MemoryLow(bytes uint64) Property      { return property("MemoryLow", bytes) }
func MemoryMin(bytes uint64) Property      { return property("MemoryMin", bytes) }
func MemorySwapMax(bytes uint64) Property  { return property("MemorySwapMax", bytes) }
func MemoryZSwapMax(bytes uint64) Property { return property("MemoryZSwapMax", bytes) }

// CPUWeight is the share under contention, 1 to 10000; the kernel's default is 100, 0 is "idle", Infinity not set.
func CPUWeight(weight uint64) Property { return property("CPUWeight", weight) }

// CPUQuota is CPUQuotaPerSecUSec: microseconds of processor time per second, 1,000,000 for each whole processor.
// Infinity is no quota.
func CPUQuota(usecPerSec uint64) Property { return property("CPUQuotaPerSecUSec", usecPerSec) }

// CPUQuotaPeriod is over how long the quota is counted; systemd clamps it to 1 ms … 1 s. 0 is the default, 100 ms.
func CPUQuotaPeriod(d time.Duration) Property {
	if d <= 0 {
		return property("CPUQuotaPeriodUSec", uint64(Infinity))
	}
	return property("CPUQuotaPeriodUSec", uint64(d.Microseconds()))
}

// AllowedCPUs pins to processors. An empty set does not undo it on a running unit: name every processor for that.
func AllowedCPUs(cpus ...int) Property { return property("AllowedCPUs", mask(cpus)) }

// AllowedMemoryNodes is AllowedCPUs for NUMA nodes.
func AllowedMemoryNodes(nodes ...int) Property { return property("AllowedMemoryNodes", mask(nodes)) }

// TasksMax limits processes and threads together.
func TasksMax(n uint64) Property { return property("TasksMax", n) }

// IOWeight is the share of a contended disk, 1 to 10000, default 100; it needs a scheduler (bfq) or iocost.
func IOWeight(weight uint64) Property { return property("IOWeight", weight) }

// DeviceValue is a value for one block device: Path is its node, or any file on a file system on it.
type DeviceValue struct {
	Path  string
	Value uint64
}

// Per-device I/O limits: bytes per second, operations per second, weights 1 to 10000. Entries are added to those that
// are set; Infinity takes one device's limit away, an empty list every device's.
func IOReadBandwidthMax(limits ...DeviceValue) Property {
	return property("IOReadBandwidthMax", list(limits))
}
func IOWriteBandwidthMax(limits ...DeviceValue) Property {
	return property("IOWriteBandwidthMax", list(limits))
}
func IOReadIOPSMax(limits ...DeviceValue) Property { return property("IOReadIOPSMax", list(limits)) }
func IOWriteIOPSMax(limits ...DeviceValue) Property {
	return property("IOWriteIOPSMax", list(limits))
}
func IODeviceWeight(weights ...DeviceValue) Property {
	return property("IODeviceWeight", list(weights))
}

// DevicePolicy values. "closed" is what environments use: with "strict" an OCI runtime that runs inside the scope
// cannot make its standard devices.
const (
	DeviceStrict = "strict" // only what DeviceAllow names
	DeviceClosed = "closed" // that and null, zero, full, random, urandom, tty, ptmx, pts
	DeviceAuto   = "auto"   // everything unless DeviceAllow names something, then as closed
)

func DevicePolicy(policy string) Property { return property("DevicePolicy", policy) }

// Device is one entry of DeviceAllow: a node (/dev/fuse) or a class (char-pts, block-loop), and any of "r", "w", "m"
// for reading, writing and mknod. Empty Permissions mean "rwm".
type Device struct{ Path, Permissions string }

// DeviceAllow adds entries. Without any it empties the list; to remove an entry send DeviceAllow() and DeviceAllow
// of all that remain, in one SetProperties.
func DeviceAllow(devices ...Device) Property { return property("DeviceAllow", list(devices)) }

// Delegate hands the cgroup below the scope, with every controller, to what runs in it. Only at creation.
func Delegate(yes bool) Property { return property("Delegate", yes) }

// Slice is the parent, as SliceName makes it. Only at creation.
func Slice(name string) Property { return property("Slice", name) }

func Description(text string) Property { return property("Description", text) }

// CollectMode: "inactive-or-failed" forgets the unit however it ended, "inactive" keeps a failed one until
// ResetFailed, so that State can tell its Result.
func CollectMode(mode string) Property { return property("CollectMode", mode) }

// TimeoutStop is TimeoutStopUSec: how long a stop waits between SIGTERM and SIGKILL. 0 is for ever.
func TimeoutStop(d time.Duration) Property {
	if d <= 0 {
		return property("TimeoutStopUSec", uint64(Infinity))
	}
	return property("TimeoutStopUSec", uint64(d.Microseconds()))
}

// RuntimeMax is RuntimeMaxUSec: the scope is stopped after that time. 0 is never.
func RuntimeMax(d time.Duration) Property {
	if d <= 0 {
		return property("RuntimeMaxUSec", uint64(Infinity))
	}
	return property("RuntimeMaxUSec", uint64(d.Microseconds()))
}

// OOMPolicy is what systemd does after the kernel killed a process of the scope for memory: "continue", "stop" (the
// default for a scope without delegation) or "kill". Scopes have it from version 253 on.
func OOMPolicy(policy string) Property { return property("OOMPolicy", policy) }

// KillMode: "control-group" (default), "mixed", "process", "none".
func KillMode(mode string) Property { return property("KillMode", mode) }

// PIDs are processes to move into a new scope. StartScope sets it.
func PIDs(pids ...uint32) Property { return property("PIDs", list(pids)) }

// DefaultDependencies: with true, the default, the unit is stopped at shutdown before the basic services.
func DefaultDependencies(yes bool) Property { return property("DefaultDependencies", yes) }

// Ordering and dependencies on other units. Only at creation.
func After(units ...string) Property    { return property("After", list(units)) }
func Before(units ...string) Property   { return property("Before", list(units)) }
func Requires(units ...string) Property { return property("Requires", list(units)) }
func Wants(units ...string) Property    { return property("Wants", list(units)) }

// Accounting makes the counters exist; a limit of that kind switches it on by itself.
func MemoryAccounting(on bool) Property { return property("MemoryAccounting", on) }
func CPUAccounting(on bool) Property    { return property("CPUAccounting", on) }
func IOAccounting(on bool) Property     { return property("IOAccounting", on) }
func TasksAccounting(on bool) Property  { return property("TasksAccounting", on) }

// list makes nil an empty list: godbus would send either, but a test compares values.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
