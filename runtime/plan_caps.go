package runtime

import (
	"maps"
	"slices"
	"strings"

	"virtvzd/xml"
)

// allCapabilities are those of Linux 5.9, the last to add one.
var allCapabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
	"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE",
	"CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
}

// neverGiven have no meaning inside any environment: the kernel checks them
// against the initial user namespace. Without them in the bounding set a
// system inside sees (ConditionCapability=) that it need not try: no module is
// loaded, no clock stepped, no audit read.
var neverGiven = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE",
	"CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_WAKE_ALARM",
}

// neverPrivileged are, in addition, real power over the host without a user
// namespace: opening files by handle reaches outside the root, and nodes of any
// disk can be made. CAP_SYS_BOOT stays in both: in a PID namespace reboot(2)
// reaches only init.
var neverPrivileged = []string{
	"CAP_CHECKPOINT_RESTORE", "CAP_DAC_READ_SEARCH", "CAP_LINUX_IMMUTABLE", "CAP_MKNOD", "CAP_SYS_PACCT",
}

// capabilities applies <features><capabilities policy='…'>: default is the set
// above, allow is everything, deny is nothing; single ones are added with
// state='on' and taken away with state='off'.
func capabilities(policy xml.CapabilityPolicy, privileged bool) []string {
	set := map[string]bool{}
	if policy.Policy != "deny" {
		for _, c := range allCapabilities {
			set[c] = true
		}
	}
	if policy.Policy == "" || policy.Policy == "default" {
		for _, c := range neverGiven {
			delete(set, c)
		}
		if privileged {
			for _, c := range neverPrivileged {
				delete(set, c)
			}
		}
	}
	for name, on := range policy.States {
		if name = "CAP_" + strings.ToUpper(name); on {
			set[name] = true
		} else {
			delete(set, name)
		}
	}
	return slices.Sorted(maps.Keys(set))
}
