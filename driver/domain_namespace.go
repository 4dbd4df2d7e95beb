package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// lxcProgram is libvirt's program for containers: `virsh
// lxc-enter-namespace` uses it with any driver.
var lxcProgram = table{
	query(protocol.LxcDomainOpenNamespace, openNamespace),
}

// openNamespace passes descriptors of the environment's namespaces; the
// client enters them itself and finds the cgroup through the domain's id.
func openNamespace(r *request, d *domain, a *protocol.LxcDomainOpenNamespaceArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	inst := d.view().instance
	if inst == nil {
		return v, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	files, err := inst.Namespaces()
	if err != nil {
		return v, err
	}
	r.call.ReplyFiles(files...)
	return v, nil
}
