package driver

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// sysKSM is where the kernel is told how to merge pages of equal content
// (Documentation/admin-guide/mm/ksm.rst).
const sysKSM = "/sys/kernel/mm/ksm/"

// ksmParams are the parameters in libvirt's order (virHostMemGetParameters).
// Those that can be set are unsigned ints.
var ksmParams = []struct {
	name, file string
	writable   bool
}{
	{protocol.NodeMemorySharedPagesToScan, "pages_to_scan", true},
	{protocol.NodeMemorySharedSleepMillisecs, "sleep_millisecs", true},
	{protocol.NodeMemorySharedPagesShared, "pages_shared", false},
	{protocol.NodeMemorySharedPagesSharing, "pages_sharing", false},
	{protocol.NodeMemorySharedPagesUnshared, "pages_unshared", false},
	{protocol.NodeMemorySharedPagesVolatile, "pages_volatile", false},
	{protocol.NodeMemorySharedFullScans, "full_scans", false},
	{protocol.NodeMemorySharedMergeAcrossNodes, "merge_across_nodes", true},
}

// nodeMemoryParameters leaves out what this kernel does not have, such as
// merge_across_nodes without NUMA.
func nodeMemoryParameters(r *request, a *protocol.NodeGetMemoryParametersArgs) (ret protocol.NodeGetMemoryParametersRet, err error) {
	if err := checkFlags(a.Flags, protocol.TypedParamStringOkay); err != nil {
		return ret, err
	}
	var params []protocol.TypedParam
	for _, p := range ksmParams {
		n, err := readKSM(p.file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return ret, err
		}
		var value protocol.TypedParamValue = protocol.UllongValue(n)
		if p.writable {
			value = protocol.UintValue(n)
		}
		params = append(params, protocol.TypedParam{Field: p.name, Value: value})
	}
	ret.Params, ret.Nparams, err = limited(params, a.Nparams)
	return ret, err
}

// setNodeMemoryParameters sets all, or none: the kernel may refuse one, as it
// does merge_across_nodes while pages are merged.
func setNodeMemoryParameters(r *request, a *protocol.NodeSetMemoryParametersArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	values, into := make([]int, len(ksmParams)), map[string]any{}
	for n, p := range ksmParams {
		if p.writable {
			into[p.name] = &values[n]
		}
	}
	given, err := readParams(a.Params, into)
	if err != nil {
		return v, err
	}
	undo := map[string]uint64{}
	for n, p := range ksmParams {
		if !given[p.name] {
			continue
		}
		old, err := readKSM(p.file)
		if err == nil {
			err = writeKSM(p.file, uint64(values[n]))
		}
		if err != nil {
			for file, value := range undo {
				writeKSM(file, value) // it was in force a moment ago
			}
			return v, errorf(protocol.ErrOperationFailed, "cannot set %s to %d: %v", p.name, values[n], err)
		}
		undo[p.file] = old
	}
	return v, nil
}

func readKSM(file string) (uint64, error) {
	text, err := os.ReadFile(sysKSM + file)
	if err != nil {
		return 0, fmt.Errorf("this kernel does not tell: %w", err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

func writeKSM(file string, value uint64) error {
	return os.WriteFile(sysKSM+file, strconv.AppendUint(nil, value, 10), 0)
}
