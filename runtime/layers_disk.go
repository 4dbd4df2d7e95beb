package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// disk is what the file private/UUID/template says: the digest of the template
// on its first line, and below it, if there is more to say, "WORD VALUE".
type disk struct {
	Template string // digest
	Layer    string // top of the chain below upper; "": the template itself
	Pushing  string // upper is on its way to become this layer
	Discard  bool   // upper is on its way to be replaced by an empty one
	Clone    string // UUID of whom it was cloned from, until it has started once
	Incoming string // ID of the migration it came by, until that is decided
}

// errNoDisk is returned for an environment that has no disk: it never started.
var errNoDisk = errors.New("it has no disk yet: it never started")

func readDisk(dir string) (d disk, err error) {
	body, err := os.ReadFile(filepath.Join(dir, "template"))
	if errors.Is(err, fs.ErrNotExist) {
		return d, errNoDisk
	}
	if err != nil {
		return d, err
	}
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	d.Template = lines[0]
	for _, line := range lines[1:] {
		switch word, value, _ := strings.Cut(line, " "); word {
		case "layer":
			d.Layer = value
		case "pushing":
			d.Pushing = value
		case "discard":
			d.Discard = true
		case "clone":
			d.Clone = value
		case "incoming":
			d.Incoming = value
		}
	}
	if d.Template == "" || d.Layer != "" && !validLayerID(d.Layer) || d.Pushing != "" && !validLayerID(d.Pushing) {
		return d, fmt.Errorf("%s is damaged", filepath.Join(dir, "template"))
	}
	return d, nil
}

func (d disk) save(dir string) error {
	text := d.Template + "\n"
	for word, value := range map[string]string{"layer": d.Layer, "pushing": d.Pushing, "clone": d.Clone, "incoming": d.Incoming} {
		if value != "" {
			text += word + " " + value + "\n"
		}
	}
	if d.Discard {
		text += "discard\n"
	}
	return replaceFileSynced(filepath.Join(dir, "template"), []byte(text))
}

// still reads an environment's disk when nothing of it is being joined. The lock
// is held.
func (l *Layers) still(uuid string) (disk, error) {
	d, err := readDisk(l.privateDir(uuid))
	if err == nil {
		err = l.unclaimed(d.Layer)
	}
	return d, err
}

// settled is still, and finishes what was being done with the disk when somebody
// was killed.
func (l *Layers) settled(uuid string) (disk, error) {
	dir := l.privateDir(uuid)
	d, err := l.still(uuid)
	if err != nil || d.Pushing == "" && !d.Discard {
		return d, err
	}
	if d.Pushing != "" {
		if exists(filepath.Join(l.layerDir(d.Pushing), "rootfs")) {
			d.Layer, d.Discard = d.Pushing, true // upper may be still there, if the layer is a snapshot
		} else if err := removeTree(l.layerDir(d.Pushing)); err != nil {
			return d, err
		}
		d.Pushing = ""
	}
	if d.Discard {
		if err := l.setAside(filepath.Join(dir, "upper")); err != nil {
			return d, err
		}
		d.Discard = false
	}
	if err := l.makeUpper(dir, d); err != nil {
		return d, err
	}
	return d, d.save(dir)
}

// setAside takes a directory out of sight, if it is there. The next sweep
// deletes it.
func (l *Layers) setAside(dir string) error {
	if !exists(dir) {
		return nil
	}
	gone := ".gone-" + newLayerID()
	err := os.Rename(dir, filepath.Join(l.dir, gone))
	if errors.Is(err, unix.EXDEV) { // it is in a subvolume
		err = os.Rename(dir, filepath.Join(filepath.Dir(dir), gone))
	}
	if err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(dir))
}

// unmade tells whether all there is of an environment's disk was left by somebody
// who was killed before it was one, and nobody has written to it. The lock is
// held, as it is by those who make disks.
func (l *Layers) unmade(uuid string) bool {
	dir := l.privateDir(uuid)
	entries, err := os.ReadDir(dir)
	if _, valid := parseUUID(uuid); !valid || err != nil {
		return false
	}
	for _, e := range entries {
		switch e.Name() {
		case "upper", "upper.new", "work":
			if within, err := os.ReadDir(filepath.Join(dir, e.Name())); err != nil || len(within) > 0 {
				return false
			}
		case "template.new":
		default:
			return false
		}
	}
	return true
}

// makeUpper makes the directories an environment writes to if they are not
// there. The root directory itself is as it was in what lies below.
func (l *Layers) makeUpper(dir string, d disk) error {
	if err := os.MkdirAll(filepath.Join(dir, "work"), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(dir, "upper")
	if exists(upper) {
		return nil
	}
	below, err := l.tree(d)
	if err != nil {
		return err
	}
	// Under another name until it is what it must be.
	fresh := filepath.Join(dir, "upper.new")
	if err := removeTree(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if err := copyDirectoryAttributes(below, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, upper); err != nil {
		return err
	}
	return syncDirectory(dir)
}

// tree is the directory right below a disk's upper.
func (l *Layers) tree(d disk) (string, error) {
	if d.Layer != "" {
		return filepath.Join(l.layerDir(d.Layer), "rootfs"), nil
	}
	g, err := l.templates.byDigest(d.Template)
	return g.Path, err
}

func copyDirectoryAttributes(from, to string) error {
	source, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	defer unix.Close(source)
	parent, err := unix.Open(filepath.Dir(to), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	return copyAttributes(procPath(source, "."), parent, filepath.Base(to), &st, ownAttribute)
}

// running tells whether an environment uses its disk now, or is about to.
func (l *Layers) running(uuid string) bool { return exists(filepath.Join(l.state, uuid)) }

// below is a disk's chain for a start.
func (l *Layers) below(uuid [16]byte) (d disk, chain []string, err error) {
	err = l.locked(func() error {
		if d, err = l.settled(formatUUID(uuid)); err != nil {
			return err
		}
		layers, err := l.chain(d.Layer)
		for _, layer := range layers {
			chain = append(chain, filepath.Join(l.layerDir(layer.ID), "rootfs"))
		}
		return err
	})
	return d, chain, err
}
