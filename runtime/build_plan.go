package runtime

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// distro is how the roots of a distribution are made.
type distro struct {
	tool string            // the program that makes one
	from map[string]string // ID of the host -> package with the tool; "" for all others
	plan func(r *Recipe, h buildHost) (*buildPlan, error)
	// update is a script that has the root's own package manager tell, in a
	// line for each package, what it would update.
	update string
	// planUpdate, if there is one, does the same from outside with the recipe.
	planUpdate func(r *Recipe, h buildHost) (*buildPlan, error)
	// look is where a user finds the address of a repository.
	look string
	rpm  string // where its rpm keeps its database
}

// buildHost is what a plan needs to know of the host.
type buildHost struct {
	ID      string            // of os-release(5)
	Apt     []aptSource       // what apt is configured with
	AptConf []string          // those of its settings without which an archive cannot be used
	Proxies map[string]string // those that apt or dnf is configured with, see wayOut
	DNF     []string          // ids of the repositories that dnf is configured with
	Has     func(file string) bool
}

// buildPlan is what is done to make a root, in this order, in the view of the
// host that it also tells.
type buildPlan struct {
	Files []viewFile // written into the view
	Binds []string   // directories and files of the host that are seen, read-only
	Steps []buildStep
	Out   wayOut // for steps with a network
}

// viewFile is a file of the view that the host does not have.
type viewFile struct{ Name, Text string }

// buildStep is one command. It runs in namespaces of its own, as root of a
// user namespace that owns no id of the host.
type buildStep struct {
	Title   string
	Argv    []string
	Inside  bool // the root is its root, not the view
	Network bool // one with a way to archives; without it there is none at all
	Mounts  bool // it may mount, for itself alone
	API     bool // /proc and /dev are mounted in the root for it
	Capture bool // its standard output is the answer
}

// distros by distribution, as os-release(5) calls it in ID.
var distros map[string]*distro

func init() { // the plans look things up in it
	apt := distro{tool: "mmdebstrap", from: map[string]string{"": "mmdebstrap"}, plan: planAPT, update: updateAPT,
		look: "the sources of apt on such a system name it"}
	dnf := distro{tool: "dnf", from: map[string]string{"": "dnf"}, plan: planDNF, update: updateDNF, planUpdate: planDNFUpdate, rpm: "/usr/lib/sysimage/rpm",
		look: "the files in /etc/yum.repos.d of such a system name it (metalink or mirrorlist are better than an address)"}
	zypp := dnf
	zypp.look = "the files in /etc/zypp/repos.d of such a system name it"
	apk := distro{tool: "apk", from: map[string]string{"": "apk-tools"}, plan: planAPK, update: updateAPK, planUpdate: planAPKUpdate,
		look: "/etc/apk/repositories of such a system names it"}
	pacman := distro{tool: "pacman", from: map[string]string{"debian": "pacman-package-manager", "ubuntu": "pacman-package-manager", "": "pacman"},
		plan: planPacman, update: updatePacman, look: "/etc/pacman.d/mirrorlist of such a system names it"}
	distros = map[string]*distro{
		"debian": &apt, "ubuntu": &apt,
		"fedora": &dnf, "centos": &dnf, "almalinux": &dnf, "rocky": &dnf, "rhel": &dnf,
		"opensuse-leap": &zypp, "opensuse-tumbleweed": &zypp,
		"alpine": &apk, "arch": &pacman,
	}
}

func distroNames() []string { return slices.Sorted(maps.Keys(distros)) }

func whereToLook(distribution string) string { return distros[distribution].look }

// missing is the sentence about a tool that the host lacks.
func (f *distro) missing(host string) error {
	name, ok := f.from[host]
	if !ok {
		name = f.from[""]
	}
	return fmt.Errorf("%s is missing: install the package %s", f.tool, name)
}

// planBuild makes the plan of a recipe: pure, given the host. After what the
// family does come the hooks.
func planBuild(r *Recipe, h buildHost) (*buildPlan, error) {
	f := distros[r.Distribution]
	if !slices.ContainsFunc(strings.Split(runtimePath, ":"), func(dir string) bool { return h.Has(dir + "/" + f.tool) }) {
		return nil, f.missing(h.ID)
	}
	for _, file := range append(r.keys(), r.localDirs()...) {
		if !h.Has(file) {
			return nil, fmt.Errorf("%s, which the recipe names, is not there", file)
		}
	}
	p, err := f.plan(r, h)
	if err != nil {
		return nil, err
	}
	p.Binds = append(p.Binds, append(r.keys(), r.localDirs()...)...)
	p.Out = h.wayOut(r)
	for n, hook := range r.Hooks {
		title := hook.Name
		if title == "" {
			title = fmt.Sprint(n + 1)
		}
		p.Steps = append(p.Steps, buildStep{
			Title: "hook " + printable(title, 64), Argv: []string{"/bin/sh", "-e", "-c", hook.Script}, Inside: true,
		})
	}
	return p, nil
}

// wayOut is what steps reach: all that is not the host itself, and what the
// recipe and apt name of that. A name that only resolves to what the host has for
// itself is none: who owns it could choose what that is.
func (h buildHost) wayOut(r *Recipe) wayOut {
	way := wayOut{Proxies: h.Proxies}
	addresses := []string{}
	for _, repo := range r.Repositories {
		addresses = append(addresses, repo.Address, repo.Metalink, repo.Mirrorlist)
	}
	for _, source := range h.Apt {
		addresses = append(addresses, source.URI)
	}
	for _, address := range addresses {
		switch u, err := url.Parse(address); {
		case err != nil || u.Hostname() == "":
		case u.Hostname() == "localhost" || isOwn(u.Hostname()):
			way.Named = append(way.Named, hostPort(u))
		default:
			way.Archives = append(way.Archives, hostPort(u))
		}
	}
	for _, list := range []*[]string{&way.Named, &way.Archives} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return way
}
