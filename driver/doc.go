// Package driver answers libvirt's remote procedures: it takes a request
// from the socket to its answer.
//
// The path of `virsh start web1`, file by file:
//
//	rpc/              the frame arrives, is checked and decoded into a call
//	proc.go           the shape of the procedure: decode, read-only and access
//	                  check, find the domain, take its job, answer
//	procs.go          which procedures exist; everything else is refused in
//	                  unsupported.go with a reason
//	domain_start.go   DomainCreate: check the state, build the environment
//	../xml            the definition becomes an xml.Environment
//	../runtime        plan and apply: root, OCI spec, init, console
//	../systemd        the scope it runs in
//	domain.go         the new state is published, saved and announced
//	event.go          the STARTED event goes to every client that asked
//
// When it ends by itself, domain_end.go does what its definition asks for;
// recover.go does for a daemon that was not there.
//
// The way of `virsh migrate`: migrate.go (the phases, flags and parameters),
// migrate_source.go and migrate_destination.go (what each side does in them),
// migrate_settle.go (what follows from the outcome), migrate_p2p.go (the source
// as the client), migrate_listen.go (where it comes to).
//
// Networks, storage, node devices, interfaces, secrets and filters are not
// ours: relayed.go hands their procedures to relay/, which passes them on to
// the host's own libvirt daemons.
//
// What a guest agent does in a virtual machine agent/ does from the outside.
//
// A domain's state is an immutable view behind an atomic pointer: queries
// read it without waiting, changes hold the domain's one job and publish a
// new view. No lock is held across D-Bus, a blocking system call or a write
// to a client.
package driver
