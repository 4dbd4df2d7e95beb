package runtime

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// planDNF has dnf make the root.
func planDNF(r *Recipe, h buildHost) (*buildPlan, error) {
	p, dnf, err := startDNF(r, h)
	if err != nil {
		return nil, err
	}
	install := append(slices.Clone(dnf), "--setopt=skip_if_unavailable=False", "install")
	p.Steps = []buildStep{
		{Title: "installing packages", Argv: append(install, r.Packages...), Network: true, API: true},
		{Title: "removing what was downloaded", Argv: append(dnf, "clean", "all")},
		{Title: "listing packages", Argv: []string{"rpm", "--root=" + viewTarget, "-qa", "--queryformat", `%{NAME} %{EVR}\n`}, Capture: true},
	}
	return p, nil
}

// planDNFUpdate asks the host's dnf: the root need not have one.
func planDNFUpdate(r *Recipe, h buildHost) (*buildPlan, error) {
	p, dnf, err := startDNF(r, h)
	if err != nil {
		return nil, err
	}
	argv := append([]string{"/bin/sh", "-e", "-c", strings.Replace(updateDNF, "dnf", `"$@"`, 1), "sh"}, dnf...)
	p.Steps = []buildStep{{Argv: argv, Network: true, API: true, Capture: true}}
	return p, nil
}

// startDNF prepares dnf to work on the root with the repositories that the
// host's dnf knows by an id and those that the recipe names.
func startDNF(r *Recipe, h buildHost) (p *buildPlan, dnf []string, err error) {
	const repos = "/run/build/repos"
	var text strings.Builder
	for _, repo := range r.Repositories {
		fmt.Fprintf(&text, "[%s]\nname=%s\nenabled=1\n", repo.Name, repo.Name)
		switch {
		case repo.Metalink != "":
			fmt.Fprintf(&text, "metalink=%s\n", repo.Metalink)
		case repo.Mirrorlist != "":
			fmt.Fprintf(&text, "mirrorlist=%s\n", repo.Mirrorlist)
		default:
			fmt.Fprintf(&text, "baseurl=%s\n", repo.Address)
		}
		if repo.Unsigned {
			text.WriteString("gpgcheck=0\nrepo_gpgcheck=0\n\n")
		} else {
			fmt.Fprintf(&text, "gpgcheck=1\ngpgkey=file://%s\n\n", repo.Key)
		}
	}
	own := make([]string, len(r.Repositories))
	for n, repo := range r.Repositories {
		own[n] = repo.Name
	}
	// The ids of an installed recipe may be given as repositories of its own.
	ids := slices.DeleteFunc(slices.Clone(r.Known), func(id string) bool { return slices.Contains(own, id) })
	for _, id := range ids {
		if !slices.Contains(h.DNF, id) {
			return nil, nil, fmt.Errorf("the repository %s is not known to this host's dnf: add it to the recipe as a [[repository]] of that name with its address and key, and %s",
				id, whereToLook(r.Distribution))
		}
	}
	ids = append(ids, own...)
	if len(ids) == 0 {
		return nil, nil, fmt.Errorf("the recipe names no repository: give the ids of those that this host's dnf knows as repositories, or add a [[repository]] with name, address and key, and %s",
			whereToLook(r.Distribution))
	}
	dnf = []string{"dnf", "-y", "--installroot=" + viewTarget, "--releasever=" + r.Release,
		"--setopt=reposdir=" + repos + ",/etc/yum.repos.d,/etc/zypp/repos.d", "--disablerepo=*", "--enablerepo=" + strings.Join(ids, ","),
		"--setopt=proxy=" + outAddress, "--setopt=install_weak_deps=False", "--setopt=keepcache=False", "--setopt=tsflags=nodocs",
		"--setopt=logdir=/var/log", "--setopt=persistdir=/var/lib/dnf"}
	if r.Architecture != "" {
		dnf = append(dnf, "--forcearch="+r.Architecture)
	}
	return &buildPlan{Files: []viewFile{
		{repos + "/build.repo", text.String()},
		// What is mounted there while rpm runs cannot be replaced.
		{"/root/.rpmmacros", "%_netsharedpath /dev:/proc:/sys\n%_dbpath " + rpmDatabase(r) + "\n"},
	}}, dnf, nil
}

// rpmDatabase is where the distribution's own rpm looks for it: that of the
// host may have another place.
func rpmDatabase(r *Recipe) string {
	if old := map[string]string{"centos": "9", "almalinux": "9", "rocky": "9", "rhel": "9"}[r.Distribution]; old != "" && strings.HasPrefix(r.Release, old) {
		return "/var/lib/rpm"
	}
	return cmp.Or(distros[r.Distribution].rpm, "/var/lib/rpm")
}

// updateDNF: dnf exits with 100 when there are updates, and prints
// "NAME.ARCH VERSION REPOSITORY" for each, and indented what they replace.
// dnf.conf as it comes has it pass over a repository that cannot be reached.
const updateDNF = `list=$(dnf -q --refresh --setopt=skip_if_unavailable=False check-update) || [ $? = 100 ]
echo "$list" | awk '/^[^ ]/ && NF == 3 && $1 ~ /[.]/ && !told[$0]++'`
