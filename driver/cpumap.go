package driver

import (
	"slices"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// cpuMap is a set of CPUs as on the wire: bit n%8 of byte n/8, cut or filled
// to a length.
func cpuMap(cpus []int, length int) []byte {
	bits := make([]byte, length)
	for _, cpu := range cpus {
		if cpu/8 < length {
			bits[cpu/8] |= 1 << (cpu % 8)
		}
	}
	return bits
}

// readMap reads such a set; all tells that it has every CPU of the host.
func (h *host) readMap(bits []byte) (cpus []int, all bool, err error) {
	online := h.online()
	for n := range len(bits) * 8 {
		if bits[n/8]&(1<<(n%8)) == 0 {
			continue
		}
		if !slices.Contains(online, n) {
			return nil, false, errorf(protocol.ErrInvalidArg, "CPU %d does not exist: the host has %s", n, xml.FormatCPUSet(online))
		}
		cpus = append(cpus, n)
	}
	if len(cpus) == 0 {
		return nil, false, errorf(protocol.ErrInvalidArg, "Empty cpu list for pinning")
	}
	return cpus, len(cpus) == len(online), nil
}

// online are the host's CPUs, ascending.
func (h *host) online() (list []int) {
	for _, c := range h.cells {
		for _, cpu := range c.cpus {
			list = append(list, cpu.id)
		}
	}
	slices.Sort(list)
	return list
}

// inSet are the host's CPUs that a definition's set allows; "" is all.
func (h *host) inSet(set string) []int {
	online := h.online()
	cpus, err := xml.ParseCPUSet(set)
	if set == "" || err != nil {
		return online
	}
	return slices.DeleteFunc(cpus, func(n int) bool { return !slices.Contains(online, n) })
}

// pinned are the CPUs that one inside may be on.
func (h *host) pinned(def *libvirtxml.Domain, n uint) []int {
	if def.CPUTune != nil {
		for _, p := range def.CPUTune.VCPUPin {
			if p.VCPU == n {
				return h.inSet(p.CPUSet)
			}
		}
	}
	return h.inSet(def.VCPU.CPUSet)
}

// checkNodes refuses NUMA nodes that the host has not got.
func (h *host) checkNodes(set string) error {
	nodes, err := xml.ParseCPUSet(set)
	if err != nil {
		return errorf(protocol.ErrInvalidArg, "'%.60s' is not a list of NUMA nodes", set)
	}
	var have []int
	for _, c := range h.cells {
		have = append(have, c.id)
	}
	for _, n := range nodes {
		if !slices.Contains(have, n) {
			return errorf(protocol.ErrInvalidArg, "NUMA node %d does not exist: the host has %s", n, xml.FormatCPUSet(have))
		}
	}
	return nil
}
