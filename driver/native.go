package driver

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"

	"github.com/opencontainers/runtime-spec/specs-go"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

var converting = table{
	call(protocol.ConnectDomainXMLFromNative, func(r *request, a *protocol.ConnectDomainXMLFromNativeArgs) (ret protocol.ConnectDomainXMLFromNativeRet, err error) {
		if err := checkFlags(a.Flags); err != nil {
			return ret, err
		}
		ret.DomainXML, err = xml.FromNative(a.NativeFormat, a.NativeConfig, r.drv.facts())
		return ret, err
	}),
	call(protocol.ConnectDomainXMLToNative, func(r *request, a *protocol.ConnectDomainXMLToNativeArgs) (ret protocol.ConnectDomainXMLToNativeRet, err error) {
		if err := checkFlags(a.Flags); err != nil {
			return ret, err
		}
		if a.NativeFormat != xml.NativeOCI {
			return ret, errorf(protocol.ErrConfigUnsupported, "a definition becomes '%s' only, not '%s'", xml.NativeOCI, a.NativeFormat)
		}
		facts := r.drv.facts()
		facts.Templates = nil
		ret.NativeConfig, err = toOCI(a.DomainXML, facts, r.drv.rt.Host())
		return ret, err
	}),
}

// shownRange is where ids of an environment without an <idmap> begin in a
// config.json: which they are is known when it starts.
const shownRange = 1 << 19

// toOCI gives the config.json an environment is run with, for people to read
// and to run elsewhere. What systemd and the daemon do besides is in it too:
// mounts of the host's directories, and limits as files of a control group.
// The root is looked at only when it starts, so without an <init> the usual
// one stands in its place, and user and group are those given by number.
func toOCI(doc string, facts xml.HostFacts, host runtime.Host) (string, error) {
	def, err := xml.Parse(doc, facts, xml.ParseOptions{Live: true})
	if err != nil {
		return "", err
	}
	env, err := xml.NewEnvironment(def)
	if err != nil {
		return "", err
	}
	root := runtime.Root{Init: env.Init}
	if len(root.Init) == 0 {
		root.Init = []string{"/sbin/init"}
	}
	fmt.Sscan(cmp.Or(env.User, "0"), &root.UID)
	fmt.Sscan(cmp.Or(env.Group, "0"), &root.GID)
	plan, err := runtime.NewPlan(env, host, root, runtime.Reserved{
		Base: shownRange, Dir: "/run/libvirt/vz/" + def.UUID, CPULoad: map[int]int{},
	})
	if err != nil {
		return "", err
	}
	spec := plan.Spec
	mounts, err := environmentMounts(env, spec.Root)
	if err != nil {
		return "", err
	}
	spec.Mounts = append(spec.Mounts, mounts...)
	spec.Linux.Resources = &specs.LinuxResources{Unified: unified(env)}
	out, err := json.MarshalIndent(spec, "", "  ")
	return string(out) + "\n", err
}

// environmentMounts are those the stub makes before the OCI runtime is run. A
// source of type bind is inside: as the source of a mount it would be the host's
// directory of that name. An image has no file system type that is known before
// it is looked at.
func environmentMounts(env *xml.Environment, root *specs.Root) (list []specs.Mount, err error) {
	for _, f := range env.Filesystems {
		m := specs.Mount{Destination: f.Target, Type: "bind", Source: f.Source, Options: []string{"rbind"}}
		if f.ReadOnly {
			m.Options = append(m.Options, "ro")
		}
		switch {
		case f.Target == "/":
			if f.Type == "mount" || f.Type == "host" {
				root.Path = f.Source
			}
			continue
		case f.Type == "ram":
			m.Type, m.Source = "tmpfs", "tmpfs"
			m.Options = append([]string{fmt.Sprintf("size=%d", f.Size)}, m.Options[1:]...)
		case f.Type == "tmp":
			m.Type, m.Source, m.Options = "tmpfs", "tmpfs", []string{"mode=1777"}
		case f.Type != "mount":
			return nil, errorf(protocol.ErrConfigUnsupported, "a config.json cannot say what the filesystem of type '%s' at %s is: "+
				"take it out of the definition (domxml-to-native oci --xml FILE), and mount it yourself", f.Type, f.Target)
		}
		list = append(list, m)
	}
	return list, nil
}

// unified are the limits by their files in cgroup v2.
func unified(env *xml.Environment) map[string]string {
	files := map[string]string{}
	for name, n := range map[string]uint64{
		"memory.max": env.Memory.Max, "memory.high": env.Memory.High, "memory.swap.max": env.Memory.Swap,
		"pids.max": env.Counts.Tasks, "cgroup.max.descendants": env.Counts.Cgroups,
	} {
		if n != math.MaxUint64 {
			files[name] = fmt.Sprint(n)
		}
	}
	for name, n := range map[string]uint64{
		"memory.low": env.Memory.Low, "memory.min": env.Memory.Min, "cpu.weight": env.CPU.Weight, "io.weight": env.IO.Weight,
	} {
		if n != 0 {
			files[name] = fmt.Sprint(n)
		}
	}
	if env.CPU.QuotaUSec > 0 {
		files["cpu.max"] = fmt.Sprint(env.CPU.QuotaUSec, cmp.Or(env.CPU.PeriodUSec, xml.DefaultPeriod))
	}
	if env.CPU.Set != "" {
		files["cpuset.cpus"] = env.CPU.Set
	}
	if env.CPU.MemoryNodes != "" {
		files["cpuset.mems"] = env.CPU.MemoryNodes
	}
	return files
}
