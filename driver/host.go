package driver

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
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
	id     int
	memory uint64 // KiB
	cpus   []cpu
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
	mine = slices.DeleteFunc(mine, func(n int) bool { return !slices.Contains(online, n) })
	return cell{id: id, memory: memory["MemTotal"], cpus: probeCPUs(mine)}, nil
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

// stat is one named number of the host's statistics.
type stat struct {
	field string
	value uint64
}

// cpuStats reads /proc/stat for one CPU, or all with -1.
func cpuStats(path string, number int) ([]stat, error) {
	label := "cpu"
	if number != protocol.NodeCPUStatsAllCpus {
		label = "cpu" + strconv.Itoa(number)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	const nsPerTick = 1e9 / 100 // USER_HZ is 100 in the kernel's ABI
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[0] != label {
			continue
		}
		var t [8]uint64
		for i := range t[1:] {
			t[i+1], _ = strconv.ParseUint(f[i+1], 10, 64)
		}
		return []stat{
			{protocol.NodeCPUStatsKernel, (t[3] + t[6] + t[7]) * nsPerTick},
			{protocol.NodeCPUStatsUser, (t[1] + t[2]) * nsPerTick},
			{protocol.NodeCPUStatsIdle, t[4] * nsPerTick},
			{protocol.NodeCPUStatsIowait, t[5] * nsPerTick},
		}, nil
	}
	return nil, errorf(protocol.ErrInvalidArg, "Invalid cpuNum %d", number)
}

// memoryStats of the host, or of one NUMA cell, which has no buffers and
// cache of its own in what libvirt reports.
func memoryStats(number int) ([]stat, error) {
	if number == protocol.NodeMemoryStatsAllCells {
		m, err := meminfo("/proc/meminfo")
		return []stat{
			{protocol.NodeMemoryStatsTotal, m["MemTotal"]}, {protocol.NodeMemoryStatsFree, m["MemFree"]},
			{protocol.NodeMemoryStatsBuffers, m["Buffers"]}, {protocol.NodeMemoryStatsCached, m["Cached"]},
		}, err
	}
	m, err := meminfo(fmt.Sprintf("/sys/devices/system/node/node%d/meminfo", number))
	if err != nil {
		return nil, errorf(protocol.ErrInvalidArg, "Invalid cell number %d", number)
	}
	return []stat{{protocol.NodeMemoryStatsTotal, m["MemTotal"]}, {protocol.NodeMemoryStatsFree, m["MemFree"]}}, nil
}

// meminfo reads /proc/meminfo or a NUMA node's, whose lines begin with
// "Node N"; the numbers are KiB.
func meminfo(path string) (map[string]uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]uint64{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) > 3 && f[0] == "Node" {
			f = f[2:]
		}
		if len(f) >= 2 {
			values[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	return values, nil
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

// sysinfo is the firmware's description of the machine in libvirt's format
// (virsh sysinfo).
func sysinfo() (string, error) {
	type entry struct {
		Name  string `xml:"name,attr"`
		Value string `xml:",chardata"`
	}
	type section struct {
		XMLName xml.Name
		Entries []entry `xml:"entry"`
	}
	doc := struct {
		XMLName  xml.Name  `xml:"sysinfo"`
		Type     string    `xml:"type,attr"`
		Sections []section `xml:",any"`
	}{Type: "smbios"}
	for _, s := range []struct {
		name   string
		fields []string
	}{
		{"bios", []string{"vendor=bios_vendor", "version=bios_version", "date=bios_date", "release=bios_release"}},
		{"system", []string{"manufacturer=sys_vendor", "product=product_name", "version=product_version", "serial=product_serial", "uuid=product_uuid", "sku=product_sku", "family=product_family"}},
		{"baseBoard", []string{"manufacturer=board_vendor", "product=board_name", "version=board_version", "serial=board_serial", "asset=board_asset_tag"}},
		{"chassis", []string{"manufacturer=chassis_vendor", "version=chassis_version", "serial=chassis_serial", "asset=chassis_asset_tag"}},
	} {
		sec := section{XMLName: xml.Name{Local: s.name}}
		for _, f := range s.fields {
			name, file, _ := strings.Cut(f, "=")
			if value := readLine("/sys/class/dmi/id/" + file); value != "" {
				sec.Entries = append(sec.Entries, entry{name, value})
			}
		}
		if len(sec.Entries) > 0 {
			doc.Sections = append(doc.Sections, sec)
		}
	}
	if len(doc.Sections) == 0 {
		return "", errorf(protocol.ErrOperationUnsupported, "Host SMBIOS information is not available")
	}
	out, err := xml.MarshalIndent(doc, "", "  ")
	return string(out) + "\n", err
}
