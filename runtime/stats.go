package runtime

import (
	"fmt"
	"math"
)

// Single numbers, for those who need no more. The rest is Cgroup's.

// CPUTime is the processor time used so far, in nanoseconds.
func (i *Instance) CPUTime() (uint64, error) {
	c, err := i.Cgroup()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return i.told("cpu.stat", c.CPU().Usage)
}

// Memory is what the environment uses and may use, in bytes; max is
// math.MaxUint64 when there is no limit.
func (i *Instance) Memory() (current, max uint64, err error) {
	if current, err = i.cgroupNumber("memory.current"); err != nil {
		return 0, 0, err
	}
	max, err = i.cgroupNumber("memory.max")
	return current, max, err
}

// Tasks is the number of its processes and threads.
func (i *Instance) Tasks() (uint64, error) { return i.cgroupNumber("pids.current") }

func (i *Instance) cgroupNumber(name string) (uint64, error) {
	c, err := i.Cgroup()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return i.told(name, c.number(name))
}

// told makes an error of what must be there and is not: the cgroup is going.
func (i *Instance) told(file string, n Number) (uint64, error) {
	switch n {
	case Unknown:
		return 0, fmt.Errorf("%s of %s cannot be read: the environment has just ended", file, i.Name())
	case Unlimited:
		return math.MaxUint64, nil
	}
	return uint64(n), nil
}
