package systemd

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// cpuMax bounds processor and node numbers; the kernel's own limit (CONFIG_NR_CPUS) is 8192.
const cpuMax = 8192

// mask is a set as systemd wants it: bit n%8 of byte n/8, no longer than needed (cpu_set_to_dbus in
// src/shared/cpu-set-util.c).
func mask(numbers []int) []byte {
	bits := []byte{}
	for _, n := range numbers {
		if n < 0 || n >= cpuMax {
			continue
		}
		for len(bits) <= n/8 {
			bits = append(bits, 0)
		}
		bits[n/8] |= 1 << (n % 8)
	}
	return bits
}

// ParseCPUList reads the kernel's and libvirt's notation "0-3,7" or "0-7,^4", ascending and without duplicates. An
// empty list is an error: to systemd it would mean every processor.
func ParseCPUList(list string) ([]int, error) {
	in := make([]bool, cpuMax)
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		body, without := strings.CutPrefix(part, "^")
		first, last, isRange := strings.Cut(body, "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 16)
		b, errB := strconv.ParseUint(last, 10, 16)
		if errA != nil || errB != nil || a > b || b >= cpuMax || without && isRange {
			return nil, fmt.Errorf("cpu list %q: %q is no number or range below %d, such as 3, 0-3 or ^2", list, part, cpuMax)
		}
		for n := a; n <= b; n++ {
			in[n] = !without
		}
	}
	var cpus []int
	for n, yes := range in {
		if yes {
			cpus = append(cpus, n)
		}
	}
	if cpus == nil {
		return nil, fmt.Errorf("cpu list %q leaves no processor", list)
	}
	return slices.Clip(cpus), nil
}
