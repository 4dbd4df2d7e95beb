package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// To join two layers takes as long as their trees are large, and nobody else has
// to wait for it. Who does it has claimed the lower one, by a lock on its
// directory that ends with him at the latest, and has the lock of all layers only
// for what is written down before and after. The claim is made where nothing runs
// that stands on the layer. Whoever is about to start, or to change what such a
// disk consists of, finds the layer in its chain and waits: see unclaimed.

// claimedError is of a layer that somebody joins with another.
type claimedError struct{ dir string }

func (e *claimedError) Error() string { return e.dir + " is being joined with what stands on it" }

// claim claims a layer. The lock of all layers is held.
func (l *Layers) claim(id string) (*os.File, error) {
	dir := l.layerDir(id)
	f, err := lockDir(dir)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &claimedError{dir}
	}
	return f, err
}

// unclaimed returns an error, which is for locked, if a layer or one below it is
// claimed. The lock of all layers is held: none will be as long as it is. That
// layers are damaged or missing is for others to tell.
func (l *Layers) unclaimed(id string) error {
	for n := 0; id != "" && n <= maxChain; n++ {
		f, err := l.claim(id)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		f.Close()
		layer, err := l.layer(id)
		if err != nil {
			return nil
		}
		id = layer.Below
	}
	return nil
}

// awaitJoins does something again as often as it finds a layer claimed, when that
// is over.
func awaitJoins(do func() error) error {
	for {
		err := do()
		var claimed *claimedError
		if !errors.As(err, &claimed) {
			return err
		}
		if err := claimed.await(); err != nil && !errors.Is(err, fs.ErrNotExist) { // joined
			return fmt.Errorf("lock %s: %w", claimed.dir, err)
		}
	}
}

func (e *claimedError) await() error {
	f, err := os.Open(e.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != unix.EINTR {
			return err
		}
	}
}
