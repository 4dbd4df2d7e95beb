package driver

import (
	"math"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var information = table{
	get(protocol.DomainGetInfo, domainInfo),
	get(protocol.DomainGetState, domainState),
	get(protocol.DomainGetControlInfo, domainControlInfo),
	get(protocol.DomainGetOsType, func(d *domain, _ *protocol.DomainGetOsTypeArgs) (protocol.DomainGetOsTypeRet, error) {
		return protocol.DomainGetOsTypeRet{Type: "exe"}, nil
	}),
	get(protocol.DomainIsActive, func(d *domain, _ *protocol.DomainIsActiveArgs) (protocol.DomainIsActiveRet, error) {
		return protocol.DomainIsActiveRet{Active: number(d.view().state.active())}, nil
	}),
	get(protocol.DomainIsPersistent, func(d *domain, _ *protocol.DomainIsPersistentArgs) (protocol.DomainIsPersistentRet, error) {
		return protocol.DomainIsPersistentRet{Persistent: number(d.view().persistent)}, nil
	}),
	get(protocol.DomainIsUpdated, func(d *domain, _ *protocol.DomainIsUpdatedArgs) (protocol.DomainIsUpdatedRet, error) {
		return protocol.DomainIsUpdatedRet{Updated: number(d.view().updated)}, nil
	}),
	get(protocol.DomainGetMaxMemory, func(d *domain, _ *protocol.DomainGetMaxMemoryArgs) (protocol.DomainGetMaxMemoryRet, error) {
		return protocol.DomainGetMaxMemoryRet{Memory: maxMemory(d.view())}, nil
	}),
	get(protocol.DomainGetMessages, domainMessages),
	query(protocol.DomainGetHostname, domainHostname),
	query(protocol.DomainGetTime, domainTime),
	get(protocol.DomainGetSecurityLabel, func(d *domain, _ *protocol.DomainGetSecurityLabelArgs) (ret protocol.DomainGetSecurityLabelRet, err error) {
		ret.Label = wireString("")
		return ret, nil
	}),
	get(protocol.DomainGetSecurityLabelList, func(d *domain, _ *protocol.DomainGetSecurityLabelListArgs) (ret protocol.DomainGetSecurityLabelListRet, err error) {
		return ret, nil
	}),
}

// domainInfo is what every poll of every client asks for. The CPU time comes
// from the environment's cgroup; that read does not wait for anything.
func domainInfo(d *domain, _ *protocol.DomainGetInfoArgs) (ret protocol.DomainGetInfoRet, err error) {
	v := d.view()
	def := v.definition(false)
	ret.State = uint8(v.state)
	ret.MaxMem = maxMemory(v)
	ret.Memory = currentMemory(v)
	if def.VCPU != nil {
		ret.NrVirtCPU = uint16(online(def))
	}
	if v.instance != nil {
		// An environment that ended a moment ago used no more time.
		ret.CPUTime, _ = v.instance.CPUTime()
	}
	return ret, nil
}

// maxMemory is <memory> in KiB, the unit definitions are kept in.
func maxMemory(v *view) uint64 {
	if m := v.definition(false).Memory; m != nil {
		return uint64(m.Value)
	}
	return math.MaxUint64 / 1024
}

// currentMemory is <currentMemory>, what a domain may use now or will, in KiB.
func currentMemory(v *view) uint64 {
	if m := v.definition(false).CurrentMemory; m != nil {
		return uint64(m.Value)
	}
	return maxMemory(v)
}

func domainState(d *domain, a *protocol.DomainGetStateArgs) (ret protocol.DomainGetStateRet, err error) {
	v := d.view()
	return protocol.DomainGetStateRet{State: int32(v.state), Reason: v.reason}, checkFlags(a.Flags)
}

// domainControlInfo tells clients whether a change can be made now.
func domainControlInfo(d *domain, a *protocol.DomainGetControlInfoArgs) (ret protocol.DomainGetControlInfoRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if !d.view().state.active() {
		return ret, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	ret.State = protocol.DomainControlOk
	if since, busy := d.job.busy(); busy {
		ret.State, ret.StateTime = protocol.DomainControlJob, uint64(time.Since(since).Milliseconds())
	}
	return ret, nil
}

// domainMessages are warnings about a domain: what its definition asks for
// and it does not get.
func domainMessages(d *domain, a *protocol.DomainGetMessagesArgs) (ret protocol.DomainGetMessagesRet, err error) {
	if a.Flags == 0 || a.Flags&protocol.DomainMessageTainting != 0 {
		ret.Msgs = d.drv.messages(d.view())
	}
	return ret, checkFlags(a.Flags, protocol.DomainMessageDeprecation, protocol.DomainMessageTainting, protocol.DomainMessageIoerrors)
}

// messages are what who runs the domain should know: what of its definition is
// not in force, and what went wrong when it started without keeping it from that.
func (drv *Driver) messages(v *view) []string {
	def := v.definition(false)
	list := xml.Unrealised(def, drv.facts())
	if v.instance == nil {
		return list
	}
	list = append(list, v.instance.Warnings()...)
	if env, err := xml.NewEnvironment(def); err == nil {
		list = append(list, drv.rt.Unanswered(env.Interfaces)...)
	}
	return list
}

// domainHostname is that of the environment's UTS namespace: lease, agent
// and no flag are answered alike.
func domainHostname(r *request, d *domain, a *protocol.DomainGetHostnameArgs) (ret protocol.DomainGetHostnameRet, err error) {
	if err := checkFlags(a.Flags, protocol.DomainGetHostnameLease, protocol.DomainGetHostnameAgent); err != nil {
		return ret, err
	}
	inst := d.view().instance
	if inst == nil {
		return ret, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	ret.Hostname, err = inst.Hostname()
	return ret, err
}

// domainTime is the host's: environments share its clock.
func domainTime(r *request, d *domain, a *protocol.DomainGetTimeArgs) (ret protocol.DomainGetTimeRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if d.view().instance == nil {
		return ret, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	now := time.Now()
	return protocol.DomainGetTimeRet{Seconds: now.Unix(), Nseconds: uint32(now.Nanosecond())}, nil
}
