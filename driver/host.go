package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// host is what of the machine does not change while the daemon runs.
type host struct {
	arch          string
	kernelVersion uint64 // major*1,000,000 + minor*1,000 + patch
	uuid          string
	cells         []cell // NUMA; one when the kernel has no NUMA
	sockets       int    // per cell
	cores         int    // per socket
	threads       int    // per core
}

// cell is a NUMA node.
type cell struct {
	id        int
	memory    uint64 // KiB
	distances []int  // to each online node in order of id, as the kernel lists them
	cpus      []cpu
}

type cpu struct {
	id, socket, core int
	siblings         string
}

const sysCPU = "/sys/devices/system/cpu"

// probeHost reads the topology.
func probeHost() (*host, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	h := &host{
		arch:          unix.ByteSliceToString(uts.Machine[:]),
		kernelVersion: kernelVersion(unix.ByteSliceToString(uts.Release[:])),
		uuid:          hostUUID(),
	}
	online, err := cpuList(sysCPU + "/online")
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's CPUs: %w", err)
	}
	nodes, _ := filepath.Glob("/sys/devices/system/node/node[0-9]*")
	for _, dir := range nodes {
		c, err := probeCell(dir, online)
		if err != nil {
			return nil, err
		}
		h.cells = append(h.cells, c)
	}
	if len(h.cells) == 0 {
		memory, err := meminfo("/proc/meminfo")
		if err != nil {
			return nil, err
		}
		h.cells = []cell{{memory: memory["MemTotal"], cpus: probeCPUs(online)}}
	}
	slices.SortFunc(h.cells, func(a, b cell) int { return a.id - b.id })
	h.count()
	return h, nil
}

// count fills sockets, cores and threads the way libvirt reports them: the
// product with the number of cells covers all CPUs.
func (h *host) count() {
	sockets, cores := map[int]bool{}, map[[2]int]bool{}
	for _, c := range h.cells[0].cpus {
		sockets[c.socket] = true
		cores[[2]int{c.socket, c.core}] = true
	}
	h.sockets = max(1, len(sockets))
	h.cores = max(1, len(cores)/h.sockets)
	h.threads = max(1, len(h.cells[0].cpus)/max(1, len(cores)))
}

func (h *host) cpus() int {
	n := 0
	for _, c := range h.cells {
		n += len(c.cpus)
	}
	return n
}

// mhz is the current speed of the first CPU, 0 when unknown.
func (h *host) mhz() int {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "cpu MHz" {
			mhz, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(mhz)
		}
	}
	return 0
}

func probeCell(dir string, online []int) (cell, error) {
	id, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), "node"))
	if err != nil {
		return cell{}, err
	}
	mine, err := cpuList(dir + "/cpulist")
	if err != nil {
		return cell{}, err
	}
	memory, err := meminfo(dir + "/meminfo")
	if err != nil {
		return cell{}, err
	}
	var distances []int
	for text := range strings.FieldsSeq(readLine(dir + "/distance")) {
		n, err := strconv.Atoi(text)
		if err != nil {
			return cell{}, fmt.Errorf("%s/distance: cannot read %q", dir, text)
		}
		distances = append(distances, n)
	}
	mine = slices.DeleteFunc(mine, func(n int) bool { return !slices.Contains(online, n) })
	return cell{id: id, memory: memory["MemTotal"], distances: distances, cpus: probeCPUs(mine)}, nil
}

func probeCPUs(ids []int) []cpu {
	var list []cpu
	for _, id := range ids {
		dir := fmt.Sprintf("%s/cpu%d/topology/", sysCPU, id)
		list = append(list, cpu{id: id, socket: max(0, readNumber(dir+"physical_package_id")),
			core: max(0, readNumber(dir+"core_id")), siblings: readLine(dir + "thread_siblings_list")})
	}
	return list
}

// freeMemory of a cell, in bytes.
func (c cell) freeMemory() (uint64, error) {
	path := fmt.Sprintf("/sys/devices/system/node/node%d/meminfo", c.id)
	if _, err := os.Stat(path); err != nil {
		path = "/proc/meminfo"
	}
	memory, err := meminfo(path)
	return memory["MemFree"] << 10, err
}

// facts are the host as definitions and capabilities need it.
func (h *host) facts() xml.HostFacts {
	f := xml.HostFacts{Arch: h.arch, UUID: h.uuid, MaxVCPUs: h.cpus()}
	for _, c := range h.cells {
		next := xml.Cell{ID: c.id, MemoryKiB: c.memory, Distances: c.distances}
		for _, u := range c.cpus {
			next.CPUs = append(next.CPUs, xml.CPU{ID: u.id, Socket: u.socket, Core: u.core, Siblings: u.siblings})
		}
		f.Cells = append(f.Cells, next)
	}
	return f
}

// cpuList reads a kernel list such as "0-3,8".
func cpuList(path string) ([]int, error) {
	text := readLine(path)
	if text == "" {
		return nil, fmt.Errorf("%s is empty or cannot be read", path)
	}
	var list []int
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || from < 0 || to < from || to > 1<<16 {
			return nil, fmt.Errorf("%s: cannot read %q", path, text)
		}
		for n := from; n <= to; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}

func readLine(path string) string {
	data, _ := os.ReadFile(path)
	return strings.TrimSpace(string(data))
}

// readNumber gives -1 when there is none.
func readNumber(path string) int {
	n, err := strconv.Atoi(readLine(path))
	if err != nil {
		return -1
	}
	return n
}

// kernelVersion packs "6.12.41+deb13" as libvirt packs versions.
func kernelVersion(release string) uint64 {
	var v [3]uint64
	fmt.Sscanf(release, "%d.%d.%d", &v[0], &v[1], &v[2])
	return v[0]*1_000_000 + v[1]*1_000 + v[2]
}

// hostUUID is the firmware's, or on machines without one the machine id.
func hostUUID() string {
	if id, err := protocol.ParseUUID(readLine("/sys/class/dmi/id/product_uuid")); err == nil {
		return id.String()
	}
	if id, err := protocol.ParseUUID(readLine("/etc/machine-id")); err == nil {
		return id.String()
	}
	return protocol.UUID{}.String()
}
