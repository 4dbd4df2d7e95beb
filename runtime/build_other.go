package runtime

import (
	"fmt"
	"path"
	"strings"
)

// planAPK has apk make the root.
func planAPK(r *Recipe, h buildHost) (*buildPlan, error) {
	p, apk, err := startAPK(r, h)
	if err != nil {
		return nil, err
	}
	// Its lists of packages are of no use to the root, and would be taken for
	// new ones when it is asked for updates.
	apk = append(apk, "--initdb", "--no-progress", "--no-cache", "add")
	p.Steps = append(p.Steps, buildStep{Title: "installing packages", Argv: append(apk, r.Packages...), Network: true, API: true})
	return p, nil
}

// planAPKUpdate asks the host's apk: nobody has told the root's where its
// repositories are.
func planAPKUpdate(r *Recipe, h buildHost) (*buildPlan, error) {
	p, apk, err := startAPK(r, h)
	if err != nil {
		return nil, err
	}
	p.Steps = append(p.Steps, buildStep{Argv: append([]string{"/bin/sh", "-e", "-c", updateAPKFrom, "sh"}, apk...), Network: true, Capture: true})
	return p, nil
}

// startAPK prepares apk to work on the root. Without repositories in the recipe
// they are those of a host that is Alpine itself.
func startAPK(r *Recipe, h buildHost) (p *buildPlan, apk []string, err error) {
	p = &buildPlan{}
	repositories, keys := "/etc/apk/repositories", "/etc/apk/keys"
	apk = []string{"apk", "--root", viewTarget}
	if len(r.Repositories) > 0 {
		repositories, keys = "/run/build/repositories", "/run/build/keys"
		var text strings.Builder
		for _, repo := range r.Repositories {
			if repo.Address == "" {
				return nil, nil, fmt.Errorf("repository %s: apk needs an address", repo.Name)
			}
			text.WriteString(repo.Address + "\n")
		}
		// apk cannot be told to trust one of them: it checks all or none.
		if some := r.unsigned(); len(some) == len(r.Repositories) {
			apk = append(apk, "--allow-untrusted")
		} else if len(some) > 0 {
			return nil, nil, fmt.Errorf("repository %s is unsigned, and apk would check none of the others either: give its key, or say unsigned = true for all", some[0])
		}
		if p.Steps, err = takeKeys(r, keys); err != nil {
			return nil, nil, err
		}
		p.Files = append(p.Files, viewFile{repositories, text.String()})
	} else if h.ID != "alpine" || !h.Has(repositories) {
		return nil, nil, fmt.Errorf("this host has no %s: add a [[repository]] with address and key to the recipe, and %s", repositories, whereToLook(r.Distribution))
	}
	if r.Architecture != "" {
		apk = append(apk, "--arch", r.Architecture)
	}
	return p, append(apk, "--repositories-file", repositories, "--keys-dir", keys), nil
}

// takeKeys copies the recipe's keys into a directory of the view: apk finds a
// key by the name of its file, which the signature names.
func takeKeys(r *Recipe, dir string) (steps []buildStep, err error) {
	from := map[string]string{}
	for _, key := range r.keys() {
		name := path.Base(key)
		if from[name] != "" {
			return nil, fmt.Errorf("the keys %s and %s have the same name, by which apk would find only one of them", from[name], key)
		}
		from[name] = key
	}
	return withKeys(r, `mkdir -p "$0"; cp "$@" "$0"`, dir), nil
}

// withKeys runs a script with a directory as $0 and the recipe's keys as its
// arguments, if there are any.
func withKeys(r *Recipe, script, dir string) []buildStep {
	if len(r.keys()) == 0 {
		return nil
	}
	return []buildStep{{Title: "taking the keys", Argv: append([]string{"/bin/sh", "-e", "-c", script, dir}, r.keys()...)}}
}

// updateAPK prints "NAME-VERSION < NEWER" for each package. apk 2 is quiet about
// why it fails when told to be quiet, and has lists that are younger than four
// hours for new if not forced.
const updateAPK = `apk --force-refresh update >&2
apk version -l '<' | sed '/^Installed:/d'`

// updateAPKFrom does so with the apk in the arguments. It is no failure to apk
// that it cannot use a repository in a directory: it only warns.
const updateAPKFrom = `said=$("$@" --force-refresh update 2>&1) && failed= || failed=yes
printf '%s\n' "$said" >&2
if [ "$failed" ] || printf '%s\n' "$said" | grep -q '^WARNING: .*file:/'; then exit 1; fi
"$@" version -l '<' | sed '/^Installed:/d'`

// updateZypper prints "NAME VERSION -> NEWER" for each package, of the table
// that zypper shows. A root of openSUSE without dnf was imported: what is built
// goes by its recipe.
const updateZypper = `zypper --non-interactive refresh >&2
list=$(zypper -q --non-interactive list-updates)
echo "$list" | sed -n 's/^v[^|]*|[^|]*| *\([^ |]*\) *| *\([^ |]*\) *| *\([^ |]*\).*/\1 \2 -> \3/p'`

// pacmanKeyring makes a keyring at $0 that trusts the keys in the arguments.
// TrustAll of pacman.conf(5) is no way to say so: pacman downloads a key that it
// lacks, and would trust that as well.
const pacmanKeyring = `mkdir -m 700 "$0"; : >"$0/pubring.gpg"
gpg --homedir "$0" --batch --import "$@"
gpg --homedir "$0" --batch --with-colons --list-keys | sed -n '/^pub:/,/^fpr:/s/^fpr:*\([0-9A-F]*\):$/\1:6:/p' |
	gpg --homedir "$0" --batch --import-ownertrust`

// planPacman has pacman make the root. Without repositories in the recipe they
// are core and extra of the host's list of mirrors.
func planPacman(r *Recipe, h buildHost) (*buildPlan, error) {
	const conf, mirrors, keyring = "/run/build/pacman.conf", "/etc/pacman.d/mirrorlist", "/run/build/gnupg"
	var text strings.Builder
	text.WriteString("[options]\nArchitecture = auto\n")
	if len(r.keys()) > 0 {
		text.WriteString("GPGDir = " + keyring + "\n")
	}
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
		Steps: append(withKeys(r, pacmanKeyring, keyring),
			// pacman wants its directories to be there.
			buildStep{Title: "making directories", Argv: []string{"mkdir", "-p", viewTarget + "/var/lib/pacman", viewTarget + "/var/cache/pacman/pkg", viewTarget + "/var/log"}},
			buildStep{Title: "installing packages", Argv: append(argv, r.Packages...), Network: true, API: true},
			buildStep{Title: "removing what was downloaded", Argv: []string{"rm", "-rf", viewTarget + "/var/cache/pacman/pkg", viewTarget + "/var/lib/pacman/sync"}},
		),
	}, nil
}

// updatePacman: pacman -Qu exits with 1 when there are none, and tells as well
// what is held back.
const updatePacman = `pacman -Sy >&2
pacman -Qu | grep -v '\[ignored\]$' || true`
