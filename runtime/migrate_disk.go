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

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// The disk of an environment that comes is made beside the one that may be here
// already, as it is after a migration to another host and back. Both change places
// when all has come; what was here is deleted when it is decided that the
// environment runs here, or is put back.

// stage is the directory that the mirror writes to.
func (s *session) stage(r *Runtime) string {
	if s.Root == "template" {
		return filepath.Join(r.sessionDir(s.ID), "disk", "upper")
	}
	return s.Stage
}

// stageDisk makes the directory for the disk.
func (r *Runtime) stageDisk(s *session, o *MigrationOffer, fs xml.Filesystem) error {
	if s.Root != "template" {
		return os.Mkdir(s.Stage, 0o755)
	}
	dir := filepath.Join(r.sessionDir(s.ID), "disk")
	if btrfs, _ := onBtrfs(r.sessionDir(s.ID)); btrfs && fs.HardLimit != 0 {
		if err := makeSubvolume(dir); err != nil {
			return err
		}
	} else if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	d := disk{Template: o.Root.Template.Digest, Incoming: s.ID}
	if len(o.Root.LayerIDs) > 0 {
		d.Layer = o.Root.LayerIDs[0]
	}
	if err := d.save(dir); err != nil {
		return err
	}
	return r.limitSpaceOf(context.Background(), dir, fs) // there is nothing in it yet
}

// placeDisk has the disk that came take the place of the one that is here.
func (r *Runtime) placeDisk(s *session) error {
	s.Moved = true
	if err := r.saveSession(s); err != nil {
		return err
	}
	if err := atStep("place disk"); err != nil {
		return err
	}
	if s.Root != "template" {
		if s.Stage == "" { // it is the same here and there
			return nil
		}
		if err := os.Remove(s.Target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(s.Stage, s.Target); err != nil {
			return err
		}
		return syncDirectory(filepath.Dir(s.Target))
	}
	l := r.Layers()
	return awaitJoins(func() error {
		return l.templates.locked(unix.LOCK_SH, func() error { // so far nobody knew that its template is in use
			return l.lockedOnce(func() error { return r.placeLayers(l, s) })
		})
	})
}

// placeLayers is placeDisk for a disk of layers. Both locks are held.
func (r *Runtime) placeLayers(l *Layers, s *session) error {
	dir := r.sessionDir(s.ID)
	d, err := readDisk(filepath.Join(dir, "disk"))
	if err == nil {
		err = l.undisturbed(s, d, &Layers{dir: filepath.Join(dir, "layers")})
	}
	if err != nil {
		return err
	}
	for _, id := range s.Layers {
		if err := os.Rename(filepath.Join(dir, "layers", id), l.layerDir(id)); err != nil {
			return err
		}
	}
	err = l.stands(d, s.Layers)
	if err != nil {
		return fmt.Errorf("what the disk of %s stands on has gone while it came: migrate it again: %w", s.Name, err)
	}
	if err := l.replace(s.UUID, filepath.Join(dir, "disk"), filepath.Join(dir, "replaced")); err != nil {
		return err
	}
	return syncDirectory(l.private)
}

// undisturbed is unclaimed for a disk that came with layers of its own, and for
// the one in its place.
func (l *Layers) undisturbed(s *session, d disk, came *Layers) error {
	here := d.Layer
	for n := 0; slices.Contains(s.Layers, here) && n < maxChain; n++ {
		layer, err := came.layer(here)
		if err != nil {
			return err
		}
		here = layer.Below
	}
	var claimed *claimedError
	if _, err := l.still(s.UUID); errors.As(err, &claimed) { // a damaged one is replaced
		return err
	}
	return l.unclaimed(here)
}

// stands tells whether all is there that a disk stands on, as it was there.
func (l *Layers) stands(d disk, came []string) error {
	chain, missing := l.chain(d.Layer)
	for _, layer := range chain {
		if layer.Joining && !slices.Contains(came, layer.ID) {
			missing = errors.Join(missing, differsHere(layer.ID))
		}
	}
	_, err := l.templates.byDigest(d.Template)
	return errors.Join(missing, err)
}

// differsHere is the error of a layer that both hosts have, part of which is in
// what stands on it already on one.
func differsHere(id string) error {
	return fmt.Errorf("layer %s was taken apart on one of the two hosts: remove the root that stands on it here, if none of the environments does any more ('virtvzd root list')", id)
}

// replace puts a disk in the place of an environment's, which goes to old.
func (l *Layers) replace(uuid, disk, old string) error {
	have := l.privateDir(uuid)
	if err := os.Rename(have, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := atStep("replace disk"); err != nil {
		return err
	}
	return os.Rename(disk, have)
}

// replacedDisks are those that were replaced and may be put back: directories, and
// whose they are.
func replacedDisks(dataDir string) map[string]string {
	found := map[string]string{}
	dirs, _ := filepath.Glob(filepath.Join(dataDir, "migration", "*", "replaced"))
	for _, dir := range dirs {
		s := session{UUID: "an environment"}
		if body, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "session.json")); err == nil {
			json.Unmarshal(body, &s)
		}
		found[dir] = s.UUID
	}
	return found
}

// keepDisk is for a disk whose environment runs here.
func (r *Runtime) keepDisk(s *session) error {
	if s.Root == "template" {
		dir := r.privateDir(mustParseUUID(s.UUID))
		err := r.Layers().locked(func() error {
			d, err := readDisk(dir)
			if err == nil && d.Incoming == s.ID {
				d.Incoming = ""
				err = d.save(dir)
			}
			return err
		})
		if err != nil && err != errNoDisk { // it may have gone since
			return err
		}
	}
	return r.emptySession(s)
}

// undoDisk puts back what was here. It may be done again when it was cut off.
func (r *Runtime) undoDisk(s *session) error {
	var err error
	switch {
	case s.Root == "template":
		err = r.undoPrivate(s)
	case s.Stage != "" && s.Moved && !exists(s.Stage):
		err = removeTree(s.Target)
	case s.Stage != "":
		err = removeTree(s.Stage)
	}
	if err != nil {
		return err
	}
	return r.emptySession(s)
}

func (r *Runtime) undoPrivate(s *session) error {
	l, old := r.Layers(), filepath.Join(r.sessionDir(s.ID), "replaced")
	err := l.locked(func() error {
		have := l.privateDir(s.UUID)
		if d, err := readDisk(have); err == nil && d.Incoming == s.ID {
			if err := l.unclaimed(d.Layer); err != nil {
				return err
			}
			if err := l.setAside(have); err != nil {
				return err
			}
		}
		if exists(old) && !exists(have) {
			if err := os.Rename(old, have); err != nil {
				return err
			}
		}
		// Layers that came are nobody's now, unless they are the same as others here.
		for _, id := range s.Layers {
			if layer, err := l.layer(id); err == nil && !layer.Released {
				layer.Released = true
				if err := l.describe(l.layerDir(id), layer); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for _, owner := range s.Owners {
		err = errors.Join(err, l.collect(owner))
	}
	return errors.Join(err, l.sweep())
}

// emptySession deletes all but what is to be remembered.
func (r *Runtime) emptySession(s *session) error {
	dir := r.sessionDir(s.ID)
	var errs []error
	for _, name := range []string{"disk", "layers", "replaced"} {
		errs = append(errs, removeTree(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

func mustParseUUID(text string) [16]byte {
	u, _ := parseUUID(text)
	return u
}
