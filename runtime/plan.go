package runtime

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// Reserved is what Start takes from what the host has left before it plans.
type Reserved struct {
	Base    uint32      // first host id, for IDMap.Mode Auto
	CPULoad map[int]int // environments on each CPU
	Dir     string      // StateDir/UUID
	Lower   string      // tree of the template, for a root of type template
	Layers  string      // DataDir/private/UUID
}

// Plan is everything that will be done to start an environment. Making one touches
// nothing.
type Plan struct {
	Scope systemd.Scope // without PIDs
	Root  rootRequest
	IDMap xml.IDMap // as it will be: Explicit or Privileged
	Work  workRequest
	Spec  *specs.Spec
}

// NewPlan plans the start of env on host with what was found in its root.
func NewPlan(env *xml.Environment, host Host, root Root, res Reserved) (*Plan, error) {
	p := &Plan{IDMap: planIDs(env, res)}
	var err error
	if p.Scope, err = planScope(env, host, res); err != nil {
		return nil, err
	}
	if p.Root, err = planRoot(env, res); err != nil {
		return nil, err
	}
	if p.Work.Mounts, err = planMounts(env, p.IDMap); err != nil {
		return nil, err
	}
	p.Work.Files, p.Work.Nodes = runFiles(root.Kind), nodesOf(env.Devices)
	if p.Work.Names = resolverText(env); p.Work.Names != "" && root.Kind == Systemd {
		p.Work.Files = append(p.Work.Files, resolvedFile(env))
	}
	if p.Spec, err = planSpec(env, host, root, p.IDMap, res); err != nil {
		return nil, err
	}
	return p, nil
}

func planIDs(env *xml.Environment, res Reserved) xml.IDMap {
	if env.IDMap.Mode != xml.Auto {
		return env.IDMap
	}
	r := []xml.IDRange{{Inside: 0, Host: res.Base, Count: rangeSize}}
	return xml.IDMap{Mode: xml.Explicit, UIDs: r, GIDs: r}
}

func ranges(ids []xml.IDRange) []idRange {
	out := make([]idRange, len(ids))
	for n, r := range ids {
		out[n] = idRange{r.Inside, r.Host, r.Count}
	}
	return out
}

func planRoot(env *xml.Environment, res Reserved) (rootRequest, error) {
	ids := planIDs(env, res)
	q := rootRequest{
		Dir:  res.Dir,
		UIDs: ranges(ids.UIDs), GIDs: ranges(ids.GIDs),
		Init: env.Init, User: env.User, Group: env.Group,
	}
	if len(env.Filesystems) == 0 || env.Filesystems[0].Target != "/" {
		return q, fmt.Errorf("%s has no root: add a <filesystem> with <target dir='/'/>", env.Name)
	}
	root := env.Filesystems[0]
	q.ReadOnly = root.ReadOnly
	switch root.Type {
	case "template":
		q.Lower, q.Layers = res.Lower, res.Layers
	case "mount":
		q.Root = root.Source
	case "host":
		q.Root, q.Foreign = "/", true
	default:
		return q, fmt.Errorf("a root of type '%s' is not supported: use 'template' or 'mount'", root.Type)
	}
	return q, nil
}

// runSize is the ceiling of /run. systemd refuses daemon-reload with less than
// 16 MiB free there; the pages are charged to the environment as they are used.
const runSize = 64 << 20

// planMounts are the mounts the stub makes itself, in order.
func planMounts(env *xml.Environment, ids xml.IDMap) ([]stubMount, error) {
	owner := ""
	if ids.Mode != xml.Privileged {
		owner = fmt.Sprintf(",uid=%d,gid=%d", hostID(ranges(ids.UIDs), 0), hostID(ranges(ids.GIDs), 0))
	}
	mounts := []stubMount{{
		Kind: "tmpfs", Target: "/run", Flags: mountNoSuid | mountNoDev,
		Data: fmt.Sprintf("mode=755,size=%d%s", runSize, owner),
	}}
	for _, fs := range env.Filesystems[1:] {
		m := stubMount{Source: fs.Source, Target: fs.Target, ReadOnly: fs.ReadOnly}
		switch fs.Type {
		case "mount":
			m.Kind = "bind"
		case "bind":
			m.Kind = "inside"
		case "ram":
			m.Kind, m.Flags = "tmpfs", mountNoSuid|mountNoDev
			m.Data = fmt.Sprintf("mode=755,size=%d%s", fs.Size, owner)
		case "tmp":
			m.Kind, m.Flags, m.Data = "tmpfs", mountNoSuid|mountNoDev, "mode=1777"+owner
		default:
			return nil, fmt.Errorf("a filesystem of type '%s' at %s is not supported: use 'mount', 'bind' or 'ram'", fs.Type, fs.Target)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// mount(2) flags, as in <linux/mount.h>.
const (
	mountNoSuid = 0x2
	mountNoDev  = 0x4
)

// String shows the plan for golden tests and for people. The seccomp profile's
// long list of allowed calls is shown as a number.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "scope %s in %s: %s\n", p.Scope.Name, p.Scope.Slice, p.Scope.Description)
	for _, prop := range p.Scope.Properties {
		fmt.Fprintf(&b, "\t%s=%v\n", prop.Name, prop.Value.Value())
	}
	fmt.Fprintf(&b, "root lower=%s layers=%s dir=%s readonly=%v ids=%v,%v\n",
		p.Root.Lower, p.Root.Layers, p.Root.Root, p.Root.ReadOnly, p.Root.UIDs, p.Root.GIDs)
	for _, m := range p.Work.Mounts {
		fmt.Fprintf(&b, "mount %s %s on %s ro=%v %s\n", m.Kind, m.Source, m.Target, m.ReadOnly, m.Data)
	}
	for _, f := range p.Work.Files {
		if f.Link != "" {
			fmt.Fprintf(&b, "link /run/%s -> %s\n", f.Path, f.Link)
		} else {
			fmt.Fprintf(&b, "file /run/%s: %s\n", f.Path, strings.ReplaceAll(strings.TrimSpace(f.Text), "\n", " | "))
		}
	}
	spec := *p.Spec
	if spec.Linux != nil {
		linux := *spec.Linux
		if linux.Seccomp != nil {
			fmt.Fprintf(&b, "seccomp %s, %s\n", linux.Seccomp.DefaultAction, denied(linux.Seccomp))
		}
		linux.Seccomp = nil
		spec.Linux = &linux
	}
	if p.Work.Names != "" {
		fmt.Fprintf(&b, "%s: %s\n", resolverPath, strings.ReplaceAll(strings.TrimSpace(p.Work.Names), "\n", " | "))
	}
	for n, node := range p.Work.Nodes {
		fmt.Fprintf(&b, "node %d of %s\n", n, node.Source)
	}
	text, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		return err.Error()
	}
	fmt.Fprintf(&b, "%s\n", text)
	return b.String()
}

func denied(s *specs.LinuxSeccomp) string {
	allowed, refused := 0, ""
	for _, rule := range s.Syscalls {
		if rule.Action == specs.ActAllow {
			allowed += len(rule.Names)
		} else {
			refused += " " + strings.Join(rule.Names, " ")
		}
	}
	return fmt.Sprintf("more than %d calls allowed, refused:%s", allowed/50*50, refused)
}

// unlimited is how xml says "no limit".
const unlimited = math.MaxUint64

func bundleRoot(dir string) string { return filepath.Join(dir, "rootfs") }
