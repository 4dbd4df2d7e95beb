package runtime

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Layers are what the disks of environments are made of that have a template
// for their root. A disk is a chain: the directory the environment writes to,
// any number of layers that never change again, and the template at the
// bottom. Each layer names the one below, so a layer is a disk's state: that
// is what a snapshot keeps, and what a clone starts from.
//
//	private/UUID/upper              what the environment writes to
//	private/UUID/template           what lies below that, see disk
//	layers/ID/rootfs/               a layer
//	layers/ID/layer.json            whose it is and what lies below, see Layer
//	layers/.new-X/                  one that is being copied
//	layers/.gone-X/                 one that is being deleted
//	memory/ID.save                  the processes there were, see Memory
//
// Everything here may be killed at any point. What is seen of a disk is then
// the old or the new, and the next that looks at it finishes the work.
type Layers struct {
	dir, private, memory, state string
	templates                   *Templates
}

// OpenLayers needs no daemon. stateDir is where the daemon keeps its records:
// what is recorded there runs, and its disk is left alone.
func OpenLayers(dataDir, stateDir string) *Layers {
	return &Layers{
		dir: filepath.Join(dataDir, "layers"), private: filepath.Join(dataDir, "private"), memory: filepath.Join(dataDir, "memory"), state: stateDir,
		templates: OpenTemplates(dataDir),
	}
}

// Layers are the layers below the data directory.
func (r *Runtime) Layers() *Layers { return OpenLayers(r.config.DataDir, r.config.StateDir) }

// Layer is one layer, and its layer.json.
type Layer struct {
	ID       string    `json:"-"`
	Of       string    // UUID of the environment that made it
	Below    string    `json:",omitempty"` // ID of the next layer; "": the template
	Template string    // digest of the template at the bottom
	Made     time.Time // when
	Making   bool      `json:",omitempty"` // no snapshot yet: if that is cut off, nobody will ever release it, see Unfinished
	Released bool      `json:",omitempty"` // no snapshot any more: may go when nothing stands on it
	Joining  bool      `json:",omitempty"` // some of it may be in what stands on it already: for nobody else is it what it was
}

// maxChain bounds the layers of a disk. The kernel's overlay takes 500; each is
// a mount at every start, and mount(2)'s options are one page.
const maxChain = 64

// ErrTooManyLayers is wrapped by the error of a snapshot there is no room for.
var ErrTooManyLayers = errors.New("the disk has too many layers")

// validLayerID tells whether a text can be an ID: they come from clients.
func validLayerID(id string) bool {
	return len(id) == 32 && strings.Trim(id, "0123456789abcdef") == ""
}

func newLayerID() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

func (l *Layers) layerDir(id string) string { return filepath.Join(l.dir, id) }

func (l *Layers) privateDir(uuid string) string { return filepath.Join(l.private, uuid) }

// locked keeps all chains as they are while do runs. It is held for renames and
// small files, never while data is copied or trees are looked through. What do
// returns of unclaimed it returns before it has changed anything: it is done again
// when that is over.
func (l *Layers) locked(do func() error) error {
	return awaitJoins(func() error { return l.lockedOnce(do) })
}

func (l *Layers) lockedOnce(do func() error) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(l.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			if err != nil {
				return fmt.Errorf("lock %s: %w", f.Name(), err)
			}
			return do()
		}
	}
}

func (l *Layers) layer(id string) (Layer, error) {
	found := Layer{ID: id}
	if !validLayerID(id) {
		return found, fmt.Errorf("%q is no layer: 32 hexadecimal digits are needed", id)
	}
	body, err := os.ReadFile(filepath.Join(l.layerDir(id), "layer.json"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !exists(filepath.Join(l.layerDir(id), "rootfs")) {
		return found, fmt.Errorf("there is no layer %s", id)
	}
	if err == nil {
		err = json.Unmarshal(body, &found)
	}
	if err != nil {
		return found, fmt.Errorf("layer %s is damaged: %w", id, err)
	}
	return found, nil
}

func (l *Layers) describe(dir string, layer Layer) error {
	body, err := json.MarshalIndent(layer, "", "\t")
	if err != nil {
		return err
	}
	return replaceFileSynced(filepath.Join(dir, "layer.json"), body)
}

// chain lists a layer and all below it, top down, without the template.
func (l *Layers) chain(id string) (chain []Layer, err error) {
	for id != "" {
		next, err := l.layer(id)
		if err != nil {
			return nil, err
		}
		if chain = append(chain, next); len(chain) > maxChain+1 {
			return nil, fmt.Errorf("layer %s stands on more than %d others: it is damaged", chain[0].ID, maxChain)
		}
		id = next.Below
	}
	return chain, nil
}

// all lists every layer. A damaged one is left out, and reported.
func (l *Layers) all() (list []Layer, err error) {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, e := range entries {
		if !validLayerID(e.Name()) || !exists(filepath.Join(l.layerDir(e.Name()), "rootfs")) {
			continue
		}
		found, damaged := l.layer(e.Name())
		if err = errors.Join(err, damaged); damaged == nil {
			list = append(list, found)
		}
	}
	return list, err
}

// replaceFileSynced is replaceFile for what must survive a crash of the host.
func replaceFileSynced(name string, body []byte) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(name))
}

// syncDirectory makes what was renamed in a directory last.
func syncDirectory(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
