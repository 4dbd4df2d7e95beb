package driver

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"virtvzd/driver/protocol"
)

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
