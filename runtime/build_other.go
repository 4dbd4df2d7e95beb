package runtime

import (
	"fmt"
	"strings"
)

// planAPK has apk make the root. Without repositories in the recipe they are
// those of a host that is Alpine itself.
func planAPK(r *Recipe, h buildHost) (*buildPlan, error) {
	p := &buildPlan{}
	repositories, keys := "/etc/apk/repositories", "/etc/apk/keys"
	options := []string{"apk", "--root", viewTarget, "--initdb", "--no-progress"}
	if len(r.Repositories) > 0 {
		repositories, keys = "/run/build/repositories", "/run/build/keys"
		var text strings.Builder
		for _, repo := range r.Repositories {
			if repo.Address == "" {
				return nil, fmt.Errorf("repository %s: apk needs an address", repo.Name)
			}
			text.WriteString(repo.Address + "\n")
			if repo.Unsigned {
				options = append(options, "--allow-untrusted")
				continue
			}
			// apk finds a key by the name of its file.
			keys = repo.Key[:strings.LastIndexByte(repo.Key, '/')]
		}
		p.Files = append(p.Files, viewFile{repositories, text.String()})
	} else if h.ID != "alpine" || !h.Has(repositories) {
		return nil, fmt.Errorf("this host has no %s: add a [[repository]] with address and key to the recipe, and %s", repositories, whereToLook(r.Distribution))
	}
	if r.Architecture != "" {
		options = append(options, "--arch", r.Architecture)
	}
	options = append(options, "--repositories-file", repositories, "--keys-dir", keys, "add")
	p.Steps = []buildStep{{Title: "installing packages", Argv: append(options, r.Packages...), Network: true}}
	return p, nil
}

// updateAPK prints "NAME-VERSION < NEWER" for each package.
const updateAPK = `apk -q update >&2
apk version -q -l '<'`

// planPacman has pacman make the root. Without repositories in the recipe they
// are core and extra of the host's list of mirrors.
func planPacman(r *Recipe, h buildHost) (*buildPlan, error) {
	const conf, mirrors = "/run/build/pacman.conf", "/etc/pacman.d/mirrorlist"
	var text strings.Builder
	text.WriteString("[options]\nArchitecture = auto\n")
	for _, repo := range r.Repositories {
		if repo.Address == "" {
			return nil, fmt.Errorf("repository %s: pacman needs an address", repo.Name)
		}
		level := "Required DatabaseOptional"
		if repo.Unsigned {
			level = "Never"
		}
		fmt.Fprintf(&text, "[%s]\nSigLevel = %s\nServer = %s\n", repo.Name, level, repo.Address)
	}
	if len(r.Repositories) == 0 {
		if !h.Has(mirrors) {
			return nil, fmt.Errorf("this host has no %s: add a [[repository]] with address to the recipe, and %s", mirrors, whereToLook(r.Distribution))
		}
		for _, name := range []string{"core", "extra"} {
			fmt.Fprintf(&text, "[%s]\nSigLevel = Required DatabaseOptional\nInclude = %s\n", name, mirrors)
		}
	}
	argv := []string{"pacman", "--root", viewTarget, "--dbpath", viewTarget + "/var/lib/pacman", "--cachedir", viewTarget + "/var/cache/pacman/pkg",
		"--config", conf, "--noconfirm", "--noprogressbar", "-Sy"}
	return &buildPlan{
		Files: []viewFile{{conf, text.String()}},
		Steps: []buildStep{
			// pacman wants its directories to be there.
			{Title: "making directories", Argv: []string{"mkdir", "-p", viewTarget + "/var/lib/pacman", viewTarget + "/var/cache/pacman/pkg", viewTarget + "/var/log"}},
			{Title: "installing packages", Argv: append(argv, r.Packages...), Network: true, API: true},
			{Title: "removing what was downloaded", Argv: []string{"rm", "-rf", viewTarget + "/var/cache/pacman/pkg", viewTarget + "/var/lib/pacman/sync"}},
		},
	}, nil
}

// updatePacman: pacman -Qu exits with 1 when there are none.
const updatePacman = `pacman -Sy >&2
pacman -Qu || true`
