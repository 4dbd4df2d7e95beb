package driver

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// pages are memory pages of one size in a NUMA cell or in the whole host.
type pages struct {
	size        uint64 // KiB
	count, free uint64
}

const (
	sysNode      = "/sys/devices/system/node"
	sysHugePages = "/sys/kernel/mm/hugepages"
)

// pages lists those of a cell by size, beginning with the system's own. As in
// libvirt (virNumaGetPages) memory that is set aside for huge pages is not
// also counted in small ones.
func (c cell) pages() ([]pages, error) {
	dir := fmt.Sprintf("%s/node%d", sysNode, c.id)
	if _, err := os.Stat(dir); err != nil {
		return hostPages() // a kernel without NUMA has one cell
	}
	return readPages(dir+"/meminfo", c.hugePages())
}

// hugePages is the directory of a cell's pools.
func (c cell) hugePages() string {
	dir := fmt.Sprintf("%s/node%d/hugepages", sysNode, c.id)
	if _, err := os.Stat(dir); err != nil {
		return sysHugePages
	}
	return dir
}

// hostPages is the same for the whole host.
func hostPages() ([]pages, error) { return readPages("/proc/meminfo", sysHugePages) }

func readPages(memory, huge string) ([]pages, error) {
	m, err := meminfo(memory)
	if err != nil {
		return nil, err
	}
	unit := uint64(os.Getpagesize()) >> 10
	list := []pages{{size: unit, free: m["MemFree"] / unit}}
	total := m["MemTotal"]
	dirs, _ := filepath.Glob(huge + "/hugepages-*kB") // none without huge pages
	for _, dir := range dirs {
		text := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(dir), "hugepages-"), "kB")
		size, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			continue
		}
		p := pages{size: size, count: uint64(max(0, readNumber(dir+"/nr_hugepages"))), free: uint64(max(0, readNumber(dir+"/free_hugepages")))}
		total -= min(total, p.count*p.size)
		list = append(list, p)
	}
	list[0].count = total / unit
	slices.SortFunc(list, func(a, b pages) int { return cmp.Compare(a.size, b.size) })
	return list, nil
}

// countPages adds what capabilities say of each cell's pages: an administrator
// can set pages aside at any time.
func (h *host) countPages(cells []xml.Cell) error {
	for n, c := range h.cells {
		list, err := c.pages()
		if err != nil {
			return err
		}
		for _, p := range list {
			cells[n].Pages = append(cells[n].Pages, xml.Pages{KiB: int(p.size), Count: p.count})
		}
	}
	return nil
}

// nodeFreePages counts free pages: for each cell from the start cell on, each
// of the sizes asked for, in KiB. Start cell -1 is the whole host
// (virHostMemGetFreePages).
func nodeFreePages(r *request, a *protocol.NodeGetFreePagesArgs) (ret protocol.NodeGetFreePagesRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	cells := r.drv.host.cells
	switch {
	case len(a.Pages) == 0 || a.CellCount == 0:
		return ret, errorf(protocol.ErrInvalidArg, "at least one page size and one cell must be asked for")
	case uint64(len(a.Pages))*uint64(a.CellCount) > protocol.NodeMaxCells:
		return ret, errorf(protocol.ErrInternalError, "the result has more than %d numbers: ask for fewer at a time", protocol.NodeMaxCells)
	case a.StartCell < -1 || int(a.StartCell) >= len(cells):
		return ret, errorf(protocol.ErrInternalError, "start cell %d out of range (0-%d)", a.StartCell, len(cells)-1)
	}
	if a.StartCell == -1 {
		list, err := hostPages()
		if err != nil {
			return ret, err
		}
		ret.Counts, err = freePages(list, a.Pages)
		return ret, err
	}
	for _, c := range cells[a.StartCell:min(len(cells), int(a.StartCell)+int(a.CellCount))] {
		list, err := c.pages()
		if err != nil {
			return ret, err
		}
		counts, err := freePages(list, a.Pages)
		if err != nil {
			return ret, err
		}
		ret.Counts = append(ret.Counts, counts...)
	}
	return ret, nil
}

