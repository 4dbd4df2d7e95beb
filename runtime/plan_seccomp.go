package runtime

import (
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The filter is Docker's default profile for a container with this
// environment's capabilities, so its upkeep is Moby's. CAP_SYS_ADMIN, which a
// system inside its user namespace has, opens mount, setns, unshare, clone with
// namespaces and the like in it. These are our deviations:

// seccompAllowed: systemd switches roots (services with RootDirectory=, its own
// sandboxing) with pivot_root, which Docker leaves out.
var seccompAllowed = []string{"pivot_root"}

// seccompDenied answer EPERM, which makes callers fall back:
//   - bpf: systemd would attach device and socket filters to its cgroups, which
//     CRIU cannot dump; and the verifier is too large a surface
//   - perf_event_open: as bpf; profiling is done from the host
//   - open_by_handle_at: without a user namespace it opens any file of the file
//     system the root is on (the "shocker" exploit); within one the kernel
//     refuses it anyhow
//   - fanotify_init, lookup_dcookie, quotactl, quotactl_fd: mean the whole file
//     system that the environment shares with others
//   - kexec, swap, module calls: the kernel is the host's (also with policy=allow)
//
// keyctl, add_key and request_key stay denied as in Docker's profile: keys are not
// accounted to the environment. systemd goes on without.
var seccompDenied = []string{
	"bpf", "fanotify_init", "lookup_dcookie", "open_by_handle_at", "perf_event_open",
	"quotactl", "quotactl_fd",
	"kexec_load", "kexec_file_load", "swapon", "swapoff",
	"init_module", "finit_module", "delete_module",
}

func seccompProfile(spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("make the seccomp profile: %w", err)
	}
	kept := profile.Syscalls[:0]
	for _, rule := range profile.Syscalls {
		if rule.Action == specs.ActAllow {
			rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(name string) bool {
				return slices.Contains(seccompDenied, name)
			})
		}
		if len(rule.Names) > 0 {
			kept = append(kept, rule)
		}
	}
	eperm := uint(unix.EPERM)
	profile.Syscalls = append(kept,
		specs.LinuxSyscall{Names: seccompAllowed, Action: specs.ActAllow},
		specs.LinuxSyscall{Names: seccompDenied, Action: specs.ActErrno, ErrnoRet: &eperm})
	return profile, nil
}
