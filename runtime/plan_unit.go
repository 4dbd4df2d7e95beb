package runtime

import (
	"fmt"
	"time"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// stopTimeout bounds "machinectl terminate" and a host shutdown: both stop the
// scope, and not every init inside ends on SIGTERM.
const stopTimeout = 30 * time.Second

// planScope is everything systemd is told about an environment. It does not
// depend on the root, so the scope is created while the root is still being mounted.
// All limits are on the scope and nowhere else.
func planScope(env *xml.Environment, host Host, res Reserved) (systemd.Scope, error) {
	s := systemd.Scope{
		Name:        systemd.ScopeName(env.Name),
		Slice:       "machine.slice",
		Description: "Environment " + env.Name,
	}
	if env.Partition != "" {
		slice, err := systemd.SliceName(env.Partition)
		if err != nil {
			return s, fmt.Errorf("partition %s: %w", env.Partition, err)
		}
		s.Slice = slice
	}
	s.Properties = []systemd.Property{
		systemd.Delegate(true),
		systemd.CollectMode("inactive-or-failed"),
		systemd.TimeoutStop(stopTimeout),
		// As libvirt's own scopes: at the host's shutdown libvirt-guests.service
		// comes first, which may save what runs.
		systemd.Before("virt-guest-shutdown.target"),
		systemd.CPUAccounting(true),
		systemd.MemoryAccounting(true),
		systemd.IOAccounting(true),
		systemd.TasksAccounting(true),
		// closed and not strict: the OCI runtime runs inside the scope and needs null, zero…
		systemd.DevicePolicy(systemd.DeviceClosed),
	}
	cpus, err := chooseCPUs(env.CPU, host, res.CPULoad, nil)
	if err != nil {
		return s, err
	}
	s.Properties = append(s.Properties, limitProperties(env, cpus)...)
	return s, nil
}
