package driver

import (
	"math"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/xml"
)

var memory = table{
	modify(protocol.DomainSetMemory, func(c *change, a *protocol.DomainSetMemoryArgs) error {
		return setMemory(c, a.Memory, protocol.DomainAffectLive)
	}),
	modify(protocol.DomainSetMemoryFlags, func(c *change, a *protocol.DomainSetMemoryFlagsArgs) error {
		return setMemory(c, a.Memory, a.Flags)
	}),
	modify(protocol.DomainSetMaxMemory, func(c *change, a *protocol.DomainSetMaxMemoryArgs) error {
		return setMemory(c, a.Memory, protocol.DomainMemMaximum)
	}),
	modify(protocol.DomainSetMemoryParameters, setMemoryParameters),
	get(protocol.DomainGetMemoryParameters, memoryParameters),
}

// setMemory changes how much may be used now, <currentMemory>, or at most,
// <memory>. Both can be changed while the environment runs. A <hard_limit>,
// which would hide the change, becomes the same.
func setMemory(c *change, kib uint64, flags uint32) error {
	if kib == 0 || kib > xml.Unlimited {
		return errorf(protocol.ErrInvalidArg, "memory of %d KiB: 1024 to %d, which is no limit, are accepted", kib, uint64(xml.Unlimited))
	}
	most := flags&protocol.DomainMemMaximum != 0
	flags &^= protocol.DomainMemMaximum
	live, _, err := c.view().affects(flags)
	if err != nil {
		return err
	}
	err = c.tune(flags, func(def *libvirtxml.Domain) error {
		if most {
			def.Memory.Value = uint(kib)
		} else if kib > uint64(def.Memory.Value) {
			return errorf(protocol.ErrInvalidArg, "cannot set memory higher than max memory (%d KiB): raise that first, with virsh setmaxmem", def.Memory.Value)
		}
		if !most || kib < uint64(def.CurrentMemory.Value) {
			def.CurrentMemory.Value = uint(kib)
			if t := def.MemoryTune; t != nil && t.HardLimit != nil && (!most || t.HardLimit.Value > kib) {
				t.HardLimit.Value = kib
			}
		}
		return nil
	})
	if err == nil && live {
		c.drv.events.emit(c.domain, balloonEvent(uint64(c.view().live.CurrentMemory.Value)))
	}
	return err
}

// balloonEvent tells how much memory, in KiB, an environment may use now.
func balloonEvent(kib uint64) event {
	return event{protocol.DomainEventIDBalloonChange, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		msg := protocol.DomainEventBalloonChangeMsg{Dom: dom, Actual: kib}
		if cb == legacyCallback {
			return protocol.DomainEventBalloonChange.Info, &msg
		}
		return protocol.DomainEventCallbackBalloonChange.Info, &protocol.DomainEventCallbackBalloonChangeMsg{CallbackID: cb, Msg: msg}
	}}
}

// setMemoryParameters changes <memtune>; libvirt's number for unlimited, or
// more, is no limit.
func setMemoryParameters(c *change, a *protocol.DomainSetMemoryParametersArgs) error {
	var hard, soft, least, swap uint64
	given, err := readParams(a.Params, map[string]any{
		protocol.DomainMemoryHardLimit: &hard, protocol.DomainMemorySoftLimit: &soft,
		protocol.DomainMemoryMinGuarantee: &least, protocol.DomainMemorySwapHardLimit: &swap,
	})
	if err != nil {
		return err
	}
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		t := def.MemoryTune
		if t == nil {
			t = &libvirtxml.DomainMemoryTune{}
		}
		for _, p := range []struct {
			name  string
			value uint64
			limit **libvirtxml.DomainMemoryTuneLimit
		}{
			{protocol.DomainMemoryHardLimit, hard, &t.HardLimit}, {protocol.DomainMemorySoftLimit, soft, &t.SoftLimit},
			{protocol.DomainMemoryMinGuarantee, least, &t.MinGuarantee}, {protocol.DomainMemorySwapHardLimit, swap, &t.SwapHardLimit},
		} {
			if given[p.name] {
				*p.limit = memoryLimit(p.name, p.value)
			}
		}
		def.MemoryTune = t
		if *t == (libvirtxml.DomainMemoryTune{}) {
			def.MemoryTune = nil
		}
		return nil
	})
}

// memoryLimit is the element of a limit, or nil for one that is none. Only an
// unlimited <hard_limit> has to be said, because <currentMemory> is one
// without it.
func memoryLimit(name string, kib uint64) *libvirtxml.DomainMemoryTuneLimit {
	if name == protocol.DomainMemoryMinGuarantee && kib == 0 || name != protocol.DomainMemoryHardLimit && kib >= xml.Unlimited {
		return nil
	}
	return &libvirtxml.DomainMemoryTuneLimit{Value: min(kib, xml.Unlimited), Unit: "KiB"}
}

// memoryParameters are the limits in force, also where an element is missing.
func memoryParameters(d *domain, a *protocol.DomainGetMemoryParametersArgs) (ret protocol.DomainGetMemoryParametersRet, err error) {
	def, _, err := d.view().affected(a.Flags)
	if err != nil {
		return ret, err
	}
	env, err := xml.NewEnvironment(def)
	if err != nil {
		return ret, err
	}
	m := env.Memory
	both := uint64(math.MaxUint64)
	if m.Max != math.MaxUint64 && m.Swap != math.MaxUint64 {
		both = m.Max + m.Swap
	}
	param := func(name string, bytes uint64) protocol.TypedParam {
		return protocol.TypedParam{Field: name, Value: protocol.UllongValue(min(bytes>>10, xml.Unlimited))}
	}
	ret.Params, ret.Nparams, err = limited([]protocol.TypedParam{
		param(protocol.DomainMemoryHardLimit, m.Max), param(protocol.DomainMemorySoftLimit, m.High),
		param(protocol.DomainMemoryMinGuarantee, m.Low), param(protocol.DomainMemorySwapHardLimit, both),
	}, a.Nparams)
	return ret, err
}
