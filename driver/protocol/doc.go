// Package protocol is libvirt's wire as Go types: every message, procedure,
// event, limit and public constant, generated from libvirt's own descriptions
// by the command in gen and committed as *.gen.go, one file a family.
//
// Its path in the whole: socket -> rpc (frames) -> protocol (this package: what
// is in a frame) -> driver (what it means). The encoding itself is in rpc/xdr.
//
// Names follow from libvirt's: remote_domain_create_args is DomainCreateArgs,
// procedure REMOTE_PROC_DOMAIN_CREATE is the variable DomainCreate, and
// VIR_DOMAIN_RUNNING is DomainRunning. The qemu, lxc and admin programs keep
// their prefix. A string or object that may be absent is a pointer, nil when
// it is; lists are slices, and their limits hold in both directions.
package protocol
