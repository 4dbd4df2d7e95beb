// Package systemd is how an environment gets its place on the host: one transient scope, its limits as unit
// properties, its entry in machined, and the daemon's own dealings with the service manager.
//
//	bus.go       one private D-Bus connection that redials by itself; conn.go the one to systemd
//	job.go       waiting for the result of a job without one subscription per call
//	scope.go     start and stop of a scope; transient.go of a service; unit.go everything else that is asked of a unit
//	property.go  typed unit properties with their units; mask.go sets of processors as systemd wants them
//	name.go      domain name -> scope, slice and machine name; cgroup.go scope -> cgroup path
//	machine.go   machined, which may be absent
//	service.go   the daemon as a service: sockets, notifications, watchdog; store.go descriptors kept over a restart
//
// systemd is the only writer of the limits: a value written into a cgroup file behind its back is overwritten
// by the next change of any property of that unit.
//
// The package imports nothing else of this module, returns errors and logs nothing.
package systemd
