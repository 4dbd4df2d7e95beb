package runtime

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"virtvzd/xml"
)

// chooseCPUs makes the number of CPUs visible inside equal <vcpu>: only a
// cpuset does that, a quota changes nothing that nproc shows. Of the CPUs
// that are allowed each of the environment's gets one it may be pinned to:
// if it can, the one of keep it has already, else the least used; load counts
// the environments on each. Nil means all of the host's.
func chooseCPUs(c xml.CPULimits, host Host, load map[int]int, keep []int) ([]int, error) {
	allowed, err := allowedCPUs(c, host)
	if err != nil {
		return nil, err
	}
	count := int(c.Count)
	if count == 0 || count > len(allowed) {
		count = len(allowed)
	}
	pins := map[int][]int{}
	for _, p := range c.Pins {
		if c.Count > 0 && p.CPU >= c.Count {
			continue // pins a CPU that is off
		}
		if pins[int(p.CPU)], err = within(allowed, "<vcpupin> of CPU "+fmt.Sprint(p.CPU), p.Set); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(allowed, func(a, b int) int {
		return cmp.Or(-compareBool(slices.Contains(keep, a), slices.Contains(keep, b)), load[a]-load[b], a-b)
	})
	m := match{allowed: allowed, pins: pins, of: map[int]int{}}
	for _, n := range slices.SortedFunc(maps.Keys(pins), func(a, b int) int { return cmp.Or(len(pins[a])-len(pins[b]), a-b) }) {
		m.place(n, map[int]bool{})
	}
	for n := 0; n < count; n++ {
		if pins[n] == nil {
			m.place(n, map[int]bool{})
		}
	}
	chosen := slices.Sorted(maps.Keys(m.of))
	if len(chosen) == len(host.CPUs) {
		return nil, nil
	}
	return chosen, nil
}

// allowedCPUs are the host's within the cpuset of <vcpu> and <emulatorpin>.
func allowedCPUs(c xml.CPULimits, host Host) ([]int, error) {
	allowed, err := within(host.CPUs, "cpuset", c.Set)
	if err != nil {
		return nil, err
	}
	return within(allowed, "<emulatorpin>", c.Emulator)
}

// within is what of the CPUs is in a cpuset; "" is all.
func within(cpus []int, what, cpuset string) ([]int, error) {
	if cpuset == "" {
		return slices.Clone(cpus), nil
	}
	set, err := xml.ParseCPUSet(cpuset)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, cpuset, err)
	}
	in := slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool { return !slices.Contains(set, cpu) })
	if len(in) == 0 {
		return nil, fmt.Errorf("%s %s has none of the CPUs %s, which the environment may use", what, cpuset, xml.FormatCPUSet(cpus))
	}
	return in, nil
}

// match finds a CPU of the host for each of the environment's, by augmenting
// paths: one already placed moves on if there is another for it. One that
// finds none shares.
type match struct {
	allowed []int         // in order of preference
	pins    map[int][]int // by CPU inside
	of      map[int]int   // CPU of the host -> CPU inside
}

func (m *match) place(n int, tried map[int]bool) bool {
	for _, cpu := range m.allowed {
		if pin := m.pins[n]; tried[cpu] || pin != nil && !slices.Contains(pin, cpu) {
			continue
		}
		tried[cpu] = true
		if other, taken := m.of[cpu]; !taken || m.place(other, tried) {
			m.of[cpu] = n
			return true
		}
	}
	return false
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
