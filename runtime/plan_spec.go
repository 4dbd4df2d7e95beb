package runtime

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"virtvzd/xml"
)

// planSpec is the OCI configuration. It has neither resources nor a cgroups
// path: the scope has them, and the runtime is told to leave cgroups alone.
func planSpec(env *xml.Environment, host Host, root Root, ids xml.IDMap, res Reserved) (*specs.Spec, error) {
	privileged := ids.Mode == xml.Privileged
	caps := capabilities(env.Capabilities, privileged)
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: bundleRoot(res.Dir), Readonly: env.Filesystems[0].ReadOnly},
		Process: &specs.Process{
			Terminal: true,
			User:     specs.User{UID: root.UID, GID: root.GID},
			Args:     root.Init,
			Env:      planEnv(env, root),
			Cwd:      "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Permitted: caps, Effective: caps,
			},
		},
		Hostname: planHostname(env),
		Mounts:   planKernelMounts(host, ids, env.Counts.Terminals),
		Linux: &specs.Linux{
			Namespaces:  planNamespaces(env, privileged),
			UIDMappings: mappings(ids.UIDs),
			GIDMappings: mappings(ids.GIDs),
			MaskedPaths: slices.Clone(maskedPaths),
		},
	}
	if env.Dir != "" {
		spec.Process.Cwd = env.Dir
	}
	if privileged {
		spec.Linux.ReadonlyPaths = slices.Clone(readonlyPaths)
	}
	profile, err := seccompProfile(spec)
	if err != nil {
		return nil, err
	}
	spec.Linux.Seccomp = profile
	for n, d := range env.Devices {
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: d.Target, Type: "bind", Source: nodePath(devicesDir(res.Dir), n), Options: []string{"bind"},
		})
	}
	return spec, nil
}

// maskedPaths leak the host's state to anybody inside. What only the host's root
// may read is protected by the user namespace already, but not without one.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

// readonlyPaths: root without a user namespace is the host's root to sysctl. In
// a user namespace the kernel itself refuses what is not the namespace's own,
// and the rest (net.*) is meant to be set.
var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

func planNamespaces(env *xml.Environment, privileged bool) []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace},
	}
	if !privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace})
	}
	return list
}

func mappings(ids []xml.IDRange) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, r := range ids {
		out = append(out, specs.LinuxIDMapping{ContainerID: r.Inside, HostID: r.Host, Size: r.Count})
	}
	return out
}

// planKernelMounts are the file systems of the kernel. No mqueue, hugetlbfs or
// fusectl: CRIU cannot dump them.
func planKernelMounts(host Host, ids xml.IDMap, terminals uint64) []specs.Mount {
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if ids.Mode == xml.Privileged || hostID(ranges(ids.GIDs), 5) != 65534 {
		pts = append(pts, "gid=5")
	}
	if terminals != unlimited {
		pts = append(pts, fmt.Sprintf("max=%d", terminals))
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=1m"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "rw"}},
	}
	for _, file := range host.LXCFSFiles {
		mounts = append(mounts, specs.Mount{
			Destination: file, Type: "bind", Source: host.LXCFS + file, Options: []string{"bind", "nosuid", "nodev", "noexec"},
		})
	}
	return mounts
}

// planEnv is init's environment: what libvirt-lxc gives, so that systemd and
// scripts know where they are, and then the domain's own.
func planEnv(env *xml.Environment, root Root) []string {
	uuid := formatUUID(env.UUID)
	list := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"TERM=linux",
		"container=lxc-libvirt",
		"container_uuid=" + uuid,
		"LIBVIRT_LXC_UUID=" + uuid,
		"LIBVIRT_LXC_NAME=" + env.Name,
	}
	if terminals := consoleTerminals(env); terminals != "" {
		list = append(list, "container_ttys="+terminals) // systemd runs a getty on each
	}
	if root.Home != "" {
		list = append(list, "HOME="+root.Home)
	}
	if root.Kind == Systemd {
		// PID 1's own watch; that of the services is the manager drop-in's.
		list = append(list, "MEMORY_PRESSURE_WATCH=/dev/null")
	}
	return append(list, env.Env...)
}

// consoleTerminals are the ptys of the consoles after init's own, which is
// pts/0: they are opened in this order before anybody else can.
func consoleTerminals(env *xml.Environment) string {
	var names []string
	for n := 1; n < len(env.Consoles); n++ {
		names = append(names, fmt.Sprintf("pts/%d", n))
	}
	return strings.Join(names, " ")
}

// planHostname turns a name that is no hostname into one. Linux takes 64
// characters.
func planHostname(env *xml.Environment) string {
	if env.Hostname != "" {
		return env.Hostname
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		}
		return '-'
	}, env.Name)
	if len(name) > 63 {
		name = name[:63]
	}
	if name = strings.Trim(name, "-."); name == "" {
		return "localhost"
	}
	return name
}

func formatUUID(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
