package runtime

import "slices"

// runFile is a file, or a symbolic link, below the environment's /run.
type runFile struct {
	Path string // relative to /run
	Text string
	Link string // target; then Text is empty
}

// What a system inside needs without an edit of its template is put into
// /run/systemd, which is a tmpfs of ours, before its init starts. Directories below
// /run/systemd/system rank below /etc and above /usr/lib, so an administrator
// inside can still overrule all of it.

// maskedUnits would fail or do harm in an environment, or make it impossible to
// checkpoint (CRIU cannot dump these file systems).
var maskedUnits = []string{
	"dev-hugepages.mount",
	"dev-mqueue.mount",
	"kmod-static-nodes.service",
	"proc-sys-fs-binfmt_misc.automount",
	"proc-sys-fs-binfmt_misc.mount",
	"sys-fs-fuse-connections.mount",
	"sys-kernel-config.mount",
	"sys-kernel-debug.mount",
	"sys-kernel-tracing.mount",
	"syslog.socket",
	"systemd-binfmt.service",
	"systemd-hwdb-update.service",
	"systemd-modules-load.service",
	"systemd-udev-settle.service",
	"systemd-udev-trigger.service",
	"systemd-udevd-control.socket",
	"systemd-udevd-kernel.socket",
	"systemd-udevd.service",
}

// serviceDropIn: each of these options gives a service a namespace of a kind
// that CRIU refuses to dump when it is nested.
const serviceDropIn = `[Service]
ProtectHostname=no
PrivateNetwork=no
PrivateIPC=no
PrivateUsers=no
`

// managerDropIn: accounting inside doubles the cgroup controllers of the scope
// for nothing, and a memory pressure watch is an open file on the cgroup that
// cannot be restored.
const managerDropIn = `[Manager]
DefaultCPUAccounting=no
DefaultIOAccounting=no
DefaultMemoryAccounting=no
DefaultTasksAccounting=no
DefaultMemoryPressureWatch=off
`

// runFiles are the files for an init of the given kind. Mounts and automounts
// are masked like any unit: a link to /dev/null.
func runFiles(kind InitKind) []runFile {
	if kind != Systemd {
		return nil
	}
	files := []runFile{
		{Path: "systemd/system/service.d/50-virtvzd.conf", Text: serviceDropIn},
		{Path: "systemd/system.conf.d/50-virtvzd.conf", Text: managerDropIn},
	}
	for _, unit := range slices.Sorted(slices.Values(maskedUnits)) {
		files = append(files, runFile{Path: "systemd/system/" + unit, Link: "/dev/null"})
	}
	return files
}
