package runtime

import (
	"archive/tar"
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Names with a meaning in a layer of an image (OCI image specification,
// "Representing Changes").
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// AUFS kept files of its own at the top of each layer, and images that were
// made on it have them still. What has several names may be one of those in
// aufsLinks, and is there until its layer is unpacked.
const (
	aufs      = ".wh..wh."
	aufsLinks = ".wh..wh.plnk"
)

// ofAUFS tells whether an entry has no meaning but to AUFS.
func ofAUFS(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	return strings.HasPrefix(top, aufs) && top != opaque && top != aufsLinks
}

// endLayer is called when all of a layer is unpacked.
func (u *unpacker) endLayer() error {
	u.forgetParent()
	return removeAllAt(u.root.fd, aufsLinks)
}

// layerEntry does what an entry means because other layers lie below: take
// away what it names, or make room for it. done tells that nothing is left to
// make.
func (u *unpacker) layerEntry(dir int, base, name string, h *tar.Header) (done bool, err error) {
	if base == opaque {
		return true, u.clear(dir, path.Dir(name))
	}
	if gone, ok := strings.CutPrefix(base, whiteout); ok && name != aufsLinks {
		if gone == "" || gone == "." || gone == ".." || strings.HasPrefix(gone, whiteout) {
			return true, errors.New("this whiteout names nothing")
		}
		return true, removeAllAt(dir, gone)
	}
	for at := name; at != "." && at != "/" && !u.layer[at]; at = path.Dir(at) {
		if err := u.used.name(at); err != nil {
			return false, err
		}
		u.layer[at] = true
	}
	var st unix.Stat_t
	err = unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR; err != nil || isDir == (h.Typeflag == tar.TypeDir) {
		return false, err
	}
	return false, removeAllAt(dir, base)
}

// clear removes from a directory what lower layers brought.
func (u *unpacker) clear(dir int, name string) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, base := range names {
		child := path.Join(name, base)
		if !u.layer[child] {
			if err := removeAllAt(dir, base); err != nil {
				return err
			}
			continue
		}
		fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // no directory
		}
		err = u.clear(fd, child)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}
