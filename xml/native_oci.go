package xml

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// fromOCI reads a config.json. It has no lines worth naming, so what is told
// is named by its path in it.
func fromOCI(d *draft, config string) error {
	var c specs.Spec
	var present map[string]json.RawMessage
	for _, into := range []any{&c, &present} {
		decoder := json.NewDecoder(strings.NewReader(config))
		if err := decoder.Decode(into); err != nil {
			return malformed("the configuration is not a config.json of OCI: %s", jsonProblem(config, err))
		}
		if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
			return malformed("the configuration has something behind its last brace")
		}
	}
	d.kind = "vz"
	d.name = cmp.Or(c.Hostname, "unnamed")
	for _, key := range slices.Sorted(maps.Keys(present)) {
		switch key {
		case "ociVersion", "root", "process", "hostname", "mounts", "linux":
		case "hooks":
			d.note(0, "hooks: programs of a configuration are not run")
		case "annotations":
			d.note(0, "annotations: put what you need into <metadata>")
		default:
			d.note(0, "%s: nothing here is like it", shorten(key))
		}
	}
	if c.Root == nil || !strings.HasPrefix(c.Root.Path, "/") {
		return malformed("root.path is missing or relative to the bundle: an absolute path on the host is needed")
	}
	var more []string
	if c.Root.Readonly {
		more = []string{"<readonly/>"}
	}
	d.filesystem("mount", "dir", c.Root.Path, "/", more...)
	if c.Process != nil {
		if err := d.ociProcess(c.Process); err != nil {
			return err
		}
	}
	for n, m := range c.Mounts {
		d.ociMount(n, m)
	}
	if c.Linux != nil {
		return d.ociLinux(c.Linux)
	}
	return nil
}

// jsonProblem adds the line to what is wrong.
func jsonProblem(config string, err error) string {
	var offset int64
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	default:
		return err.Error()
	}
	offset = min(offset, int64(len(config)))
	return fmt.Sprintf("line %d: %v", 1+strings.Count(config[:offset], "\n"), err)
}

func (d *draft) ociProcess(p *specs.Process) error {
	for n, word := range p.Args {
		if n == 0 && !strings.HasPrefix(word, "/") {
			return malformed("process.args begins with '%s': the absolute path of the program in the root is needed", shorten(word))
		}
		d.os = append(d.os, element([]string{"init", "initarg"}[min(n, 1)], word))
	}
	for _, one := range p.Env {
		if name, value, ok := strings.Cut(one, "="); ok && name != "" {
			d.initenv = append(d.initenv, element("initenv", value, "name", name))
		}
	}
	if p.Cwd != "" && p.Cwd != "/" {
		d.os = append(d.os, element("initdir", p.Cwd))
	}
	d.initAs(fmt.Sprint(p.User.UID), fmt.Sprint(p.User.GID))
	if p.Capabilities != nil {
		d.policy = "deny"
		for _, name := range p.Capabilities.Bounding {
			if !d.capability(name, "on") {
				d.note(0, "process.capabilities: libvirt's XML has no element for %s", shorten(name))
			}
		}
	}
	beancounter := map[string]string{"RLIMIT_NOFILE": "numfile", "RLIMIT_SIGPENDING": "numsiginfo"}
	for _, l := range p.Rlimits {
		if name := beancounter[l.Type]; name != "" && l.Hard >= beancounters[name].least && l.Hard <= maxBeancounter {
			d.ve = append(d.ve, element("ve:ubc", "", "name", name, "limit", fmt.Sprint(l.Hard)))
			delete(beancounter, l.Type) // the first of two holds
		} else {
			d.note(0, "process.rlimits: %s: set it inside", shorten(l.Type))
		}
	}
	return nil
}

