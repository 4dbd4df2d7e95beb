package runtime

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// aptSource is one that the host's apt is configured with. Label is "" where
// apt has not yet downloaded what it tells that from.
type aptSource struct{ URI, Release, Component, Label string }

// aptSourceFormat has apt-get indextargets print them, one a line.
const aptSourceFormat = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(LABEL)"

func parseAPTSources(text string) (list []aptSource) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) == 4 && addressText.MatchString(f[0]) && plainWord.MatchString(f[1]) && plainWord.MatchString(f[2]) {
			list = append(list, aptSource{f[0], f[1], f[2], f[3]})
		}
	}
	return list
}

// parseAPTURIs reads what apt-get update --print-uris tells, also of archives
// that nothing was downloaded from yet: 'URI/dists/RELEASE/InRelease' FILE SIZE.
func parseAPTURIs(text string) (list []aptSource) {
	for line := range strings.Lines(text) {
		uri, _, _ := strings.Cut(strings.TrimPrefix(line, "'"), "'")
		base, release, found := strings.Cut(strings.TrimSuffix(uri, "/InRelease"), "/dists/")
		if found && addressText.MatchString(base) && plainWord.MatchString(release) {
			list = append(list, aptSource{base + "/", release, "main", ""})
		}
	}
	return list
}

// parseAPTConf keeps what decides whether an archive can be reached and used.
// mmdebstrap reads none of the host's configuration. The builder talks to
// proxies, so they are apart.
func parseAPTConf(dump string) (lines []string, proxies map[string]string) {
	proxies = map[string]string{}
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		name, value, _ := strings.Cut(line, " ")
		name = strings.ToLower(name)
		if name == "acquire::check-valid-until" || name == "acquire::check-date" {
			lines = append(lines, line)
		}
		scheme, host, isProxy := strings.Cut(strings.TrimPrefix(name, "acquire::"), "::proxy")
		if isProxy && (scheme == "http" || scheme == "https") && (host == "" || strings.HasPrefix(host, "::")) {
			proxies[scheme+host] = strings.Trim(value, `";`)
		}
	}
	return lines, proxies
}

var aptLabels = map[string]string{"debian": "Debian", "ubuntu": "Ubuntu"}

// planAPT has mmdebstrap make the root. Without repositories in the recipe they
// are the host's: all that it has of this release, or else the archive that it
// has another release of.
func planAPT(r *Recipe, h buildHost) (*buildPlan, error) {
	sources, err := aptLines(r, h)
	if err != nil {
		return nil, err
	}
	const conf = "/run/build/apt.conf"
	argv := []string{"mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", "--skip=check/empty",
		"--aptopt=" + conf, "--dpkgopt=force-unsafe-io",
		// What is the host's stays out of the template.
		`--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"`}
	if r.Architecture != "" {
		argv = append(argv, "--architectures="+r.Architecture)
	}
	if len(r.Packages) > 0 {
		argv = append(argv, "--include="+strings.Join(r.Packages, ","))
	}
	for _, dir := range r.localDirs() { // dpkg runs in the root, and finds them there
		argv = append(argv, fmt.Sprintf(`--setup-hook=mkdir -p "$1"'%[1]s'; mount -o bind '%[1]s' "$1"'%[1]s'`, dir),
			fmt.Sprintf(`--customize-hook=umount "$1"'%[1]s'; chroot "$1" dpkg-query -S '%[1]s' || rmdir "$1"'%[1]s'`, dir))
	}
	argv = append(argv, r.Release, viewTarget)
	return &buildPlan{
		Files: []viewFile{{conf, strings.Join(h.AptConf, "\n") + "\n"}},
		Steps: []buildStep{{Title: "installing packages", Argv: append(argv, sources...), Network: true, Mounts: true}},
	}, nil
}

func aptLines(r *Recipe, h buildHost) (lines []string, err error) {
	if len(r.Known) > 0 {
		return nil, errors.New("apt has no ids for repositories: leave them out for the host's, or give them as [[repository]]")
	}
	for _, repo := range r.Repositories {
		if repo.Address == "" {
			return nil, fmt.Errorf("repository %s: apt needs an address", repo.Name)
		}
		option := "trusted=yes"
		if !repo.Unsigned {
			option = "signed-by=" + repo.Key
		}
		lines = append(lines, fmt.Sprintf("deb [%s] %s %s %s", option, repo.Address, cmp.Or(repo.Suite, r.Release), cmp.Or(repo.Components, "main")))
	}
	if len(lines) > 0 {
		return lines, nil
	}
	keyring := "/usr/share/keyrings/" + r.Distribution + "-archive-keyring.gpg"
	if !h.Has(keyring) {
		return nil, fmt.Errorf("%s is missing: install the package with the keys of %s, or name [[repository]] in the recipe", keyring, aptLabels[r.Distribution])
	}
	type place struct{ uri, release string }
	found := map[place][]string{}
	for _, s := range h.Apt {
		if s.Label == "" && s.Release == r.Release || strings.HasPrefix(s.Label, aptLabels[r.Distribution]) && (s.Release == r.Release || strings.HasPrefix(s.Release, r.Release+"-")) {
			at := place{s.URI, s.Release}
			found[at] = append(found[at], s.Component)
		}
	}
	if len(found) == 0 { // not of this release: of its archive, then
		for _, s := range h.Apt {
			if s.Label == aptLabels[r.Distribution] && s.Component == "main" {
				found[place{s.URI, r.Release}] = []string{"main"}
				break
			}
		}
	}
	for at, parts := range found {
		slices.Sort(parts)
		lines = append(lines, fmt.Sprintf("deb [signed-by=%s] %s %s %s", keyring, at.uri, at.release, strings.Join(slices.Compact(parts), " ")))
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("this host's apt knows no archive of %s (run apt-get update if it should), so the recipe must name one: "+
			"add a [[repository]] with address and key, and %s", aptLabels[r.Distribution], whereToLook(r.Distribution))
	}
	slices.Sort(lines)
	return lines, nil
}

// updateAPT prints "NAME …" for each package.
const updateAPT = `apt-get -qq -c /run/build/apt.conf update >&2
apt-get -qq -s -c /run/build/apt.conf dist-upgrade | sed -n 's/^Inst //p'`
