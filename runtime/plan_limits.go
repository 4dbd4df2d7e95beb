package runtime

import (
	"time"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// defaultTasks bounds an environment that configures nothing: processes are
// taken from the host's pids, so "none" would let one environment stop all.
const defaultTasks = 32768

// limitProperties are an environment's limits as properties of its scope: all
// that Tune can change of it. What is not limited is there too, as "none", so
// that two plans can be compared property by property. cpus are those it may
// run on, nil for all.
func limitProperties(env *xml.Environment, cpus []int) []systemd.Property {
	m, c := env.Memory, env.CPU
	props := []systemd.Property{
		systemd.MemoryMax(orInfinity(m.Max)),
		systemd.MemorySwapMax(m.Swap),
		systemd.MemoryHigh(orInfinity(m.High)),
		systemd.MemoryLow(m.Low),
		systemd.MemoryMin(m.Min),
		systemd.CPUWeight(orInfinity(c.Weight)),
		systemd.CPUQuota(systemd.Infinity),
		systemd.CPUQuotaPeriod(0),
		systemd.IOWeight(orInfinity(env.IO.Weight)),
		systemd.TasksMax(tasksMax(env.Counts.Tasks)),
	}
	if c.QuotaUSec > 0 {
		period := c.PeriodUSec
		if period == 0 {
			period = xml.DefaultPeriod
		}
		props[6] = systemd.CPUQuota(uint64(c.QuotaUSec) * 1000000 / period)
		props[7] = systemd.CPUQuotaPeriod(time.Duration(period) * time.Microsecond)
	}
	if cpus != nil {
		props = append(props, systemd.AllowedCPUs(cpus...))
	}
	if nodes, err := systemd.ParseCPUList(c.MemoryNodes); err == nil {
		props = append(props, systemd.AllowedMemoryNodes(nodes...))
	}
	if devices := scopeDevices(env.Devices); len(devices) > 0 {
		props = append(props, systemd.DeviceAllow(devices...))
	}
	return append(props, ioProperties(env.IO)...)
}

// orInfinity reads 0 as "not configured".
func orInfinity(n uint64) uint64 {
	if n == 0 {
		return systemd.Infinity
	}
	return n
}

func tasksMax(n uint64) uint64 {
	if n == 0 || n == unlimited {
		return defaultTasks
	}
	return n
}

// ioProperties are one property for each kind of limit that some device has.
func ioProperties(limits xml.IOLimits) (props []systemd.Property) {
	for _, kind := range ioKinds {
		var list []systemd.DeviceValue
		for _, d := range limits.Devices {
			if v := kind.of(d); v != 0 {
				list = append(list, systemd.DeviceValue{Path: d.Path, Value: v})
			}
		}
		if len(list) > 0 {
			props = append(props, kind.property(list...))
		}
	}
	return props
}

// ioKinds are the limits a device can have. none is what takes one away:
// systemd forgets a limit by Infinity, but the kernel keeps a weight until it
// is given another.
var ioKinds = []struct {
	of       func(xml.DeviceIO) uint64
	property func(...systemd.DeviceValue) systemd.Property
	none     uint64
}{
	{func(d xml.DeviceIO) uint64 { return d.Weight }, systemd.IODeviceWeight, 100},
	{func(d xml.DeviceIO) uint64 { return d.ReadBytes }, systemd.IOReadBandwidthMax, systemd.Infinity},
	{func(d xml.DeviceIO) uint64 { return d.WriteBytes }, systemd.IOWriteBandwidthMax, systemd.Infinity},
	{func(d xml.DeviceIO) uint64 { return d.ReadIOPS }, systemd.IOReadIOPSMax, systemd.Infinity},
	{func(d xml.DeviceIO) uint64 { return d.WriteIOPS }, systemd.IOWriteIOPSMax, systemd.Infinity},
}
