package runtime

import (
	"fmt"
	"math"
	"slices"
	"time"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// defaultTasks bounds an environment that configures nothing: processes are
// taken from the host's pids, so "none" would let one environment stop all.
const defaultTasks = 32768

// stopTimeout bounds "machinectl terminate" and a host shutdown: both stop the
// scope, and not every init inside ends on SIGTERM.
const stopTimeout = 30 * time.Second

// planScope is everything systemd is told about an environment. It does not
// depend on the root, so the scope is created while the root is still being mounted.
// All limits are on the scope and nowhere else.
func planScope(env *xml.Environment, host Host, res Reserved) (systemd.Scope, error) {
	s := systemd.Scope{
		Name:        systemd.ScopeName(env.Name),
		Slice:       "machine.slice",
		Description: "Environment " + env.Name,
	}
	if env.Partition != "" {
		slice, err := systemd.SliceName(env.Partition)
		if err != nil {
			return s, fmt.Errorf("partition %s: %w", env.Partition, err)
		}
		s.Slice = slice
	}
	s.Properties = []systemd.Property{
		systemd.Delegate(true),
		systemd.CollectMode("inactive-or-failed"),
		systemd.TimeoutStop(stopTimeout),
		systemd.CPUAccounting(true),
		systemd.MemoryAccounting(true),
		systemd.IOAccounting(true),
		systemd.TasksAccounting(true),
		// closed and not strict: the OCI runtime runs inside the scope and needs null, zero…
		systemd.DevicePolicy(systemd.DeviceClosed),
	}
	s.Properties = append(s.Properties, memoryProperties(env.Memory)...)
	cpu, err := cpuProperties(env.CPU, host, res)
	if err != nil {
		return s, err
	}
	s.Properties = append(s.Properties, cpu...)
	tasks := env.Tasks
	if tasks == 0 || tasks == unlimited {
		tasks = defaultTasks
	}
	s.Properties = append(s.Properties, systemd.TasksMax(tasks))
	if devices := scopeDevices(env); len(devices) > 0 {
		s.Properties = append(s.Properties, systemd.DeviceAllow(devices...))
	}
	return s, nil
}

func memoryProperties(m xml.MemoryLimits) []systemd.Property {
	props := []systemd.Property{systemd.MemoryMax(limit(m.Max)), systemd.MemorySwapMax(m.Swap)}
	if m.High != 0 && m.High != math.MaxUint64 {
		props = append(props, systemd.MemoryHigh(m.High))
	}
	if m.Low != 0 {
		props = append(props, systemd.MemoryLow(m.Low))
	}
	return props
}

// limit reads 0 as "not configured".
func limit(bytes uint64) uint64 {
	if bytes == 0 {
		return systemd.Infinity
	}
	return bytes
}

func cpuProperties(c xml.CPULimits, host Host, res Reserved) ([]systemd.Property, error) {
	var props []systemd.Property
	if c.Weight != 0 {
		props = append(props, systemd.CPUWeight(min(max(c.Weight, 1), 10000)))
	}
	if c.QuotaUSec > 0 {
		period := c.PeriodUSec
		if period == 0 {
			period = 100000
		}
		props = append(props,
			systemd.CPUQuota(uint64(c.QuotaUSec)*1000000/period),
			systemd.CPUQuotaPeriod(time.Duration(period)*time.Microsecond))
	}
	cpus, err := chooseCPUs(c, host, res.CPULoad)
	if err != nil {
		return nil, err
	}
	if len(cpus) > 0 {
		props = append(props, systemd.AllowedCPUs(cpus...))
	}
	return props, nil
}

// chooseCPUs makes the number of CPUs visible inside equal <vcpu>: only a
// cpuset does that, a quota changes nothing that nproc shows. The least used of
// the allowed CPUs are taken; load counts the environments on each. Nil means
// all of the host's.
func chooseCPUs(c xml.CPULimits, host Host, load map[int]int) ([]int, error) {
	allowed := host.CPUs
	if c.Set != "" {
		set, err := xml.ParseCPUSet(c.Set)
		if err != nil {
			return nil, fmt.Errorf("cpuset %s: %w", c.Set, err)
		}
		allowed = slices.DeleteFunc(slices.Clone(host.CPUs), func(cpu int) bool { return !slices.Contains(set, cpu) })
		if len(allowed) == 0 {
			return nil, fmt.Errorf("cpuset %s has none of the host's CPUs", c.Set)
		}
	}
	if c.Count > 0 && int(c.Count) < len(allowed) {
		allowed = slices.Clone(allowed)
		slices.SortStableFunc(allowed, func(a, b int) int { return load[a] - load[b] })
		allowed = slices.Clone(allowed[:c.Count])
		slices.Sort(allowed)
	}
	if len(allowed) == len(host.CPUs) {
		return nil, nil
	}
	return allowed, nil
}
