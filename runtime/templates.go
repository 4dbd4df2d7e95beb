package runtime

import (
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
)

// ErrNoTemplate is returned for a template that was not imported.
var ErrNoTemplate = errors.New("there is no such template")

// Templates are the roots that environments are layers on. A template is an
// immutable directory named by the digest of the tar it came from; names are links
// to it. Importing a name again makes a new generation: environments that
// were started from the old one stay on it.
//
//	template/NAME -> .digest/DIGEST
//	template/.digest/DIGEST/{rootfs/,template.json}
//	private/UUID/template   the digest that layer belongs to
type Templates struct {
	dir, private string
}

// Template is one name.
type Template struct {
	Name     string `json:"-"`
	Digest   string // "sha256-" and 64 hexadecimal digits, of the uncompressed tar
	Path     string `json:"-"` // the root
	Source   string // file it was imported from
	Size     int64  // bytes of all files
	Files    int64
	Imported time.Time
}

// OpenTemplates needs no daemon: importing is a command's work.
func OpenTemplates(dataDir string) *Templates {
	return &Templates{dir: filepath.Join(dataDir, "template"), private: filepath.Join(dataDir, "private")}
}

func (t *Templates) digestDir(digest string) string {
	return filepath.Join(t.dir, ".digest", digest)
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

// Import unpacks a root tar (plain, or compressed with gzip, xz or zstd) and
// gives it the name. Until it is complete nothing of it is visible; an
// interrupted import leaves a directory that the next one removes. progress,
// if not nil, is told how much of the file was read.
func (t *Templates) Import(ctx context.Context, name, tarFile string, progress func(done, total int64)) (Template, error) {
	none := Template{}
	if err := checkTemplateName(name); err != nil {
		return none, err
	}
	if err := os.MkdirAll(filepath.Join(t.dir, ".digest"), 0o700); err != nil {
		return none, err
	}
	if err := os.Chmod(t.dir, 0o755); err != nil {
		return none, err
	}
	work, err := os.MkdirTemp(filepath.Join(t.dir, ".digest"), ".import-")
	if err != nil {
		return none, err
	}
	defer os.RemoveAll(work)
	made, err := unpackTemplate(ctx, tarFile, work, progress)
	if err != nil {
		return none, fmt.Errorf("import %s: %w", tarFile, err)
	}
	final := t.digestDir(made.Digest)
	if err := os.Rename(work, final); err != nil && !exists(filepath.Join(final, "rootfs")) {
		return none, err
	}
	if err := replaceLink(filepath.Join(".digest", made.Digest), filepath.Join(t.dir, name)); err != nil {
		return none, err
	}
	return t.Lookup(name)
}

func replaceLink(target, name string) error {
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	os.Remove(temp)
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, name)
}

// Lookup finds a template. The error of an unknown one lists what there is.
func (t *Templates) Lookup(name string) (Template, error) {
	if err := checkTemplateName(name); err != nil {
		return Template{}, err
	}
	target, err := os.Readlink(filepath.Join(t.dir, name))
	if err != nil {
		return Template{}, t.unknown(name)
	}
	found, err := t.byDigest(filepath.Base(target))
	found.Name = name
	return found, err
}

func (t *Templates) unknown(name string) error {
	have := "none is imported yet"
	if names := t.Names(); len(names) > 0 {
		have = "there are " + strings.Join(names, ", ")
	}
	return fmt.Errorf("%w: %s (%s)", ErrNoTemplate, name, have)
}

func (t *Templates) byDigest(digest string) (Template, error) {
	dir := t.digestDir(digest)
	body, err := os.ReadFile(filepath.Join(dir, "template.json"))
	if err != nil {
		return Template{}, fmt.Errorf("template %s is damaged: %w", digest, err)
	}
	found := Template{}
	if err := json.Unmarshal(body, &found); err != nil {
		return Template{}, fmt.Errorf("template %s is damaged: %w", digest, err)
	}
	found.Path = filepath.Join(dir, "rootfs")
	return found, nil
}

// Names lists the names of templates, sorted.
func (t *Templates) Names() []string {
	entries, _ := os.ReadDir(t.dir)
	var names []string
	for _, e := range entries {
		if e.Type() == fs.ModeSymlink && checkTemplateName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// List returns all templates by name. A damaged one is left out and reported.
func (t *Templates) List() ([]Template, error) {
	var list []Template
	var errs []error
	for _, name := range t.Names() {
		found, err := t.Lookup(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, found)
	}
	return list, errors.Join(errs...)
}

// Remove deletes a name, and the template when no other name means it. It is
// refused while an environment's layer belongs to it.
func (t *Templates) Remove(name string) error {
	found, err := t.Lookup(name)
	if errors.Is(err, ErrNoTemplate) {
		return err
	}
	digest := found.Digest
	if err != nil { // damaged: it can go all the same
		target, _ := os.Readlink(filepath.Join(t.dir, name))
		digest = filepath.Base(target)
	}
	others := slices.DeleteFunc(t.namesOf(digest), func(n string) bool { return n == name })
	if users := t.users(digest); len(users) > 0 && len(others) == 0 {
		return fmt.Errorf("template %s is in use by %s: undefine them with their storage first", name, strings.Join(users, ", "))
	}
	if err := os.Remove(filepath.Join(t.dir, name)); err != nil {
		return err
	}
	if len(others) > 0 {
		return nil
	}
	return t.discard(digest)
}

// discard makes a template invisible at once and then deletes it.
func (t *Templates) discard(digest string) error {
	trash, err := os.MkdirTemp(filepath.Join(t.dir, ".digest"), ".import-")
	if err != nil {
		return err
	}
	if err := os.Rename(t.digestDir(digest), filepath.Join(trash, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(trash)
}

func (t *Templates) namesOf(digest string) []string {
	return slices.DeleteFunc(t.Names(), func(name string) bool {
		target, _ := os.Readlink(filepath.Join(t.dir, name))
		return filepath.Base(target) != digest
	})
}

// users lists the UUIDs of the layers that belong to a template.
func (t *Templates) users(digest string) []string {
	var users []string
	entries, _ := os.ReadDir(t.private)
	for _, e := range entries {
		if pinned(filepath.Join(t.private, e.Name())) == digest {
			users = append(users, e.Name())
		}
	}
	return users
}

func pinned(layers string) string {
	body, _ := os.ReadFile(filepath.Join(layers, "template"))
	return strings.TrimSpace(string(body))
}

// pin makes the layer directory of an environment, on the template of that
// name when it is new, and returns the template it belongs to.
func (t *Templates) pin(name, layers string) (Template, error) {
	if digest := pinned(layers); digest != "" {
		return t.byDigest(digest)
	}
	found, err := t.Lookup(name)
	if err != nil {
		return found, err
	}
	info, err := os.Stat(found.Path)
	if err != nil {
		return found, err
	}
	for dir, mode := range map[string]fs.FileMode{layers: 0o700, layers + "/upper": info.Mode().Perm(), layers + "/work": 0o700} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return found, err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return found, err
		}
	}
	// Written last: without it the layer has never been used.
	return found, replaceFile(filepath.Join(layers, "template"), []byte(found.Digest+"\n"), 0o600)
}
