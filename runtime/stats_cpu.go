package runtime

import "math"

// CPUStats is processor time in nanoseconds. cgroup v2 keeps none of it by CPU.
type CPUStats struct {
	Usage, User, System Number

	// With a quota: periods that passed, those in which it was used up, and
	// how long tasks then waited, in nanoseconds.
	Periods, Throttled, ThrottledTime Number
}

// CPU reads the processor time.
func (c *Cgroup) CPU() (s CPUStats) {
	c.keyed("cpu.stat",
		key{"usage_usec", &s.Usage}, key{"user_usec", &s.User}, key{"system_usec", &s.System},
		key{"nr_periods", &s.Periods}, key{"nr_throttled", &s.Throttled}, key{"throttled_usec", &s.ThrottledTime})
	for _, t := range []*Number{&s.Usage, &s.User, &s.System, &s.ThrottledTime} {
		if t.Known() {
			*t = min(*t, math.MaxInt64/1000) * 1000
		}
	}
	return s
}

// TaskStats counts processes with their threads, and cgroups below the scope.
type TaskStats struct {
	Current, Peak, Max Number
	Failed             Number // forks refused because of Max

	Cgroups, MaxCgroups Number
}

// Tasks reads how many there are and may be.
func (c *Cgroup) Tasks() (s TaskStats) {
	s.Current, s.Peak, s.Max = c.number("pids.current"), c.number("pids.peak"), c.number("pids.max")
	c.keyed("pids.events", key{"max", &s.Failed})
	c.keyed("cgroup.stat", key{"nr_descendants", &s.Cgroups})
	s.MaxCgroups = c.number("cgroup.max.descendants")
	return s
}
