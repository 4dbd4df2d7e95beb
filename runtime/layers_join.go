package runtime

import "golang.org/x/sys/unix"

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