// nodeAllocPages makes pools of huge pages as large as asked for, or larger by
// so much with the flag to add: those of each cell from the start cell on, or
// of the whole host with -1 (virHostMemAllocPages). When the kernel does not
// find as much free memory in one piece, all pools become what they were.
func nodeAllocPages(r *request, a *protocol.NodeAllocPagesArgs) (ret protocol.NodeAllocPagesRet, err error) {
	if err := checkFlags(a.Flags, protocol.NodeAllocPagesSet); err != nil {
		return ret, err
	}
	cells := r.drv.host.cells
	switch {
	case len(a.PageSizes) == 0 || len(a.PageSizes) != len(a.PageCounts) || a.CellCount == 0:
		return ret, errorf(protocol.ErrInvalidArg, "at least one page size, with a count for each, and one cell must be given")
	case a.StartCell < -1 || int(a.StartCell) >= len(cells):
		return ret, errorf(protocol.ErrInternalError, "start cell %d out of range (0-%d)", a.StartCell, len(cells)-1)
	}
	dirs := []string{sysHugePages}
	if a.StartCell >= 0 {
		dirs = nil
		for _, c := range cells[a.StartCell:min(uint64(len(cells)), uint64(a.StartCell)+uint64(a.CellCount))] {
			dirs = append(dirs, c.hugePages())
		}
	}
	err = setPools(dirs, a.PageSizes, a.PageCounts, a.Flags&protocol.NodeAllocPagesSet == 0)
	return protocol.NodeAllocPagesRet{Ret: int32(len(dirs) * len(a.PageSizes))}, err
}

// setPools gives the pools of each size in each of the directories a number
// of pages, or adds so many.
func setPools(dirs []string, sizes []uint32, counts []uint64, add bool) (err error) {
	undo := map[string]int{}
	defer func() {
		if err != nil {
			for pool, count := range undo {
				os.WriteFile(pool, []byte(strconv.Itoa(count)), 0)
			}
		}
	}()
	for _, dir := range dirs {
		for n, size := range sizes {
			pool := fmt.Sprintf("%s/hugepages-%dkB/nr_hugepages", dir, size)
			old := readNumber(pool)
			if old < 0 {
				return errorf(protocol.ErrOperationFailed, "page size %d KiB is not available: the host's pools are %s", size, poolsOf(dir))
			}
			want := counts[n]
			if add {
				want += uint64(old)
			}
			if _, done := undo[pool]; !done {
				undo[pool] = old
			}
			if err := os.WriteFile(pool, strconv.AppendUint(nil, want, 10), 0); err != nil {
				return errorf(protocol.ErrOperationFailed, "cannot make a pool of %d pages: %v", want, err)
			}
			if got := readNumber(pool); uint64(got) != want {
				return errorf(protocol.ErrOperationFailed, "Unable to allocate %d pages. Allocated only %d", want, got)
			}
		}
	}
	return nil
}

func poolsOf(dir string) string {
	found, _ := filepath.Glob(dir + "/hugepages-*kB")
	for n := range found {
		found[n] = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[n]), "hugepages-"), "kB")
	}
	return strings.Join(found, ", ") + " KiB"
}

func freePages(list []pages, sizes []uint32) ([]uint64, error) {
	var counts []uint64
	for _, size := range sizes {
		n := slices.IndexFunc(list, func(p pages) bool { return p.size == uint64(size) })
		if n < 0 {
			return nil, errorf(protocol.ErrOperationFailed, "page size %d KiB is not available: the host has %s", size, sizesOf(list))
		}
		counts = append(counts, list[n].free)
	}
	return counts, nil
}

func sizesOf(list []pages) string {
	var names []string
	for _, p := range list {
		names = append(names, strconv.FormatUint(p.size, 10))
	}
	return strings.Join(names, ", ") + " KiB"
}
