package driver

import (
	"fmt"
	"slices"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var processors = table{
	modify(protocol.DomainSetVcpus, func(c *change, a *protocol.DomainSetVcpusArgs) error {
		return setVCPUs(c, a.Nvcpus, protocol.DomainAffectLive)
	}),
	modify(protocol.DomainSetVcpusFlags, func(c *change, a *protocol.DomainSetVcpusFlagsArgs) error {
		return setVCPUs(c, a.Nvcpus, a.Flags)
	}),
	get(protocol.DomainGetVcpusFlags, vcpuCount),
	get(protocol.DomainGetMaxVcpus, func(d *domain, _ *protocol.DomainGetMaxVcpusArgs) (ret protocol.DomainGetMaxVcpusRet, err error) {
		ret.Num = int32(d.view().definition(false).VCPU.Value)
		return ret, nil
	}),
	query(protocol.DomainGetVcpus, vcpus),
	modify(protocol.DomainPinVcpu, func(c *change, a *protocol.DomainPinVcpuArgs) error {
		return pinVCPU(c, a.Vcpu, a.Cpumap, protocol.DomainAffectLive)
	}),
	modify(protocol.DomainPinVcpuFlags, func(c *change, a *protocol.DomainPinVcpuFlagsArgs) error {
		return pinVCPU(c, a.Vcpu, a.Cpumap, a.Flags)
	}),
	inlineQuery(protocol.DomainGetVcpuPinInfo, vcpuPins),
	modify(protocol.DomainPinEmulator, pinEmulator),
	inlineQuery(protocol.DomainGetEmulatorPinInfo, emulatorPin),
	get(protocol.DomainGetGuestVcpus, guestVCPUs),
	modify(protocol.DomainSetGuestVcpus, func(c *change, a *protocol.DomainSetGuestVcpusArgs) error {
		return enableVCPUs(c, a.Cpumap, a.State, a.Flags)
	}),
	modify(protocol.DomainSetVcpu, func(c *change, a *protocol.DomainSetVcpuArgs) error {
		return enableVCPUs(c, a.Cpumap, a.State, a.Flags)
	}),
}

// online is how many CPUs a definition has now.
func online(def *libvirtxml.Domain) uint {
	if def.VCPU.Current != 0 {
		return def.VCPU.Current
	}
	return def.VCPU.Value
}

func setOnline(def *libvirtxml.Domain, n uint) {
	def.VCPU.Current = n
	if n == def.VCPU.Value {
		def.VCPU.Current = 0
	}
}

// setVCPUs changes how many CPUs an environment sees, or at most can see.
// Both can be changed while it runs; asking the guest for it and asking
// the host are the same.
func setVCPUs(c *change, n, flags uint32) error {
	if n < 1 {
		return errorf(protocol.ErrInvalidArg, "an environment needs at least one CPU")
	}
	return c.tune(flags&^(protocol.DomainVcpuMaximum|protocol.DomainVcpuGuest|protocol.DomainVcpuHotpluggable), func(def *libvirtxml.Domain) error {
		if flags&protocol.DomainVcpuMaximum != 0 {
			count := min(online(def), uint(n))
			def.VCPU.Value = uint(n)
			setOnline(def, count)
			if t := def.CPUTune; t != nil {
				t.VCPUPin = slices.DeleteFunc(t.VCPUPin, func(p libvirtxml.DomainCPUTuneVCPUPin) bool { return p.VCPU >= uint(n) })
			}
			return nil
		}
		if uint(n) > def.VCPU.Value {
			return errorf(protocol.ErrInvalidArg, "requested vcpus is greater than max allowable vcpus for the domain: %d > %d", n, def.VCPU.Value)
		}
		return c.switchOn(def, uint(n))
	})
}

// switchOn sets how many CPUs are on. A running environment cannot have more
// than the host has; a definition may be for another host.
func (c *change) switchOn(def *libvirtxml.Domain, n uint) error {
	if most := c.drv.host.cpus(); def.ID != nil && n > uint(most) {
		return errorf(protocol.ErrInvalidArg, "a running environment cannot have %d CPUs: the host has %d", n, most)
	}
	setOnline(def, n)
	return nil
}

func vcpuCount(d *domain, a *protocol.DomainGetVcpusFlagsArgs) (ret protocol.DomainGetVcpusFlagsRet, err error) {
	def, _, err := d.view().affected(a.Flags &^ (protocol.DomainVcpuMaximum | protocol.DomainVcpuGuest))
	if err != nil {
		return ret, err
	}
	ret.Num = int32(online(def))
	if a.Flags&protocol.DomainVcpuMaximum != 0 {
		ret.Num = int32(def.VCPU.Value)
	}
	return ret, nil
}

// vcpus shows on which CPU of the host each CPU inside is. The kernel counts
// no time for each CPU of a cgroup: with more than one the time is 0, unknown.
func vcpus(r *request, d *domain, a *protocol.DomainGetVcpusArgs) (ret protocol.DomainGetVcpusRet, err error) {
	v := d.view()
	if v.instance == nil {
		return ret, errorf(protocol.ErrOperationInvalid, "cannot list vcpus of a domain that is not running")
	}
	if err := checkMaps(a.Maxinfo, a.Maplen, protocol.VcpuinfoMax); err != nil {
		return ret, err
	}
	held := v.instance.CPUs()
	count := min(int(online(v.live)), int(a.Maxinfo))
	for n := range count {
		info := protocol.VcpuInfo{Number: uint32(n), State: protocol.VcpuRunning, CPU: int32(held[n%len(held)])}
		if online(v.live) == 1 {
			info.CPUTime, _ = v.instance.CPUTime()
		}
		ret.Info = append(ret.Info, info)
		if a.Maplen > 0 {
			ret.Cpumaps = append(ret.Cpumaps, cpuMap(r.drv.host.pinned(v.live, uint(n)), int(a.Maplen))...)
		}
	}
	return ret, nil
}

// checkMaps bounds what a client wants before anything is allocated.
func checkMaps(count, length int32, most int) error {
	if count < 0 || length < 0 || int(count) > most || int64(count)*int64(length) > protocol.CpumapsMax {
		return errorf(protocol.ErrInvalidArg, "%d maps of %d bytes are too many", count, length)
	}
	return nil
}

// pinVCPU says on which CPUs of the host a CPU inside may be; all of them is
// no pin.
func pinVCPU(c *change, vcpu uint32, cpumap []byte, flags uint32) error {
	cpus, all, err := c.drv.host.readMap(cpumap)
	if err != nil {
		return err
	}
	set := xml.FormatCPUSet(cpus)
	return c.tune(flags, func(def *libvirtxml.Domain) error {
		if uint(vcpu) >= def.VCPU.Value {
			return errorf(protocol.ErrInvalidArg, "vcpu %d is out of range of domain: it has %d", vcpu, def.VCPU.Value)
		}
		if def.CPUTune == nil {
			def.CPUTune = &libvirtxml.DomainCPUTune{}
		}
		t := def.CPUTune
		t.VCPUPin = slices.DeleteFunc(t.VCPUPin, func(p libvirtxml.DomainCPUTuneVCPUPin) bool { return p.VCPU == uint(vcpu) })
		if !all {
			t.VCPUPin = append(t.VCPUPin, libvirtxml.DomainCPUTuneVCPUPin{VCPU: uint(vcpu), CPUSet: set})
		}
		return nil
	}, tunableEvent(protocol.TypedParam{Field: fmt.Sprintf("cputune.vcpupin%d", vcpu), Value: protocol.StringValue(set)}))
}

func vcpuPins(r *request, d *domain, a *protocol.DomainGetVcpuPinInfoArgs) (ret protocol.DomainGetVcpuPinInfoRet, err error) {
	def, _, err := d.view().affected(a.Flags)
	if err != nil {
		return ret, err
	}
	if err := checkMaps(a.Ncpumaps, a.Maplen, protocol.VcpuinfoMax); err != nil {
		return ret, err
	}
	for n := range min(uint(a.Ncpumaps), def.VCPU.Value) {
		ret.Cpumaps = append(ret.Cpumaps, cpuMap(r.drv.host.pinned(def, n), int(a.Maplen))...)
		ret.Num++
	}
	return ret, nil
}

// pinEmulator: an environment has no emulator, so its own processes are held
// to these CPUs.
func pinEmulator(c *change, a *protocol.DomainPinEmulatorArgs) error {
	cpus, all, err := c.drv.host.readMap(a.Cpumap)
	if err != nil {
		return err
	}
	set := xml.FormatCPUSet(cpus)
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		if def.CPUTune == nil {
			def.CPUTune = &libvirtxml.DomainCPUTune{}
		}
		def.CPUTune.EmulatorPin = &libvirtxml.DomainCPUTuneEmulatorPin{CPUSet: set}
		if all {
			def.CPUTune.EmulatorPin = nil
		}
		return nil
	}, tunableEvent(protocol.TypedParam{Field: protocol.DomainTunableCPUEmulatorpin, Value: protocol.StringValue(set)}))
}

