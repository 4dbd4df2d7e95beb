package runtime

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Generation is one state of a template, and the manifest of it.
type Generation struct {
	Name     string    `json:"-"` // "" when no name has it (any more)
	Current  bool      `json:"-"` // new environments start from it
	Users    []string  `json:"-"` // environments that stand on it
	Digest   string    // "sha256-" and 64 hexadecimal digits, of what is in it
	Path     string    `json:"-"` // the root
	Source   string    // file, directory, image or recipe that it was made from
	Volume   string    `json:"-"`          // which state of a volume, see volume.go
	System   string    `json:",omitempty"` // PRETTY_NAME of its os-release(5)
	Packages int       `json:",omitempty"` // how many are installed, 0 if that is not known
	Size     int64     // bytes of all files
	Files    int64     // entries of all kinds
	Made     time.Time `json:"Imported"`
}

// ID is the digest, short enough to be typed.
func (g Generation) ID() string {
	id := strings.TrimPrefix(g.Digest, "sha256-")
	return id[:min(len(id), 12)]
}

// PackageList is "NAME VERSION" for each installed package, sorted. It is nil
// when that is not known, as of a root whose package manager is unknown.
func (g Generation) PackageList() ([]string, error) {
	body, err := os.ReadFile(filepath.Join(filepath.Dir(g.Path), "packages"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.FieldsFunc(string(body), func(r rune) bool { return r == '\n' }), err
}

// Recipe is the text that it was built from; fs.ErrNotExist for one that was
// imported.
func (g Generation) Recipe() ([]byte, error) {
	return os.ReadFile(filepath.Join(filepath.Dir(g.Path), "recipe.toml"))
}

func (t *Templates) byDigest(digest string) (Generation, error) {
	dir := t.digestDir(digest)
	found := Generation{Digest: digest}
	body, err := os.ReadFile(filepath.Join(dir, "template.json"))
	if err == nil {
		err = json.Unmarshal(body, &found)
	}
	if err != nil {
		return found, fmt.Errorf("template %s is damaged: %w", digest, err)
	}
	found.Path = filepath.Join(dir, "rootfs")
	return found, nil
}

// List returns every generation: by name, of a name the current one first and
// then the newest. What no name has comes last. A damaged one is left out and
// reported, and so is what is damaged and may stand on any.
func (t *Templates) List() ([]Generation, error) {
	users, unknown := t.users()
	list, damaged := t.list(users)
	return list, errors.Join(damaged, unknown)
}

func (t *Templates) list(users map[string][]string) ([]Generation, error) {
	entries, err := os.ReadDir(filepath.Join(t.dir, ".digest"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	current := t.currentDigests()
	var list []Generation
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		g, err := t.byDigest(e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g.Users = users[g.Digest]
		names := t.namesOf(g.Digest, current)
		for _, name := range names {
			g.Name, g.Current = name, current[name] == g.Digest
			list = append(list, g)
		}
		if len(names) == 0 {
			list = append(list, g)
		}
	}
	slices.SortFunc(list, func(a, b Generation) int {
		return cmp.Or(order(a.Name == "", b.Name == ""), cmp.Compare(a.Name, b.Name), order(b.Current, a.Current), b.Made.Compare(a.Made))
	})
	return list, errors.Join(append(errs, err)...)
}

// order puts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// currentDigests tells what each name means now.
func (t *Templates) currentDigests() map[string]string {
	current := map[string]string{}
	for _, name := range t.Names() {
		target, err := os.Readlink(filepath.Join(t.dir, name))
		if err != nil {
			target, _ = t.lookupVolume(name)
		}
		current[name] = filepath.Base(target)
	}
	return current
}

// namesOf are the names that a digest is or was a generation of. Templates
// made before there were generations have no names/ but are linked to.
func (t *Templates) namesOf(digest string, current map[string]string) (names []string) {
	entries, _ := os.ReadDir(filepath.Join(t.digestDir(digest), "names"))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for name, now := range current {
		if now == digest && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// makeGeneration lets fill make a root, at rootfs/ of the directory it is
// given, and makes that the current generation of name. Until it is complete
// nothing of it is visible, and when it fails nothing of it is left. What a
// process that was killed leaves is removed here by the next.
func (t *Templates) makeGeneration(ctx context.Context, name string, fill func(dir string) (Generation, error)) (Generation, error) {
	none := Generation{}
	if err := checkTemplateName(name); err != nil {
		return none, err
	}
	if err := t.makeDirs(); err != nil {
		return none, err
	}
	t.sweep()
	work, done, err := t.workDir()
	if err != nil {
		return none, err
	}
	defer done()
	made, err := fill(work)
	if err != nil {
		return none, err
	}
	if err := ctx.Err(); err != nil { // it may have been too late for fill to notice
		return none, err
	}
	made.Name, made.Made = name, time.Now().UTC()
	if err := describe(work, &made); err != nil {
		return none, err
	}
	if err := t.locked(unix.LOCK_EX, func() error { return t.commit(work, made) }); err != nil {
		return none, err
	}
	return t.Lookup(name)
}

// workDir is a directory for what is being made. As long as it is locked it is
// no rubbish.
func (t *Templates) workDir() (dir string, done func(), err error) {
	return temporaryDir(filepath.Join(t.dir, ".digest"), ".import-")
}

func temporaryDir(parent, prefix string) (dir string, done func(), err error) {
	for {
		dir, err = os.MkdirTemp(parent, prefix)
		if err != nil {
			return "", nil, err
		}
		f, err := lockDir(dir)
		if err == nil {
			return dir, func() { removeTree(dir); f.Close() }, nil
		}
		// Whoever sweeps has taken it for rubbish: another, then.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			os.Remove(dir)
			return "", nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// lockDir locks a directory that is at its path still when it is locked.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var locked, there fs.FileInfo
		if locked, err = f.Stat(); err == nil {
			there, err = os.Lstat(dir)
		}
		if err == nil && !os.SameFile(locked, there) {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// sweep removes what was being made when its maker was killed.
func (t *Templates) sweep() {
	old, _ := filepath.Glob(filepath.Join(t.dir, ".digest", ".import-*"))
	for _, dir := range old {
		removeUnlocked(dir)
	}
}

// removeUnlocked removes a temporaryDir whose maker is gone.
func removeUnlocked(dir string) {
	f, err := lockDir(dir)
	if err != nil {
		return
	}
	defer f.Close()
	removeTree(dir)
}

// describe writes the manifest of a root beside it, and all of it to the disk:
// a template that survives a crash must not be one of empty files.
func describe(dir string, g *Generation) error {
	root, err := openTreeRoot(filepath.Join(dir, "rootfs"))
	if err != nil {
		return err
	}
	defer root.Close()
	g.System = systemName(root)
	list := filepath.Join(dir, "packages")
	if packages := installedPackages(root); len(packages) > 0 && !exists(list) {
		if err := os.WriteFile(list, []byte(strings.Join(packages, "\n")+"\n"), 0o600); err != nil {
			return err
		}
	}
	if body, err := os.ReadFile(list); err == nil {
		g.Packages = bytes.Count(body, []byte("\n"))
	}
	body, err := json.MarshalIndent(g, "", "\t")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "template.json"), body, 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "names"), 0o700); err != nil {
		return err
	}
	return syncTree(dir)
}

// commit makes visible what was made in work. The same content made again is
// the generation that there is.
func (t *Templates) commit(work string, g Generation) error {
	if g.Volume == "" && isFile(filepath.Join(t.dir, g.Name)) {
		return fmt.Errorf("%s is a volume of this name: delete it first", filepath.Join(t.dir, g.Name))
	}
	final := t.digestDir(g.Digest)
	if err := os.Rename(work, final); err != nil && !exists(filepath.Join(final, "rootfs")) {
		return err
	}
	if err := os.MkdirAll(filepath.Join(final, "names"), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(final, "names", g.Name), nil, 0o600); err != nil {
		return err
	}
	if g.Volume != "" {
		return t.setVolume(g)
	}
	// One of the first version has not been told its name.
	if old, err := os.Readlink(filepath.Join(t.dir, g.Name)); err == nil {
		names := filepath.Join(t.digestDir(filepath.Base(old)), "names")
		os.Mkdir(names, 0o700)
		os.WriteFile(filepath.Join(names, g.Name), nil, 0o600)
	}
	return replaceLink(filepath.Join(".digest", g.Digest), filepath.Join(t.dir, g.Name))
}

func isFile(name string) bool {
	info, err := os.Lstat(name)
	return err == nil && info.Mode().IsRegular()
}

func replaceLink(target, name string) error {
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	os.Remove(temp)
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, name)
}

// Find finds a generation by "NAME", which is the current one, "NAME@ID" or
// "@ID". If not all of its users are known it is returned with an error.
func (t *Templates) Find(which string) (Generation, error) {
	users, unknown := t.users()
	name, id, one := strings.Cut(which, "@")
	if !one {
		found, err := t.Lookup(name)
		if err != nil {
			return found, err
		}
		found.Users = users[found.Digest]
		return found, unknown
	}
	chosen, _, err := t.choose(name, id, one, users)
	if err != nil {
		return Generation{}, err
	}
	return chosen[0], unknown
}
