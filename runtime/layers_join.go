package runtime

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// joining is a layer that is to become one with what stands on it.
type joining struct {
	l     *Layers
	layer Layer
	above user
	claim *os.File // of the layer
}

// join moves what is seen of the layer up into what stands on it, which then
// stands on what lies below. It returns false where that is not possible.
func (j *joining) join() (bool, error) {
	defer j.claim.Close()
	lower, upper := filepath.Join(j.l.layerDir(j.layer.ID), "rootfs"), filepath.Join(j.l.privateDir(j.above.disk), "upper")
	if j.above.layer != "" {
		upper = filepath.Join(j.l.layerDir(j.above.layer), "rootfs")
	}
	atStep("join look")
	for _, dir := range []string{lower, upper} {
		if plain, err := joinable(dir); err != nil || !plain {
			return false, err
		}
	}
	if err := j.l.locked(j.begin); err != nil {
		return false, err
	}
	atStep("join move")
	err := joinTrees(lower, upper)
	if btrfs, _ := onBtrfs(upper); btrfs && errors.Is(err, unix.EXDEV) {
		err = joinAcross(j.layer.ID, lower, upper)
	}
	switch {
	case errors.Is(err, unix.EXDEV): // another project quota, see xfs_quota(8)
		return false, nil // what was moved is seen all the same
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOSPC): // it counts against the limit, joined
		return false, nil
	case err != nil:
		return false, err
	}
	return true, j.l.locked(j.finish)
}

// begin writes down that the layer is about to be less than it was.
func (j *joining) begin() error {
	layer, err := j.l.layer(j.layer.ID)
	if err != nil || layer.Joining {
		return err
	}
	layer.Joining = true
	return j.l.describe(j.l.layerDir(layer.ID), layer)
}

// finish takes the layer, of which nothing is seen any more, out of the chain and
// out of sight.
func (j *joining) finish() error {
	atStep("join below")
	if err := j.lower(); err != nil {
		return err
	}
	atStep("collect remove")
	return j.l.setAside(j.l.layerDir(j.layer.ID))
}

// lower has what stands on the layer stand on what lies below it.
func (j *joining) lower() error {
	if j.above.layer == "" {
		dir := j.l.privateDir(j.above.disk)
		d, err := readDisk(dir)
		if err != nil {
			return err
		}
		d.Layer = j.layer.Below
		return d.save(dir)
	}
	top, err := j.l.layer(j.above.layer)
	if err != nil {
		return err
	}
	top.Below = j.layer.Below
	return j.l.describe(j.l.layerDir(top.ID), top)
}

// How the kernel's overlay says in a layer what it is about those below
// (Documentation/filesystems/overlayfs.rst).
const (
	overlayOpaque = overlayAttribute + "opaque" // "y": nothing of this directory is seen from below
	overlayImpure = overlayAttribute + "impure" // "y": a directory with files that came from below
)

// joinableNotes are the overlay's notes that stay true when a file moves to the
// layer above. Others, such as a directory that was renamed without its
// content, say where in the layers below something is.
var joinableNotes = map[string]bool{
	overlayOpaque: true, overlayImpure: true, overlayAttribute + "origin": true,
	overlayAttribute + "nlink": true, overlayAttribute + "uuid": true, overlayAttribute + "protattr": true,
}

// joinable tells whether a layer can be joined with another.
func joinable(dir string) (bool, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return joinableTree(fd, 0)
}

func joinableTree(dir, depth int) (bool, error) {
	if depth > maxTreeDepth {
		return false, nil
	}
	plain := true
	err := eachName(dir, func(name string) (err error) {
		if plain {
			plain, err = joinableEntry(dir, name, depth)
		}
		return err
	})
	if err != nil || !plain {
		return false, err
	}
	return joinableEntry(dir, ".", depth)
}

// joinableEntry tells it of an entry of a directory, and of what is below that.
func joinableEntry(dir int, name string, depth int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	notes, err := attributes(procPath(dir, name))
	if err != nil {
		return false, err
	}
	for _, note := range notes {
		if !ownAttribute(note) && !joinableNotes[note] {
			return false, nil
		}
		if note == overlayOpaque && !isOpaque(dir, name) {
			return false, nil // another meaning than ours
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || name == "." {
		return true, nil
	}
	child, err := openDirectory(dir, name)
	if err != nil {
		return false, err
	}
	defer unix.Close(child)
	return joinableTree(child, depth+1)
}

func isOpaque(dir int, name string) bool {
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(procPath(dir, name), overlayOpaque, value)
	return err == nil && string(value[:n]) == "y"
}

// joinTrees moves what is seen of lower through upper to upper, one entry after
// the other, and removes what is hidden. At every moment the two on top of each
// other, and of whatever lies below, show the same: to be killed in
// between and to do it again does no harm.
func joinTrees(lower, upper string) error {
	from, err := unix.Open(lower, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return joinDirectory(from, to)
}

func joinDirectory(from, to int) error {
	var before unix.Stat_t
	if err := unix.Fstat(to, &before); err != nil {
		return err
	}
	empty := true
	err := eachName(from, func(name string) error {
		empty = false
		return joinEntry(from, to, name)
	})
	if err != nil || empty {
		return err
	}
	// It may have got files now whose numbers are those of another layer's.
	if err := unix.Lsetxattr(procPath(to, "."), overlayImpure, []byte("y"), 0); err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, ".", []unix.Timespec{before.Atim, before.Mtim}, 0)
}

func joinEntry(from, to int, name string) error {
	atStep("join entry")
	var lower, upper unix.Stat_t
	if err := unix.Fstatat(from, name, &lower, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	err := unix.Fstatat(to, name, &upper, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return unix.Renameat(from, name, to, name)
	}
	if err != nil {
		return err
	}
	isDir := func(st unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
	if !isDir(upper) || isOpaque(to, name) {
		return removeAllAt(from, name) // hidden
	}
	opaque := !isDir(lower) // also hides what is below it
	if isDir(lower) {
		if err := joinBelow(from, to, name); err != nil {
			return err
		}
		opaque = isOpaque(from, name)
	}
	if opaque {
		if err := unix.Lsetxattr(procPath(to, name), overlayOpaque, []byte("y"), 0); err != nil {
			return err
		}
	}
	return removeAllAt(from, name)
}

func joinBelow(from, to int, name string) error {
	lower, err := openDirectory(from, name)
	if err != nil {
		return err
	}
	defer unix.Close(lower)
	upper, err := openDirectory(to, name)
	if err != nil {
		return err
	}
	defer unix.Close(upper)
	return joinDirectory(lower, upper)
}
