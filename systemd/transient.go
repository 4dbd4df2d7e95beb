package systemd

import (
	"context"
	"errors"
	"time"
)

// StartService runs a transient service and returns when systemd reports it started, which is what its Type says.
// After an error nothing of it is left but its log. When ctx ends early it may run none the less: Stop undoes that.
func (c *Conn) StartService(ctx context.Context, name string, props ...Property) error {
	ends, forget := c.jobs.watch(name)
	defer forget()
	job, err := c.startTransient(ctx, name, props)
	if err != nil {
		return err
	}
	err = c.await(ctx, name, job, ends, func() (bool, error) { return c.started(ctx, name) })
	if errors.Is(err, ErrJobFailed) {
		c.ResetFailed(ctx, name) // the job's error is what counts
	}
	return err
}

// ServiceType is "exec", "forking" or another of systemd.service(5).
func ServiceType(kind string) Property { return property("Type", kind) }

// ExecStart is the command of a service, its program by absolute path. systemd expands $NAME in it.
func ExecStart(argv ...string) Property {
	type command struct {
		Path   string
		Argv   []string
		Ignore bool
	}
	return property("ExecStart", []command{{argv[0], argv, false}})
}

// RemainAfterExit keeps a service of type "oneshot" active once its program has ended well, until Stop: StartService
// needs that to tell it from one that failed when the signal of the job's end is lost.
func RemainAfterExit() Property { return property("RemainAfterExit", true) }

// Environment is a service's environment, each NAME=VALUE.
func Environment(assignments ...string) Property { return property("Environment", assignments) }

// PrivateNetwork gives a service a network namespace of its own, with loopback.
func PrivateNetwork() Property { return property("PrivateNetwork", true) }

// TimeoutStart is how long a service may take to start.
func TimeoutStart(d time.Duration) Property {
	return property("TimeoutStartUSec", uint64(d.Microseconds()))
}

// Bind is a file or directory of the host and where a service sees it.
type Bind struct {
	Source, Target string
	ReadOnly       bool
}

// Confined is for a service that sees nothing of the host but what binds name, has no network, and of root's
// capabilities only those in the mask (bit N is capability N of <linux/capability.h>).
func Confined(capabilities uint64, binds ...Bind) []Property {
	type bind struct {
		Source, Target string
		Optional       bool
		Flags          uint64
	}
	type temporary struct{ Path, Options string }
	type list struct {
		Allow bool
		Names []string
	}
	var writable, readOnly []bind
	for _, b := range binds {
		if b.ReadOnly {
			readOnly = append(readOnly, bind{b.Source, b.Target, false, 0})
		} else {
			writable = append(writable, bind{b.Source, b.Target, false, 0})
		}
	}
	return []Property{
		property("TemporaryFileSystem", []temporary{{"/", "ro"}}),
		property("BindPaths", writable), property("BindReadOnlyPaths", readOnly),
		property("MountAPIVFS", true), property("PrivateDevices", true), property("PrivateNetwork", true),
		property("PrivateIPC", true), property("ProtectProc", "invisible"), property("ProtectKernelTunables", true),
		property("ProtectControlGroups", true), property("ProtectHostname", true),
		property("NoNewPrivileges", true), property("CapabilityBoundingSet", capabilities),
		property("RestrictAddressFamilies", list{true, []string{"AF_UNIX"}}), property("RestrictNamespaces", uint64(0)),
		property("SystemCallArchitectures", []string{"native"}), property("SystemCallFilter", list{true, []string{"@system-service"}}),
		property("LimitCORE", uint64(0)),
	}
}
