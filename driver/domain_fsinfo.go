package driver

import "virtvzd/driver/protocol"

var filesystemInformation = table{
	query(protocol.DomainGetFsinfo, domainFilesystems),
}

// domainFilesystems lists what is mounted inside and keeps data, without an
// agent: the kernel tells. The root's target is "/", the name by which
// virsh domblkstat and domblkinfo know it.
func domainFilesystems(r *request, d *domain, a *protocol.DomainGetFsinfoArgs) (ret protocol.DomainGetFsinfoRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	inst := d.view().instance
	if inst == nil {
		return ret, errNotRunning()
	}
	mounts, err := inst.Mounts(protocol.DomainFsinfoMax)
	if err != nil {
		return ret, err
	}
	for _, m := range mounts {
		info := protocol.DomainFsinfo{Mountpoint: m.Point, Name: m.Source, Fstype: m.Type}
		if m.Point == rootTarget {
			info.DevAliases = []string{rootTarget}
		}
		ret.Info = append(ret.Info, info)
	}
	ret.Ret = uint32(len(ret.Info))
	return ret, nil
}
