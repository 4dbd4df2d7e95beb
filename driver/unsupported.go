package driver

import (
	"path"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// reasons say why a procedure is refused, by patterns of its name; the first
// that matches counts. Every procedure without a handler must match one:
// testdata/procs.golden shows which.
var reasons = []struct{ pattern, reason string }{
	// What a container does not have, now or later.
	{"DOMAIN_MEMORY_PEEK", "an environment has no memory of its own to peek into, its processes share the host's"},
	{"DOMAIN_INJECT_NMI", "an environment has no hardware to interrupt"},
	{"DOMAIN_SEND_KEY", "an environment has no keyboard: use the console"},
	{"DOMAIN_SCREENSHOT", "an environment has no display: use the console"},
	{"DOMAIN_OPEN_GRAPHICS*", "an environment has no display: use the console"},
	{"DOMAIN_GRAPHICS_RELOAD", "an environment has no display"},
	{"DOMAIN_OPEN_CHANNEL", "an environment has no virtio channels: the host reaches it through its namespaces"},
	{"DOMAIN_*IOTHREAD*", "an environment has no I/O threads: its processes do their own input and output"},
	{"DOMAIN_PM_*", "an environment has no power management of its own: use suspend and resume"},
	{"DOMAIN_*LAUNCH_SECURITY*", "memory encryption needs a virtual machine"},
	{"NODE_GET_SEV_INFO", "memory encryption needs a virtual machine"},
	{"DOMAIN_*PERF_EVENTS", "performance events are not collected for environments"},
	{"DOMAIN_SET_MEMORY_STATS_PERIOD", "memory statistics come from the kernel at once and need no period"},
	{"DOMAIN_SET_TIME", "an environment has the host's clock: set that"},
	{"DOMAIN_START_DIRTY_RATE_CALC", "an environment has no guest memory to watch"},
	{"DOMAIN_SET_BLOCK_THRESHOLD", "an environment's root is a directory tree, not a growing disk image"},
	{"DOMAIN_*THROTTLE_GROUP", "throttle groups belong to QEMU's block layer"},
	{"DOMAIN_FD_ASSOCIATE", "disk images by descriptor belong to QEMU's block layer"},
	{"DOMAIN_BLOCK_JOB_*", "there are no block jobs: an environment's root is a directory tree"},
	{"DOMAIN_GET_BLOCK_JOB_INFO", "there are no block jobs: an environment's root is a directory tree"},
	{"DOMAIN_BLOCK_PULL", "there are no block jobs: an environment's root is a directory tree"},
	{"DOMAIN_BLOCK_REBASE", "there are no block jobs: an environment's root is a directory tree"},
	{"DOMAIN_BLOCK_COMMIT", "there are no block jobs: an environment's root is a directory tree"},
	{"DOMAIN_BLOCK_COPY", "there are no block jobs: an environment's root is a directory tree"},
	{"DOMAIN_*CHECKPOINT*", "block checkpoints need a disk image: use snapshots"},
	{"DOMAIN_BACKUP_*", "block backups need a disk image"},
	{"DOMAIN_AGENT_SET_RESPONSE_TIMEOUT", "there is no agent inside to wait for"},
	{"CONNECT_*_CPU", "environments use the host's CPU as it is"},
	{"CONNECT_GET_CPU_MODEL_NAMES", "environments use the host's CPU as it is"},
	{"NODE_DEVICE_DETTACH", "PCI devices cannot be assigned to an environment"},
	{"NODE_DEVICE_DETACH_FLAGS", "PCI devices cannot be assigned to an environment"},
	{"NODE_DEVICE_RE_ATTACH", "PCI devices cannot be assigned to an environment"},
	{"NODE_DEVICE_RESET", "PCI devices cannot be assigned to an environment"},
	{"DOMAIN_MIGRATE_*_COMPRESSION_CACHE", "there is no page compression cache"},
	{"AUTH_SASL_*", "this socket authenticates with polkit; SASL is for TCP, which virtproxyd serves"},

	// What this version does not have yet.
	{"DOMAIN_MIGRATE*", "migration is of version 3: use a client of libvirt 0.9.2 or newer"},

	// The admin program.
	{"SERVER_UPDATE_TLS_FILES", "TLS connections come through virtproxyd, which has the files"},
	{"CONNECT_DAEMON_SHUTDOWN", "the service manager stops the daemon: use systemctl stop virtvzd"},
	{"CONNECT_SET_DAEMON_TIMEOUT", "the daemon does not stop when it is idle: it watches environments"},

	// QEMU's program.
	{"DOMAIN_MONITOR_COMMAND*", "there is no QEMU monitor"},
	{"DOMAIN_ATTACH", "there is no QEMU process to attach to"},
	{"CONNECT_DOMAIN_MONITOR_EVENT_*", "there is no QEMU monitor"},
}

// refusal makes the entry of a procedure that is not served. A read-only
// connection is told that first, as by libvirt.
func refusal(info *protocol.Info) procedure {
	return procedure{info: info, serve: func(r *request) (xdr.Marshaler, error) {
		if err := r.open(info.NewArgs()); err != nil {
			return nil, err
		}
		return nil, errorf(protocol.ErrNoSupport, "%s: %s", functionName(info), refusalReason(info))
	}}
}

func refusalReason(info *protocol.Info) string {
	for _, r := range reasons {
		if ok, _ := path.Match(r.pattern, info.Name); ok {
			return r.reason
		}
	}
	return ""
}
