package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoTemplate is returned for a template that was not made.
var ErrNoTemplate = errors.New("there is no such template")

// Templates are the roots that environments are layers on. A name has
// generations: immutable directories, each named by a digest of what is in it.
// Importing or building a name again makes a new generation and the current
// one; an environment stays on the generation that it was first started from,
// because an overlay whose lower layer changes is corrupt.
//
//	template/NAME -> .digest/DIGEST        the current generation
//	template/NAME                          a file: a volume, see volume.go
//	template/.digest/DIGEST/rootfs/        the root
//	template/.digest/DIGEST/template.json  where it came from, see Generation
//	template/.digest/DIGEST/packages       what is installed in it
//	template/.digest/DIGEST/recipe.toml    what it was built from, if it was
//	template/.digest/DIGEST/names/NAME     whose generation it is
//	template/.digest/.import-X/            one that is being made
//	private/UUID/template                  the digest that layer belongs to
//
// .digest is closed to everybody but root: below it lie set-user-id programs
// of strangers.
type Templates struct {
	dir, private string
	// NameOf tells what to call the environment of a UUID in errors and
	// lists; nil calls it by the UUID.
	NameOf func(uuid string) string
}

// OpenTemplates needs no daemon: making templates is a command's work.
func OpenTemplates(dataDir string) *Templates {
	return &Templates{dir: filepath.Join(dataDir, "template"), private: filepath.Join(dataDir, "private")}
}

// Dir is where names and volumes are: the target of a libvirt pool of type
// dir.
func (t *Templates) Dir() string { return t.dir }

func (t *Templates) digestDir(digest string) string {
	return filepath.Join(t.dir, ".digest", digest)
}

// makeDirs makes what is missing, and closes what may have been opened.
func (t *Templates) makeDirs() error {
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{{t.dir, 0o755}, {filepath.Join(t.dir, ".digest"), 0o700}} {
		if err := os.MkdirAll(d.name, d.mode); err != nil {
			return err
		}
		if err := os.Chmod(d.name, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// locked keeps names and uses as they are while do runs: unix.LOCK_SH for those
// who count on a generation, unix.LOCK_EX for those who change something. It is
// never held for long.
func (t *Templates) locked(how int, do func() error) error {
	f, err := os.OpenFile(filepath.Join(t.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return do() // there are no templates at all
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("lock %s: %w", f.Name(), err)
			}
			return do()
		}
	}
}

// checkTemplateName keeps names to one path component that no tool trips over.
func checkTemplateName(name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && name[0] != '-'
	for _, r := range name {
		ok = ok && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-+", r))
	}
	if !ok {
		return fmt.Errorf("template name %q must be 1 to 128 letters, digits and . _ - +, and start with a letter or digit", name)
	}
	return nil
}

// Names lists the names of templates, sorted, those of volumes included.
func (t *Templates) Names() []string {
	entries, _ := os.ReadDir(t.dir)
	var names []string
	for _, e := range entries {
		if (e.Type() == fs.ModeSymlink || e.Type().IsRegular()) && checkTemplateName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// Lookup finds the current generation of a name. The error of an unknown one
// lists what there is.
func (t *Templates) Lookup(name string) (Generation, error) {
	if err := checkTemplateName(name); err != nil {
		return Generation{}, err
	}
	target, err := os.Readlink(filepath.Join(t.dir, name))
	if errors.Is(err, unix.EINVAL) { // a file
		if target, err = t.lookupVolume(name); err != nil {
			return Generation{}, err
		}
	}
	if err != nil {
		return Generation{}, t.unknown(name)
	}
	found, err := t.byDigest(filepath.Base(target))
	found.Name, found.Current = name, true
	return found, err
}

func (t *Templates) unknown(name string) error {
	have := "none was made yet"
	if names := t.Names(); len(names) > 0 {
		have = "there are " + strings.Join(names, ", ")
	}
	return fmt.Errorf("%w: %s (%s)", ErrNoTemplate, name, have)
}

// pin makes the layer directory of an environment, on the current generation
// of that name when it is new, and returns the generation it belongs to. A
// volume that no environment was started from becomes a generation first.
func (t *Templates) pin(ctx context.Context, name, layers string) (Generation, error) {
	switch d, err := readDisk(layers); {
	case err == nil:
		return t.byDigest(d.Template)
	case !errors.Is(err, errNoDisk): // what is there is nobody's to replace
		return Generation{}, err
	}
	if err := t.importVolume(ctx, name); err != nil {
		return Generation{}, err
	}
	var found Generation
	err := t.locked(unix.LOCK_SH, func() (err error) {
		if found, err = t.Lookup(name); err != nil {
			return err
		}
		return t.layers().locked(func() error {
			d, err := readDisk(layers) // a clone's, if it was made meanwhile
			switch {
			case err == nil:
				found, err = t.byDigest(d.Template)
				return err
			case err != errNoDisk:
				return err
			}
			return makeLayer(found, layers)
		})
	})
	return found, err
}

func makeLayer(on Generation, layers string) error {
	info, err := os.Stat(on.Path)
	if err != nil {
		return err
	}
	for dir, mode := range map[string]fs.FileMode{layers: 0o700, layers + "/upper": info.Mode().Perm(), layers + "/work": 0o700} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	// Written last: without it the layer has never been used.
	return replaceFile(filepath.Join(layers, "template"), []byte(on.Digest+"\n"), 0o600)
}

func pinned(layers string) string {
	d, _ := readDisk(layers)
	return d.Template
}

// layers are those that stand on the templates. What runs is not known here.
func (t *Templates) layers() *Layers {
	return &Layers{dir: filepath.Join(filepath.Dir(t.private), "layers"), private: t.private, templates: t}
}

// users lists, by digest, what to call the environments whose layers belong to
// a generation. The error tells of what is damaged, and may stand on any.
func (t *Templates) users() (map[string][]string, error) {
	users := map[string][]string{}
	entries, err := os.ReadDir(t.private)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	note := func(dir, name, how string) {
		d, damaged := readDisk(dir)
		if d.Template == "" {
			if damaged != errNoDisk {
				err = errors.Join(err, damaged)
			}
			return
		}
		if t.NameOf != nil {
			name = t.NameOf(name)
		}
		users[d.Template] = append(users[d.Template], name+how)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			note(filepath.Join(t.private, e.Name()), e.Name(), "")
		}
	}
	for dir, name := range replacedDisks(filepath.Dir(t.private)) {
		note(dir, name, ", which a migration may bring back")
	}
	layers, damaged := t.layers().all()
	err = errors.Join(err, damaged)
	for _, layer := range layers { // snapshots that no disk stands on
		name := layer.Of
		if t.NameOf != nil {
			name = t.NameOf(name)
		}
		if !slices.Contains(users[layer.Template], name) {
			users[layer.Template] = append(users[layer.Template], name)
		}
	}
	for _, list := range users {
		slices.Sort(list)
	}
	return users, err
}
