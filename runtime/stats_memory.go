package runtime

// MemoryStats is in bytes, where nothing else is said. What the environment's
// processes and the kernel on their behalf use is charged to it, page cache
// and tmpfs included.
type MemoryStats struct {
	Current, Peak       Number
	Min, Low, High, Max Number

	Swap, SwapPeak, SwapMax Number

	Anon, File, Shmem        Number // anonymous; page cache, with tmpfs; tmpfs and shared memory alone
	ActiveFile, InactiveFile Number // page cache without tmpfs: can be dropped or written back
	Kernel, Sock             Number // all the kernel's own; buffers of sockets, not part of it
	SlabReclaimable          Number // of Kernel: dentries, inodes
	Unevictable              Number // locked into memory

	Faults, MajorFaults   Number // counts; Faults has the major ones too
	SwappedIn, SwappedOut Number // pages; Linux 6.12 does not tell them yet

	Events     MemoryEvents
	SwapEvents SwapEvents
}

// MemoryEvents counts how often usage met a limit.
type MemoryEvents struct {
	Low, High, Max Number // reclaimed although below Low, throttled above High, about to exceed Max
	OOM            Number // Max was met and nothing could be reclaimed
	Killed         Number // processes killed for it, one by one
	GroupKilled    Number // as a group
}

// SwapEvents counts how often the limit of swap was met, and refusals for
// whatever reason.
type SwapEvents struct{ Max, Failed Number }

// Memory reads all about memory.
func (c *Cgroup) Memory() (s MemoryStats) {
	for _, f := range []key{
		{"memory.current", &s.Current}, {"memory.peak", &s.Peak},
		{"memory.min", &s.Min}, {"memory.low", &s.Low}, {"memory.high", &s.High}, {"memory.max", &s.Max},
		{"memory.swap.current", &s.Swap}, {"memory.swap.peak", &s.SwapPeak}, {"memory.swap.max", &s.SwapMax},
	} {
		*f.value = c.number(f.name)
	}
	c.keyed("memory.stat",
		key{"anon", &s.Anon}, key{"file", &s.File}, key{"shmem", &s.Shmem},
		key{"active_file", &s.ActiveFile}, key{"inactive_file", &s.InactiveFile},
		key{"kernel", &s.Kernel}, key{"sock", &s.Sock}, key{"slab_reclaimable", &s.SlabReclaimable},
		key{"unevictable", &s.Unevictable}, key{"pgfault", &s.Faults}, key{"pgmajfault", &s.MajorFaults},
		key{"pswpin", &s.SwappedIn}, key{"pswpout", &s.SwappedOut})
	e := &s.Events
	c.keyed("memory.events", key{"low", &e.Low}, key{"high", &e.High}, key{"max", &e.Max},
		key{"oom", &e.OOM}, key{"oom_kill", &e.Killed}, key{"oom_group_kill", &e.GroupKilled})
	c.keyed("memory.swap.events", key{"max", &s.SwapEvents.Max}, key{"fail", &s.SwapEvents.Failed})
	return s
}

// Caches is page cache that can be dropped or written back, in bytes.
func (s MemoryStats) Caches() Number { return Sum(s.ActiveFile, s.InactiveFile) }

// Unused is what is left below Max, in bytes; Unknown without a limit.
func (s MemoryStats) Unused() Number {
	if !s.Current.Known() || !s.Max.Known() || s.Max == Unlimited {
		return Unknown
	}
	return max(0, s.Max-s.Current)
}

// Usable is what can be used without swapping, in bytes: the MemAvailable
// that lxcfs shows inside. Unknown without a limit.
func (s MemoryStats) Usable() Number {
	n := Sum(s.Unused(), s.Caches(), s.SlabReclaimable)
	return min(n, s.Max)
}
