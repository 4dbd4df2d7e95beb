package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove deletes generations: "NAME" all that it has and the name, "NAME@ID"
// one, "@ID" one that no name has. ID is the beginning of a digest. It is
// refused while an environment stands on one of them.
func (t *Templates) Remove(which string) error {
	var trash []string
	err := t.locked(unix.LOCK_EX, func() (err error) {
		trash, err = t.remove(which)
		return err
	})
	for _, dir := range trash {
		err = errors.Join(err, removeTree(dir))
	}
	return err
}

// Prune deletes every generation that is neither current nor in use, and
// returns them.
func (t *Templates) Prune() (gone []Generation, err error) {
	var trash []string
	err = t.locked(unix.LOCK_EX, func() error {
		users, unknown := t.users()
		if unknown != nil {
			return fmt.Errorf("no template is removed, for what stands on them is not known: %w; mend that, or move it away", unknown)
		}
		list, err := t.list(users)
		for _, g := range list {
			if g.Current || len(g.Users) > 0 {
				continue
			}
			dir, err := t.drop(g)
			if err != nil {
				return err
			}
			if dir != "" {
				trash = append(trash, dir)
			}
			gone = append(gone, g)
		}
		return err
	})
	for _, dir := range trash {
		err = errors.Join(err, removeTree(dir))
	}
	t.sweep()
	return gone, err
}

func (t *Templates) remove(which string) (trash []string, err error) {
	name, id, one := strings.Cut(which, "@")
	users, unknown := t.users()
	chosen, rest, err := t.choose(name, id, one, users)
	if err != nil {
		return nil, err
	}
	var used []string
	last := false // name of a generation
	for _, g := range chosen {
		// What another name has as well is only renamed by this.
		if slices.ContainsFunc(rest, func(o Generation) bool { return o.Digest == g.Digest }) {
			continue
		}
		last = true
		if len(g.Users) > 0 {
			used = append(used, fmt.Sprintf("generation %s by %s", g.ID(), strings.Join(g.Users, ", ")))
		}
	}
	switch {
	case len(used) > 0:
		return nil, fmt.Errorf("template %s is in use: %s; undefine them and remove their storage first", which, strings.Join(used, "; "))
	case last && unknown != nil:
		return nil, fmt.Errorf("template %s is not removed, for what stands on it is not known: %w; mend that, or move it away", which, unknown)
	}
	for _, g := range chosen {
		dir, err := t.drop(g)
		if err != nil {
			return trash, err
		}
		if dir != "" {
			trash = append(trash, dir)
		}
	}
	return trash, t.succeed(name, one, chosen, rest)
}

// choose divides all generations into those that are meant and the rest.
func (t *Templates) choose(name, id string, one bool, users map[string][]string) (chosen, rest []Generation, err error) {
	if name != "" || !one {
		if err := checkTemplateName(name); err != nil {
			return nil, nil, err
		}
	}
	if one && len(id) < 4 {
		return nil, nil, fmt.Errorf("generation %q is too short: give at least 4 digits of what 'template list' shows", id)
	}
	list, damaged := t.list(users)
	for _, g := range list {
		if g.Name == name && strings.HasPrefix(strings.TrimPrefix(g.Digest, "sha256-"), id) {
			chosen = append(chosen, g)
		} else {
			rest = append(rest, g)
		}
	}
	switch {
	case one && len(chosen) == 0:
		return nil, nil, fmt.Errorf("%w: %s has no generation %s", ErrNoTemplate, name, id)
	case one && len(chosen) > 1:
		return nil, nil, fmt.Errorf("more than one generation begins with %s: give more digits", id)
	case len(chosen) > 0:
		return chosen, rest, nil
	}
	// A damaged one can go all the same.
	if target, err := os.Readlink(filepath.Join(t.dir, name)); err == nil {
		digest := filepath.Base(target)
		return []Generation{{Name: name, Digest: digest, Current: true, Users: users[digest]}}, rest, nil
	}
	if isFile(filepath.Join(t.dir, name)) { // never started from
		return nil, rest, nil
	}
	return nil, nil, errors.Join(t.unknown(name), damaged)
}

// drop takes a generation from its name, and from sight when it was the last
// name; the directory that remains to be deleted is returned.
func (t *Templates) drop(g Generation) (trash string, err error) {
	dir := t.digestDir(g.Digest)
	if g.Name != "" {
		if err := os.Remove(filepath.Join(dir, "names", g.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		current := t.currentDigests()
		delete(current, g.Name)
		if len(t.namesOf(g.Digest, current)) > 0 {
			return "", nil
		}
	}
	// In one step it is what a sweep removes, should we be killed.
	trash = t.digestDir(".import-" + newLayerID())
	err = os.Rename(dir, trash)
	if errors.Is(err, fs.ErrNotExist) { // a damaged name's
		return "", nil
	}
	return trash, err
}

// succeed gives a name whose current generation is gone to the newest of those
// that it still has, or removes it.
func (t *Templates) succeed(name string, one bool, gone, rest []Generation) error {
	if name == "" || one && !slices.ContainsFunc(gone, func(g Generation) bool { return g.Current }) {
		return nil
	}
	file := filepath.Join(t.dir, name)
	if isFile(file) && one { // it can be imported again
		return t.forgetVolume(name)
	}
	for _, g := range rest { // newest first
		if g.Name == name {
			return replaceLink(filepath.Join(".digest", g.Digest), file)
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.forgetVolume(name)
}
