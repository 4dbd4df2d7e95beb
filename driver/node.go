package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

var node = table{
	call(protocol.NodeGetInfo, nodeInfo),
	call(protocol.NodeGetCPUStats, nodeCPUStats),
	call(protocol.NodeGetCPUMap, nodeCPUMap),
	call(protocol.NodeGetMemoryStats, nodeMemoryStats),
	call(protocol.NodeGetFreeMemory, nodeFreeMemory),
	call(protocol.NodeSuspendForDuration, suspendHost),
	call(protocol.NodeGetCellsFreeMemory, nodeCellsFreeMemory),
	call(protocol.NodeGetFreePages, nodeFreePages),
	call(protocol.NodeAllocPages, nodeAllocPages),
	call(protocol.NodeGetMemoryParameters, nodeMemoryParameters),
	call(protocol.NodeSetMemoryParameters, setNodeMemoryParameters),
	inline(protocol.NodeGetSecurityModel, nodeSecurityModel),
}

func nodeInfo(r *request, _ *xdr.Void) (ret protocol.NodeGetInfoRet, err error) {
	h := r.drv.host
	memory, err := meminfo("/proc/meminfo")
	if err != nil {
		return ret, err
	}
	copy(ret.Model[:], wireString(h.arch))
	ret.Memory = memory["MemTotal"]
	ret.Cpus, ret.Mhz = int32(h.cpus()), int32(h.mhz())
	ret.Nodes, ret.Sockets = int32(len(h.cells)), int32(h.sockets)
	ret.Cores, ret.Threads = int32(h.cores), int32(h.threads)
	return ret, nil
}

// nodeCPUStats are nanoseconds since boot, of one CPU or of all (-1).
func nodeCPUStats(r *request, a *protocol.NodeGetCPUStatsArgs) (ret protocol.NodeGetCPUStatsRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	stats, err := cpuStats("/proc/stat", int(a.CPUNum))
	if err != nil {
		return ret, err
	}
	ret.Nparams = int32(len(stats))
	if a.Nparams == 0 {
		return ret, nil
	}
	if int(a.Nparams) != len(stats) {
		return ret, errorf(protocol.ErrInvalidArg, "nparams must be equal to %d", len(stats))
	}
	for _, s := range stats {
		ret.Params = append(ret.Params, protocol.NodeCPUStat{Field: s.field, Value: s.value})
	}
	return ret, nil
}

// nodeCPUMap is the bitmap of online CPUs.
func nodeCPUMap(r *request, a *protocol.NodeGetCPUMapArgs) (ret protocol.NodeGetCPUMapRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	present, err := cpuList("/sys/devices/system/cpu/present")
	if err != nil {
		return ret, err
	}
	online, err := cpuList("/sys/devices/system/cpu/online")
	if err != nil {
		return ret, err
	}
	ret.Ret = int32(present[len(present)-1] + 1)
	if a.NeedMap != 0 {
		ret.Cpumap = make([]byte, (ret.Ret+7)/8)
		for _, cpu := range online {
			ret.Cpumap[cpu/8] |= 1 << (cpu % 8)
		}
	}
	if a.NeedOnline != 0 {
		ret.Online = uint32(len(online))
	}
	return ret, nil
}

// nodeMemoryStats are in KiB, of one NUMA cell or of all (-1).
func nodeMemoryStats(r *request, a *protocol.NodeGetMemoryStatsArgs) (ret protocol.NodeGetMemoryStatsRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	stats, err := memoryStats(int(a.CellNum))
	if err != nil {
		return ret, err
	}
	ret.Nparams = int32(len(stats))
	if a.Nparams == 0 {
		return ret, nil
	}
	if int(a.Nparams) != len(stats) {
		return ret, errorf(protocol.ErrInvalidArg, "nparams must be equal to %d", len(stats))
	}
	for _, s := range stats {
		ret.Params = append(ret.Params, protocol.NodeMemoryStat{Field: s.field, Value: s.value})
	}
	return ret, nil
}

// nodeFreeMemory is in bytes.
func nodeFreeMemory(r *request, _ *xdr.Void) (ret protocol.NodeGetFreeMemoryRet, err error) {
	memory, err := meminfo("/proc/meminfo")
	return protocol.NodeGetFreeMemoryRet{FreeMem: memory["MemFree"] << 10}, err
}

// nodeCellsFreeMemory is in bytes for each of the NUMA cells asked for.
func nodeCellsFreeMemory(r *request, a *protocol.NodeGetCellsFreeMemoryArgs) (ret protocol.NodeGetCellsFreeMemoryRet, err error) {
	cells := r.drv.host.cells
	if a.StartCell < 0 || int(a.StartCell) >= len(cells) || a.Maxcells <= 0 {
		return ret, errorf(protocol.ErrInternalError, "start cell %d out of range (0-%d)", a.StartCell, len(cells)-1)
	}
	for _, cell := range cells[a.StartCell:min(len(cells), int(a.StartCell)+int(a.Maxcells))] {
		free, err := cell.freeMemory()
		if err != nil {
			return ret, err
		}
		ret.Cells = append(ret.Cells, free)
	}
	return ret, nil
}

// nodeSecurityModel is empty: environments are kept apart by user
// namespaces, seccomp and capabilities, not by labels.
func nodeSecurityModel(*request, *xdr.Void) (ret protocol.NodeGetSecurityModelRet, err error) {
	return protocol.NodeGetSecurityModelRet{Model: wireString(""), Doi: wireString("")}, nil
}

// wireString is text in one of the protocol's char arrays: with the NUL that
// C clients expect.
func wireString(s string) []byte {
	out := make([]byte, 0, len(s)+1)
	for _, b := range []byte(s) {
		out = append(out, b)
	}
	return append(out, 0)
}
