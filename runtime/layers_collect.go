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
	stays := map[string]bool{} // layers that cannot be joined
	for more := true; more; {
		var next *joining
		err := l.locked(func() (err error) {
			more, next, err = l.collectOne(uuid, stays)
			return err
		})
		if err == nil && next != nil {
			var joined bool
			joined, err = next.join()
			stays[next.layer.ID] = !joined
		}
		if err != nil {
			return err
		}
	}
	return l.sweep()
}

// collectOne takes one layer out of sight, or claims it to be joined, and tells
// whether there was one.
func (l *Layers) collectOne(uuid string, stays map[string]bool) (bool, *joining, error) {
	layers, damaged := l.all()
	users, busy, unknown := l.users(layers)
	if damaged != nil || unknown != nil {
		return false, nil, nil // what that stands on is not known: nothing goes before it is mended
	}
	for _, layer := range layers {
		standing := users[layer.ID]
		if !layer.Released || layer.Of != uuid || busy[layer.ID] || stays[layer.ID] || len(standing) > 1 {
			continue
		}
		top := layer.ID
		if len(standing) == 1 && standing[0].layer != "" {
			top = standing[0].layer // it may be on its way up itself
		}
		if err := l.unclaimed(top); err != nil {
			return false, nil, err
		}
		if len(standing) == 0 {
			atStep("collect remove")
			return true, nil, l.setAside(l.layerDir(layer.ID))
		}
		claim, err := l.claim(layer.ID)
		return true, &joining{l, layer, standing[0], claim}, err
	}
	return false, nil, nil
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
	note := func(dir, name string, busyAlways bool) error {
		d, err := readDisk(dir)
		if err == errNoDisk {
			return nil
		}
		for _, id := range []string{d.Layer, d.Pushing} {
			if id == "" {
				continue
			}
			users[id] = append(users[id], user{disk: name})
			// A disk that is not settled is not joined with anything either.
			for at, n := id, 0; at != "" && n <= maxChain && (busyAlways || l.running(name) || d.Pushing != "" || d.Discard); at, n = below[at], n+1 {
				busy[at] = true
			}
		}
		return err
	}
	for _, e := range entries {
		if err := note(l.privateDir(e.Name()), e.Name(), false); err != nil {
			return nil, nil, err
		}
	}
	for dir, name := range replacedDisks(filepath.Dir(l.private)) {
		if err := note(dir, name, true); err != nil {
			return nil, nil, err
		}
	}
	return users, busy, nil
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
