package runtime

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Release gives up a layer of an environment: its snapshot was deleted. Its data
// goes when no disk and no other layer needs it. As long as exactly one does,
// the two become one as soon as nothing runs that uses them.
func (l *Layers) Release(uuid [16]byte, id string) error {
	if err := l.GiveUp(uuid, id); err != nil {
		return err
	}
	return l.Collect(uuid)
}

// GiveUp is the part of Release that takes no time; Collect is the other.
func (l *Layers) GiveUp(uuid [16]byte, id string) error {
	return l.locked(func() error {
		layer, err := l.Of(uuid, id)
		if err != nil || layer.Released {
			return err
		}
		layer.Released = true
		return l.describe(l.layerDir(id), layer)
	})
}

// Collect removes the data of an environment's layers that were given up, as far
// as that can be now.
func (l *Layers) Collect(uuid [16]byte) error { return l.collect(formatUUID(uuid)) }

// user is who stands directly on a layer: a disk or another layer.
type user struct {
	disk  string // UUID
	layer string // ID
}

// collect removes the released layers of an environment that nobody stands
// on, and joins those that only one stands on with that one.
func (l *Layers) collect(uuid string) error {
	for more := true; more; {
		err := l.locked(func() (err error) {
			more, err = l.collectOne(uuid)
			return err
		})
		if err != nil {
			return err
		}
	}
	return l.sweep()
}

// collectOne takes one layer out of sight, and tells whether there was one.
func (l *Layers) collectOne(uuid string) (bool, error) {
	layers, damaged := l.all()
	users, busy, unknown := l.users(layers)
	if damaged != nil || unknown != nil {
		return false, nil // what that stands on is not known: nothing goes before it is mended
	}
	for _, layer := range layers {
		if !layer.Released || layer.Of != uuid || busy[layer.ID] {
			continue
		}
		switch standing := users[layer.ID]; len(standing) {
		case 0:
		case 1:
			joined, err := l.join(layer, standing[0])
			if err != nil {
				return false, err
			}
			if !joined {
				continue
			}
		default:
			continue
		}
		atStep("collect remove")
		return true, l.setAside(l.layerDir(layer.ID))
	}
	return false, nil
}

// users tells who stands on each layer, and which layers something runs on.
func (l *Layers) users(layers []Layer) (users map[string][]user, busy map[string]bool, err error) {
	users, busy = map[string][]user{}, map[string]bool{}
	below := map[string]string{}
	for _, layer := range layers {
		below[layer.ID] = layer.Below
		if layer.Below != "" {
			users[layer.Below] = append(users[layer.Below], user{layer: layer.ID})
		}
	}
	entries, err := os.ReadDir(l.private)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		d, err := readDisk(l.privateDir(e.Name()))
		if err == errNoDisk {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, id := range []string{d.Layer, d.Pushing} {
			if id == "" {
				continue
			}
			users[id] = append(users[id], user{disk: e.Name()})
			// A disk that is not settled is not joined with anything either.
			for at, n := id, 0; at != "" && n <= maxChain && (l.running(e.Name()) || d.Pushing != "" || d.Discard); at, n = below[at], n+1 {
				busy[at] = true
			}
		}
	}
	return users, busy, nil
}

// join moves what is seen of a layer up into the one that stands on it, which
// then stands on what lies below. It returns false where that is not possible.
func (l *Layers) join(layer Layer, above user) (bool, error) {
	upper := filepath.Join(l.privateDir(above.disk), "upper")
	if above.layer != "" {
		upper = filepath.Join(l.layerDir(above.layer), "rootfs")
	}
	lower := filepath.Join(l.layerDir(layer.ID), "rootfs")
	for _, dir := range []string{lower, upper} {
		if plain, err := joinable(dir); err != nil || !plain {
			return false, err
		}
	}
	atStep("join move")
	err := joinTrees(lower, upper)
	if btrfs, _ := onBtrfs(upper); btrfs && errors.Is(err, unix.EXDEV) {
		err = joinAcross(layer.ID, lower, upper)
	}
	switch {
	case errors.Is(err, unix.EXDEV): // another project quota, see xfs_quota(8)
		return false, nil // what was moved is seen all the same
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOSPC): // it counts against the limit, joined
		return false, nil
	case err != nil:
		return false, err
	}
	atStep("join below")
	if above.layer == "" {
		d, err := readDisk(l.privateDir(above.disk))
		if err != nil {
			return false, err
		}
		d.Layer = layer.Below
		return true, d.save(l.privateDir(above.disk))
	}
	top, err := l.layer(above.layer)
	if err != nil {
		return false, err
	}
	top.Below = layer.Below
	return true, l.describe(l.layerDir(top.ID), top)
}

// sweep deletes what was set aside, and what was being copied by somebody who
// was killed.
func (l *Layers) sweep() error {
	err := l.locked(func() error {
		unfinished, _ := filepath.Glob(filepath.Join(l.dir, ".new-*"))
		for _, dir := range unfinished {
			if err := l.abandonUnlocked(dir); err != nil {
				return err
			}
		}
		l.sweepUnmade()
		return errors.Join(l.sweepEmpty(), l.sweepMemory())
	})
	gone, _ := filepath.Glob(filepath.Join(l.dir, ".gone-*"))
	inside, _ := filepath.Glob(filepath.Join(l.private, "*", ".gone-*"))
	for _, dir := range append(gone, inside...) {
		removeTree(dir) // what cannot be removed is out of sight, and tried again next time
	}
	return err
}

// sweepUnmade sets aside what never became a disk. What cannot be, as where
// something is mounted, stays.
func (l *Layers) sweepUnmade() {
	entries, _ := os.ReadDir(l.private)
	for _, e := range entries {
		if !l.running(e.Name()) && l.unmade(e.Name()) {
			l.setAside(l.privateDir(e.Name()))
		}
	}
}

// sweepEmpty sets aside layers that an upper was to become and did not.
func (l *Layers) sweepEmpty() error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		dir := l.layerDir(e.Name())
		if !validLayerID(e.Name()) || exists(filepath.Join(dir, "rootfs")) {
			continue
		}
		if _, busy, err := l.users(nil); err != nil || busy[e.Name()] {
			continue
		}
		if err := l.setAside(dir); err != nil {
			return err
		}
	}
	return nil
}

// abandonUnlocked sets aside a directory whose maker, who had it locked, is gone.
func (l *Layers) abandonUnlocked(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil
	}
	return l.setAside(dir)
}
