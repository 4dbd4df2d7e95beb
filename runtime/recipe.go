package runtime

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Recipe says what a template is built from. It is a file in TOML, which the
// installed ones explain.
type Recipe struct {
	Distribution string       `toml:"distribution"` // ID of os-release(5), see distros
	Release      string       `toml:"release"`      // what the package manager calls it: suite, $releasever
	Architecture string       `toml:"architecture"` // what the package manager calls it; "" is the host's
	Packages     []string     `toml:"packages"`
	Size         string       `toml:"size"`         // the most it may take, see ParseSize
	Known        []string     `toml:"repositories"` // ids of repositories that the host's own tool knows
	Repositories []Repository `toml:"repository"`
	Hooks        []Hook       `toml:"hook"`

	bytes int64 // of Size
}

// Repository is one that the host does not know. One of Address, Metalink and
// Mirrorlist is needed: the last two are of dnf.
type Repository struct {
	Name       string `toml:"name"`
	Address    string `toml:"address"`
	Metalink   string `toml:"metalink"`
	Mirrorlist string `toml:"mirrorlist"`
	Suite      string `toml:"suite"`      // of apt; "" is the release
	Components string `toml:"components"` // of apt; "" is main
	Key        string `toml:"key"`        // file of the host with the keys that sign it
	Unsigned   bool   `toml:"unsigned"`   // no signature is asked for
}

// Hook is a script that runs in the root when all is installed, by its own
// /bin/sh -e, without a network.
type Hook struct {
	Name   string `toml:"name"`
	Script string `toml:"script"`
}

// Bounds of a recipe.
const (
	maxRecipe      = 1 << 20
	maxRecipeLists = 4096
	defaultSize    = 4 << 30
	maxSize        = 1 << 40
)

var (
	packageWord  = regexp.MustCompile(`^[A-Za-z0-9@^][A-Za-z0-9@^+._:~*/=<>-]{0,255}$`)
	plainWord    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]{0,63}$`)
	repositoryID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._:-]{0,63}$`)
	addressText  = regexp.MustCompile(`^(https?|file)://[A-Za-z0-9/._~:@%+?&=$,{}()-]{1,1000}$`)
	filePath     = regexp.MustCompile(`^/[A-Za-z0-9/._@+-]{1,1000}$`)
	components   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._/ -]{0,255}$`)
)

// ParseRecipe reads and checks a recipe.
func ParseRecipe(text []byte) (*Recipe, error) {
	if len(text) > maxRecipe {
		return nil, fmt.Errorf("the recipe is larger than %d KiB", maxRecipe>>10)
	}
	r := &Recipe{}
	meta, err := toml.Decode(string(text), r)
	if err != nil {
		return nil, fmt.Errorf("the recipe cannot be read: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("the recipe has an unknown setting %q", unknown[0])
	}
	return r, r.check()
}

func (r *Recipe) check() (err error) {
	if distros[r.Distribution] == nil {
		return fmt.Errorf("distribution %q is not known: there are %s", printable(r.Distribution, 64), strings.Join(distroNames(), ", "))
	}
	if !plainWord.MatchString(r.Release) {
		return fmt.Errorf("release %q is no name of a release", printable(r.Release, 64))
	}
	if r.Architecture != "" && !plainWord.MatchString(r.Architecture) {
		return fmt.Errorf("architecture %q is none", printable(r.Architecture, 64))
	}
	if len(r.Packages)+len(r.Known)+len(r.Repositories)+len(r.Hooks) > maxRecipeLists {
		return fmt.Errorf("the recipe names more than %d things", maxRecipeLists)
	}
	for _, p := range r.Packages {
		if !packageWord.MatchString(p) {
			return fmt.Errorf("package %q is no name of a package", printable(p, 64))
		}
	}
	for _, id := range r.Known {
		if !repositoryID.MatchString(id) {
			return fmt.Errorf("repository %q is no name of one", printable(id, 64))
		}
	}
	for n := range r.Repositories {
		if err := r.Repositories[n].check(r.Distribution); err != nil {
			return err
		}
	}
	for n, h := range r.Hooks {
		if h.Script == "" || strings.ContainsRune(h.Script, 0) || len(h.Script) > 128<<10 {
			return fmt.Errorf("hook %d needs a script of at most 128 KiB", n+1)
		}
	}
	r.bytes = defaultSize
	if r.Size != "" {
		r.bytes, err = ParseSize(r.Size)
	}
	if err == nil && (r.bytes < 64<<20 || r.bytes > maxSize) {
		err = fmt.Errorf("size %s is not between 64M and 1T", r.Size)
	}
	return err
}

func (r *Repository) check(distribution string) error {
	if !plainWord.MatchString(r.Name) {
		return fmt.Errorf("repository %q needs a name of letters, digits and . _ + -", printable(r.Name, 64))
	}
	given := 0
	for key, value := range map[string]string{"address": r.Address, "metalink": r.Metalink, "mirrorlist": r.Mirrorlist} {
		if value == "" {
			continue
		}
		if given++; !addressText.MatchString(value) || strings.Contains(value, "/../") {
			return fmt.Errorf("repository %s: %s %q is no address", r.Name, key, printable(value, 256))
		}
	}
	if given != 1 {
		return fmt.Errorf("repository %s needs an address: this recipe leaves it to you, and %s", r.Name, whereToLook(distribution))
	}
	if r.Suite != "" && !components.MatchString(r.Suite) || r.Components != "" && !components.MatchString(r.Components) {
		return fmt.Errorf("repository %s: suite and components are words", r.Name)
	}
	if r.Key != "" && (!filePath.MatchString(r.Key) || path.Clean(r.Key) != r.Key) {
		return fmt.Errorf("repository %s: key %q is no absolute path of a file", r.Name, printable(r.Key, 256))
	}
	if r.Key == "" && !r.Unsigned {
		return errors.New("repository " + r.Name + " needs the key that signs it, or unsigned = true")
	}
	if r.Key != "" && r.Unsigned {
		return errors.New("repository " + r.Name + " has a key and unsigned = true: take one of them out")
	}
	return nil
}

// localDirs are the directories of the host that repositories lie in.
func (r *Recipe) localDirs() (dirs []string) {
	for _, repo := range r.Repositories {
		if dir, ok := strings.CutPrefix(repo.Address, "file://"); ok {
			dirs = append(dirs, path.Clean(dir))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

func (r *Recipe) keys() (files []string) {
	for _, repo := range r.Repositories {
		if repo.Key != "" {
			files = append(files, repo.Key)
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// unsigned are the names of the repositories that nobody signs.
func (r *Recipe) unsigned() (names []string) {
	for _, repo := range r.Repositories {
		if repo.Unsigned {
			names = append(names, repo.Name)
		}
	}
	return names
}
