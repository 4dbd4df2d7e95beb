package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxRemoveDepth bounds the descriptors that are open while a tree is removed.
const maxRemoveDepth = 128

// removeTree removes what is at a path with all below it, and never what a
// link points to; that nothing is there is no error. It is for trees of
// environments: os.RemoveAll keeps a descriptor open for each level, and root
// inside nests more of them than a process may have.
func removeTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(parent)
		err = removeAllAt(parent, filepath.Base(path))
	}
	if err = unlessGone(err); err != nil {
		return &os.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// removeAllAt is removeTree for an entry of an open directory.
func removeAllAt(dir int, base string) error {
	if err := unix.Unlinkat(dir, base, 0); err != unix.EISDIR {
		return unlessGone(err)
	}
	top, err := openDirectory(dir, base)
	if err != nil {
		return unlessGone(err)
	}
	defer unix.Close(top)
	tree := &removal{top: top}
	tree.whole = tree
	if err := tree.clear(); err != nil {
		return err
	}
	return unlessGone(unix.Unlinkat(dir, base, unix.AT_REMOVEDIR))
}

func unlessGone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removal removes all below one directory. What lies too deep is moved up to
// it and removed in another round. Of btrfs, only whole subvolumes can leave
// theirs, so each is a removal of its own.
type removal struct {
	top   int
	moved int      // entries that were put below top
	whole *removal // of all, whose subvolumes this is one of
}

// clear goes on until nothing is left that was moved up meanwhile.
func (r *removal) clear() error {
	for again := true; again; {
		moved := r.moved
		if err := r.clearDirectory(r.top, 0); err != nil {
			return err
		}
		again = r.moved != moved
	}
	return nil
}

// clearDirectory removes all that can be; the error is the first one.
func (r *removal) clearDirectory(dir, depth int) error {
	var first error
	err := eachName(dir, func(name string) error {
		if err := unlessGone(r.remove(dir, name, depth)); err != nil && first == nil {
			first = fmt.Errorf("%s: %w", printable(name, 256), err)
		}
		return nil
	})
	return errors.Join(first, err)
}

// eachName goes through an open directory, in the order of the disk and with
// few names at once: root inside makes more of them than the host has memory
// for. do may remove what it is told of, and what is added meanwhile may or may
// not be told.
func eachName(dir int, do func(name string) error) error {
	again, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(again), ".")
	defer f.Close()
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *removal) remove(dir int, name string, depth int) error {
	if err := unix.Unlinkat(dir, name, 0); err != unix.EISDIR {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != unix.ENOTEMPTY {
		return err
	}
	// What is mounted there belongs to somebody else.
	child, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	defer unix.Close(child)
	var here, below unix.Stat_t
	if err := errors.Join(unix.Fstat(dir, &here), unix.Fstat(child, &below)); err != nil {
		return err
	}
	switch subvolume := here.Dev != below.Dev; {
	case subvolume && dir != r.whole.top:
		return r.whole.moveUp(dir, name)
	case subvolume:
		err = (&removal{top: child, whole: r.whole}).clear()
	case depth == maxRemoveDepth:
		return r.moveUp(dir, name)
	default:
		err = r.clearDirectory(child, depth+1)
	}
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// moveUp puts an entry right below the top, under a name that nobody has.
func (r *removal) moveUp(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(dir, name, r.top, fmt.Sprintf(".deep-%d", r.moved), unix.RENAME_NOREPLACE)
		if err != unix.EEXIST {
			return err
		}
	}
}
