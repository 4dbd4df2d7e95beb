package xml

import "math"

// ubc is one of OpenVZ's user beancounters, as in its CTID.conf: a limit in
// the beancounter's own unit.
type ubc struct {
	Name    string  `xml:"name,attr"`
	Barrier *uint64 `xml:"barrier,attr"`
	Limit   *uint64 `xml:"limit,attr"`
}

// maxBeancounter is OpenVZ's number for "unlimited", LONG_MAX.
const maxBeancounter = math.MaxInt64

// pageSize is what a page of a beancounter is.
const pageSize = 4096

// beancounters are those the mainline kernel has a limit for. least is the
// smallest an init can live with.
var beancounters = map[string]struct {
	least uint64
	set   func(*CountLimits, *MemoryLimits, uint64)
}{
	"numproc":            {1, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.Tasks = n }},
	"numpty":             {1, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.Terminals = n }},
	"shmpages":           {0, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.SharedPages = n }},
	"nummemorysubgroups": {0, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.Cgroups = n }},
	"numfile":            {64, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.Files = n }},
	"lockedpages":        {0, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.LockedPages = n }},
	"numsiginfo":         {0, func(c *CountLimits, _ *MemoryLimits, n uint64) { c.Signals = n }},
	"oomguarpages":       {0, func(_ *CountLimits, m *MemoryLimits, n uint64) { m.Min = pages(n) }},
}

func pages(n uint64) uint64 {
	if n > maxBeancounter/pageSize {
		return math.MaxUint64
	}
	return n * pageSize
}

// refusedBeancounters have an element of their own, or no limit in the
// mainline kernel.
var refusedBeancounters = map[string]string{
	"physpages":    "is <currentMemory>: use it, or virsh setmem",
	"swappages":    "is <memtune><swap_hard_limit> less the memory: use it, or virsh memtune",
	"privvmpages":  "is <memtune><soft_limit> and <hard_limit>: use them, or virsh memtune",
	"vmguarpages":  "is <memtune><min_guarantee>: use it, or virsh memtune",
	"kmemsize":     "has no limit of its own: the kernel counts its memory as the environment's, under <memory>",
	"dcachesize":   "has no limit of its own: the kernel counts its caches as the environment's, under <memory>",
	"numtcpsock":   "has no limit in this kernel: sockets count as memory, under <memory>",
	"numothersock": "has no limit in this kernel: sockets count as memory, under <memory>",
	"numsock":      "has no limit in this kernel: sockets count as memory, under <memory>",
	"numunixsock":  "has no limit in this kernel: sockets count as memory, under <memory>",
	"tcpsndbuf":    "has no limit of its own: socket buffers count as memory, under <memory>",
	"tcprcvbuf":    "has no limit of its own: socket buffers count as memory, under <memory>",
	"othersockbuf": "has no limit of its own: socket buffers count as memory, under <memory>",
	"dgramrcvbuf":  "has no limit of its own: socket buffers count as memory, under <memory>",
	"numflock":     "has no limit in this kernel: file locks count as memory, under <memory>",
	"numiptent":    "has no limit in this kernel: packet filter rules count as memory, under <memory>",
	"avnumproc":    "was never enforced: use numproc",
	"numnetif":     "has no limit in this kernel",
}

func (v *ve) checkUBC() error {
	seen := map[string]bool{}
	for _, u := range v.UBC {
		if reason, refused := refusedBeancounters[u.Name]; refused {
			return unsupported("<ve:ubc>", "%s %s", u.Name, reason)
		}
		known, ok := beancounters[u.Name]
		if !ok {
			return invalid("<ve:ubc>", "has the name '%s', which is no beancounter", shorten(u.Name))
		}
		if seen[u.Name] {
			return invalid("<ve:ubc>", "occurs twice for %s", u.Name)
		}
		seen[u.Name] = true
		if u.Limit == nil || *u.Limit < known.least || *u.Limit > maxBeancounter {
			return invalid("<ve:ubc>", "of %s needs a limit of %d to %d, which is no limit", u.Name, known.least, uint64(maxBeancounter))
		}
	}
	if seen["numproc"] && v.Tasks != nil {
		return invalid("<ve:ubc>", "numproc and <ve:tasks> are the same limit: give one of them")
	}
	return nil
}

func (v *ve) applyUBC(c *CountLimits, m *MemoryLimits) {
	for _, u := range v.UBC {
		limit := *u.Limit
		if limit == maxBeancounter {
			limit = math.MaxUint64
		}
		beancounters[u.Name].set(c, m, limit)
	}
}