func (d *draft) ociMount(n int, m specs.Mount) {
	var more []string
	if slices.Contains(m.Options, "ro") {
		more = []string{"<readonly/>"}
	}
	target := path.Join("/", m.Destination)
	switch {
	case slices.Contains([]string{"proc", "sysfs", "devpts", "cgroup", "cgroup2", "mqueue"}, m.Type): // has its own
	case ownPlace(target): // as lxcfs mounts it
		if strings.HasPrefix(target, "/dev/") && m.Type != "tmpfs" {
			d.note(0, "mounts[%d]: '%s' at '%s': devices are <hostdev> or <disk>", n, shorten(m.Source), shorten(target))
		}
	case m.Type == "tmpfs":
		d.tmpfs(0, target, m.Options, more)
	case m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind"):
		if !strings.HasPrefix(m.Source, "/") {
			d.note(0, "mounts[%d]: the source '%s' is relative to the bundle: an absolute path is needed", n, shorten(m.Source))
			return
		}
		d.filesystem("mount", "dir", m.Source, target, more...)
	default:
		d.note(0, "mounts[%d]: type '%s' at '%s': only directories (bind) and tmpfs can be mounted", n, shorten(m.Type), shorten(target))
	}
}

func (d *draft) ociLinux(l *specs.Linux) error {
	for _, m := range l.UIDMappings {
		d.idRange("uid", m.ContainerID, m.HostID, m.Size)
	}
	for _, m := range l.GIDMappings {
		d.idRange("gid", m.ContainerID, m.HostID, m.Size)
	}
	for n, one := range l.Devices {
		if one.Type == "c" || one.Type == "u" {
			d.hostdev(one.Path)
		} else {
			d.note(0, "linux.devices[%d]: %s: a block device is a <disk>, and other nodes are for init to make", n, shorten(one.Path))
		}
	}
	for _, n := range l.Namespaces {
		if n.Path != "" {
			d.note(0, "linux.namespaces: %s of '%s': an environment has its own", n.Type, shorten(n.Path))
		}
	}
	if l.Seccomp != nil {
		d.note(0, "linux.seccomp: there is one filter for all: see <features><capabilities>")
	}
	for _, key := range slices.Sorted(maps.Keys(l.Sysctl)) {
		d.note(0, "linux.sysctl: %s: set it inside, in /etc/sysctl.d", shorten(key))
	}
	if l.Resources != nil {
		return d.ociResources(l.Resources)
	}
	return nil
}

func (d *draft) ociResources(r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		value := func(n *int64) uint64 {
			if n == nil || *n < 0 {
				return math.MaxUint64
			}
			return uint64(*n)
		}
		d.limits(value(m.Limit), value(m.Swap), math.MaxUint64)
		if soft := value(m.Reservation); soft < math.MaxUint64 {
			d.limit("min_guarantee", soft>>10)
		}
	}
	if c := r.CPU; c != nil {
		if c.Shares != nil && *c.Shares > 0 {
			d.cputune = append(d.cputune, element("shares", fmt.Sprint(min(10_000, max(1, min(*c.Shares, 1<<20)*100/1024)))))
		}
		if c.Quota != nil && *c.Quota > 0 {
			period := uint64(DefaultPeriod)
			if c.Period != nil {
				period = *c.Period
			}
			d.quota(*c.Quota, period)
		}
		d.cpuset, d.nodeset = c.Cpus, c.Mems
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit > 0 {
		d.ve = append(d.ve, element("ve:tasks", fmt.Sprint(*r.Pids.Limit)))
	}
	if r.BlockIO != nil && r.BlockIO.Weight != nil && *r.BlockIO.Weight > 0 {
		d.blkiotune = append(d.blkiotune, element("weight", fmt.Sprint(*r.BlockIO.Weight)))
	}
	// Files of cgroup v2 are what LXC names with lxc.cgroup2 before them.
	group := &lxc{draft: d, memory: math.MaxUint64, memsw: math.MaxUint64, swap: math.MaxUint64}
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		if err := group.read(0, "lxc.cgroup2."+file, r.Unified[file]); err != nil {
			return malformed("linux.resources.unified: %s is '%s'", shorten(file), shorten(r.Unified[file]))
		}
	}
	group.groupLimits()
	if len(r.HugepageLimits) > 0 || len(r.Rdma) > 0 || r.Network != nil {
		d.note(0, "linux.resources: hugepageLimits, rdma and network have no element")
	}
	return nil
}
