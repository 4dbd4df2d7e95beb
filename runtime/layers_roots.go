package runtime

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// PrivateRoot is the disk of an environment, defined or not, with its
// snapshots.
type PrivateRoot struct {
	UUID      string
	Template  string    // digest of the template at the bottom; "": of the disk only snapshots are left
	Layers    int       // how many lie between what it writes to and the template
	Snapshots int       // layers that were kept
	Written   time.Time // when something at its top was last made or removed
	Running   bool
}

// Roots lists the disks there are, by UUID. A damaged one is left out and
// reported.
func (l *Layers) Roots() ([]PrivateRoot, error) {
	found := map[string]*PrivateRoot{}
	entries, err := os.ReadDir(l.private)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var errs []error
	for _, e := range entries {
		d, err := readDisk(l.privateDir(e.Name()))
		if err == errNoDisk {
			continue
		}
		root := &PrivateRoot{UUID: e.Name(), Template: d.Template, Running: l.running(e.Name())}
		chain, chainErr := l.chain(d.Layer)
		if err := errors.Join(err, chainErr); err != nil {
			errs = append(errs, fmt.Errorf("root %s: %w", e.Name(), err))
		}
		root.Layers = len(chain)
		if info, err := os.Stat(filepath.Join(l.privateDir(e.Name()), "upper")); err == nil {
			root.Written = info.ModTime()
		}
		found[root.UUID] = root
	}
	layers, err := l.all()
	errs = append(errs, err)
	for _, layer := range layers {
		if layer.Released {
			continue
		}
		if found[layer.Of] == nil {
			found[layer.Of] = &PrivateRoot{UUID: layer.Of}
		}
		found[layer.Of].Snapshots++
	}
	list := make([]PrivateRoot, 0, len(found))
	for _, root := range found {
		list = append(list, *root)
	}
	slices.SortFunc(list, func(a, b PrivateRoot) int { return cmp.Compare(a.UUID, b.UUID) })
	return list, errors.Join(errs...)
}

// Has tells whether an environment has a disk.
func (l *Layers) Has(uuid [16]byte) bool {
	return pinned(l.privateDir(formatUUID(uuid))) != ""
}

// Remove deletes the disk of an environment and all its snapshots: everything
// it ever wrote. What clones stand on stays with them.
func (l *Layers) Remove(uuid [16]byte) error {
	name := formatUUID(uuid)
	owners := []string{name}
	err := l.locked(func() error {
		if l.running(name) {
			return fmt.Errorf("root %s is in use: %w", name, ErrRunning)
		}
		d, err := l.still(name)
		if err != nil && err != errNoDisk {
			return err
		}
		found := err == nil
		below, _ := l.chain(d.Layer)
		for _, layer := range below {
			owners = append(owners, layer.Of)
		}
		layers, err := l.all()
		if err != nil {
			return err
		}
		for _, layer := range layers {
			if layer.Of != name {
				continue
			}
			found, layer.Released = true, true
			if err := l.describe(l.layerDir(layer.ID), layer); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("there is no root %s", name)
		}
		return l.setAside(l.privateDir(name))
	})
	if err != nil {
		return err
	}
	slices.Sort(owners)
	for _, owner := range slices.Compact(owners) {
		err = errors.Join(err, l.collect(owner))
	}
	return err
}

// Clone gives an environment that has no disk a copy of another's: of a layer
// of it, or, with layer "", of what that has now, for which it must be shut
// off. Nothing is copied: what both have in common is a layer that both
// stand on. The clone gets an identity of its own at its first start.
func (l *Layers) Clone(from [16]byte, layer string, to [16]byte) error {
	return l.clone(from, layer, to, false)
}

// ErrTargetRunning is returned by Clone for an environment that runs, or starts,
// without the disk that it is to get.
var ErrTargetRunning = fmt.Errorf("it is to get a disk that it did not start with: %w", ErrRunning)