func emulatorPin(r *request, d *domain, a *protocol.DomainGetEmulatorPinInfoArgs) (ret protocol.DomainGetEmulatorPinInfoRet, err error) {
	def, _, err := d.view().affected(a.Flags)
	if err != nil {
		return ret, err
	}
	if err := checkMaps(1, a.Maplen, 1); err != nil {
		return ret, err
	}
	set := def.VCPU.CPUSet
	if t := def.CPUTune; t != nil && t.EmulatorPin != nil {
		set = t.EmulatorPin.CPUSet
	}
	ret.Cpumaps, ret.Ret = cpuMap(r.drv.host.inSet(set), int(a.Maplen)), 1
	return ret, nil
}

// guestVCPUs answers in the guest agent's terms: which CPUs there are, which
// are on, and which can be switched off.
func guestVCPUs(d *domain, a *protocol.DomainGetGuestVcpusArgs) (ret protocol.DomainGetGuestVcpusRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	v := d.view()
	if v.live == nil {
		return ret, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	for _, p := range []struct {
		name       string
		first, end uint
	}{{"vcpus", 0, v.live.VCPU.Value}, {"online", 0, online(v.live)}, {"offlinable", 1, v.live.VCPU.Value}} {
		var list []int
		for n := p.first; n < p.end; n++ {
			list = append(list, int(n))
		}
		ret.Params = append(ret.Params, protocol.TypedParam{Field: p.name, Value: protocol.StringValue(xml.FormatCPUSet(list))})
	}
	return ret, nil
}

// enableVCPUs switches single CPUs on or off. Inside they are numbered
// without gaps, so those that are on must stay the first ones.
func enableVCPUs(c *change, list string, state int32, flags uint32) error {
	cpus, err := xml.ParseCPUSet(list)
	if err != nil {
		return err
	}
	if state != 0 && state != 1 {
		return errorf(protocol.ErrInvalidArg, "state %d is neither 0 nor 1", state)
	}
	return c.tune(flags, func(def *libvirtxml.Domain) error {
		if last := cpus[len(cpus)-1]; uint(last) >= def.VCPU.Value {
			return errorf(protocol.ErrInvalidArg, "vcpu %d is not present in the domain: it has %d", last, def.VCPU.Value)
		}
		on := map[int]bool{}
		for n := range online(def) {
			on[int(n)] = true
		}
		for _, n := range cpus {
			on[n] = state == 1
		}
		count := uint(0)
		for on[int(count)] {
			count++
		}
		for n, is := range on {
			if is && uint(n) > count {
				return errorf(protocol.ErrOperationUnsupported, "vcpu %d cannot be off while %d is on: an environment's CPUs are numbered without gaps, switch off the last ones", count, n)
			}
		}
		if count == 0 {
			return errorf(protocol.ErrInvalidArg, "an environment needs at least one CPU")
		}
		return c.switchOn(def, count)
	})
}