// clone is Clone, also for an environment that is starting.
func (l *Layers) clone(from [16]byte, layer string, to [16]byte, starting bool) error {
	source, target := formatUUID(from), formatUUID(to)
	if err := l.collect(source); err != nil {
		return err
	}
	return l.locked(func() error {
		switch _, err := readDisk(l.privateDir(target)); {
		case err == nil:
			return fmt.Errorf("%s has a disk already: 'virtvzd root rm' deletes it", target)
		case err != errNoDisk:
			return err
		case l.running(target) && !starting:
			return fmt.Errorf("%s: %w", target, ErrTargetRunning)
		}
		d := disk{Layer: layer, Clone: source}
		if layer != "" {
			kept, err := l.kept(from, layer)
			if err != nil {
				return err
			}
			d.Template = kept.Template
		} else {
			shared, err := l.share(source)
			if err != nil {
				return fmt.Errorf("disk of %s: %w", source, err)
			}
			d.Template, d.Layer = shared.Template, shared.Layer
		}
		if err := os.MkdirAll(l.privateDir(target), 0o700); err != nil {
			return err
		}
		if err := l.makeUpper(l.privateDir(target), d); err != nil {
			return err
		}
		return d.save(l.privateDir(target))
	})
}

// share makes a layer of a disk for others to stand on, unless nothing was
// written since the last. It is a released one: it goes when the clones go.
func (l *Layers) share(uuid string) (disk, error) {
	d, err := l.settledIdle(uuid)
	if err != nil {
		return d, err
	}
	untouched, err := l.untouched(uuid, d)
	if err != nil || untouched {
		return d, err
	}
	if err := l.room(d); err != nil {
		return d, err
	}
	if err := syncTree(l.privateDir(uuid)); err != nil {
		return d, err
	}
	if _, err := l.push(uuid, d, true); err != nil {
		return d, err
	}
	return readDisk(l.privateDir(uuid))
}

// untouched tells whether an upper adds nothing to what lies below.
func (l *Layers) untouched(uuid string, d disk) (bool, error) {
	upper := filepath.Join(l.privateDir(uuid), "upper")
	below, err := l.tree(d)
	if err != nil {
		return false, err
	}
	entries, err := os.ReadDir(upper)
	if err != nil || len(entries) > 0 {
		return false, err
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(upper, &a), unix.Stat(below, &b)); err != nil {
		return false, err
	}
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid, nil
}

// Adopt gives what is kept of an environment that is not defined any more to one
// that has no disk yet, its snapshots as well.
func (l *Layers) Adopt(old, now [16]byte) error {
	from, to := formatUUID(old), formatUUID(now)
	return l.locked(func() error {
		if l.running(from) || l.running(to) {
			return fmt.Errorf("the disk of %s is in use: %w", from, ErrRunning)
		}
		_, err := l.still(from)
		if err != nil && err != errNoDisk {
			return err
		}
		found := err == nil
		if found {
			switch {
			case exists(filepath.Join(l.privateDir(to), "template")):
				return fmt.Errorf("%s has a disk already: 'virtvzd root rm' deletes it", to)
			case l.unmade(to):
				if err := l.setAside(l.privateDir(to)); err != nil {
					return err
				}
			case exists(l.privateDir(to)):
				return fmt.Errorf("%s is no disk and in its way: move it away", l.privateDir(to))
			}
			if err := os.Rename(l.privateDir(from), l.privateDir(to)); err != nil {
				return err
			}
			if err := syncDirectory(l.private); err != nil {
				return err
			}
		}
		layers, err := l.all()
		if err != nil {
			return err
		}
		for _, layer := range layers { // killed before this, it is done by doing it again
			if layer.Of != from {
				continue
			}
			found, layer.Of = true, to
			if err := l.describe(l.layerDir(layer.ID), layer); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("there is no root %s", from)
		}
		return nil
	})
}

// started notes that a clone has started: it is itself now.
func (l *Layers) started(uuid [16]byte) error {
	dir := l.privateDir(formatUUID(uuid))
	return l.locked(func() error {
		d, err := readDisk(dir)
		if err != nil || d.Clone == "" {
			return err
		}
		d.Clone = ""
		return d.save(dir)
	})
}
