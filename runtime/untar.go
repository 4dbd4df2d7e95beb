package runtime

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of what one entry may be.
const (
	maxTarName = 4096
	maxXattr   = 64 << 10
	// Deeper trees are nobody's root, and cannot be removed with the few
	// descriptors that a shell's command may have.
	maxTarDepth = 255
)

// unpacker writes the entries of a tar below a root that it cannot leave: every
// parent is resolved inside the root, and a last component is never followed.
type unpacker struct {
	root *tree
	used budget
	size int64 // bytes of data
	have int64 // entries
	dirs map[string]dirTime
	// deep is how many directories above the root there are.
	deep int
	// layer is what this layer of an image has made; nil for a single archive.
	layer map[string]bool

	parentName string // the last parent, which the next entry usually shares
	parentFD   int
}

// dirTime is set at the end: unpacking into a directory changes its time.
type dirTime struct {
	at    time.Time
	entry int64 // the later counts: by links a directory may have several names
}

func newUnpacker(dir string, limits Limits) (*unpacker, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := openTreeRoot(dir)
	if err != nil {
		return nil, err
	}
	u := &unpacker{root: root, used: budget{limits: limits}, dirs: map[string]dirTime{}, parentFD: -1}
	u.deep, err = depth(root.fd)
	return u, err
}

// depth counts the directories above an open one.
func depth(fd int) (int, error) {
	full, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return strings.Count(full, "/"), err
}

func (u *unpacker) close() {
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.root.Close()
}

// unpackStream unpacks an archive that may be compressed. digest gets all of
// it, uncompressed.
func (u *unpacker) unpackStream(r io.Reader, digest io.Writer) (err error) {
	defer func() { err = tooMuchMemory(err) }()
	plain, err := decompress(bufio.NewReaderSize(r, 256<<10))
	if err != nil {
		return err
	}
	all := io.TeeReader(u.used.bound(plain), digest)
	if err := u.unpack(tar.NewReader(all)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, all) // the padding belongs to the digest
	return err
}

func (u *unpacker) unpack(archive *tar.Reader) error {
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if u.used.files == 0 && !errors.Is(err, ErrTooLarge) {
				return fmt.Errorf("it is no tar archive, or one in an unknown compression (gzip, xz and zstd are known): %w", err)
			}
			return err
		}
		if err := u.entry(h, fileBody{archive, h.Size}); err != nil {
			return fmt.Errorf("%q: %w", printable(h.Name, 256), err)
		}
	}
}

// finish completes the root and tells how large it is.
func (u *unpacker) finish(ctx context.Context, made *Generation) error {
	if u.have == 0 {
		return errors.New("it has no files: the root of a system is needed")
	}
	made.Size, made.Files = u.size, u.have
	return u.setDirTimes(ctx)
}

// body is the content of a regular file.
type body interface {
	// size is how much it takes at most.
	size() int64
	// writeTo writes it to a new file and returns how much of it is data.
	writeTo(f *os.File) (int64, error)
}

// fileBody is one as archives have it.
type fileBody struct {
	io.Reader
	n int64
}

func (b fileBody) size() int64                       { return b.n }
func (b fileBody) writeTo(f *os.File) (int64, error) { return io.Copy(f, b.Reader) }

// cleanName makes an entry's name relative to the root. ".." is refused and
// not resolved: no honest root has it. It can be kept, and nothing of the
// archive with it.
func cleanName(name string) (string, error) {
	if len(name) > maxTarName || strings.ContainsRune(name, 0) {
		return "", errors.New("bad name")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", errors.New("a name must not contain \"..\"")
		}
	}
	return strings.Clone(strings.TrimPrefix(path.Clean("/"+name), "/")), nil
}

func (u *unpacker) entry(h *tar.Header, content body) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	u.have++
	if err := u.used.file(takes(h, content)); err != nil {
		return err
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > 0xfffffffe || int64(h.Gid) > 0xfffffffe {
		return fmt.Errorf("owner %d:%d is not possible", h.Uid, h.Gid)
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root must be a directory")
		}
		return u.attributes(u.root.fd, ".", h)
	}
	if u.layer != nil && ofAUFS(name) {
		return nil
	}
	dir, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if u.layer != nil {
		if done, err := u.layerEntry(dir, base, name, h); done || err != nil {
			return err
		}
	}
	if err := u.create(dir, base, name, h, content); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink || skipped(h) {
		return nil
	}
	if dir, err = u.parent(path.Dir(name)); err != nil { // to replace a file it is opened again
		return err
	}
	return u.attributes(dir, base, h)
}

// takes is what an entry takes on the disk at most. A directory has a block, a
// symbolic link too unless it fits into the inode.
func takes(h *tar.Header, content body) int64 {
	n := int64(0)
	switch {
	case h.Typeflag == tar.TypeDir:
		n = block
	case h.Typeflag == tar.TypeSymlink:
		n = int64(len(h.Linkname))
	case isRegular(h):
		if n = content.size(); n < 0 {
			return n
		}
	}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, xattrRecord) {
			n += int64(len(key) + len(value))
		}
	}
	return n
}

func isRegular(h *tar.Header) bool {
	return h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse || h.Typeflag == '\x00'
}

// skipped entries are not made: device nodes do nothing in a user namespace, and
// /dev is a tmpfs. A character device 0:0 would even be a whiteout to
// overlayfs.
func skipped(h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
		return false
	}
	return !isRegular(h)
}

// parent opens the directory of an entry, inside the root whatever links an
// earlier entry made, and keeps it for the next.
func (u *unpacker) parent(name string) (int, error) {
	if u.parentFD >= 0 && u.parentName == name {
		return u.parentFD, nil
	}
	if strings.Count(name, "/") > maxTarDepth {
		return -1, errTooDeep
	}
	fd, err := u.root.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if err == unix.ENOENT {
		fd, err = u.makeParents(name)
	}
	if err != nil {
		return -1, err
	}
	// With links a short name can be a deep one.
	if n, err := depth(fd); err != nil || n-u.deep > maxTarDepth {
		unix.Close(fd)
		return -1, errTooDeep
	}
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.parentName, u.parentFD = name, fd
	return fd, nil
}

// makeParents makes directories that have no entry of their own. They are
// counted as if none were there.
func (u *unpacker) makeParents(name string) (int, error) {
	for range strings.Count(name, "/") + 1 {
		if err := u.used.file(block); err != nil {
			return -1, err
		}
	}
	return u.root.directory(name, 0o755)
}

var errTooDeep = fmt.Errorf("directories are nested deeper than %d", maxTarDepth)

func (u *unpacker) create(dir int, base, name string, h *tar.Header, content body) error {
	if h.Typeflag == tar.TypeDir {
		return u.mkdir(dir, base, name, h)
	}
	if skipped(h) {
		return nil
	}
	// A later entry of the same name replaces the earlier, as with tar. A kept
	// parent may have been what is removed.
	if err := unix.Unlinkat(dir, base, 0); err == nil {
		u.forgetParent()
		if dir, err = u.parent(path.Dir(name)); err != nil {
			return err
		}
	} else if err == unix.EISDIR || err == unix.EPERM {
		return errors.New("it would replace a directory")
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeLink:
		return u.link(dir, base, h.Linkname)
	case tar.TypeFifo:
		return unix.Mknodat(dir, base, unix.S_IFIFO|0o600, 0)
	}
	return u.writeFile(dir, base, content)
}

func (u *unpacker) forgetParent() {
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.parentFD, u.parentName = -1, ""
}

func (u *unpacker) mkdir(dir int, base, name string, h *tar.Header) error {
	err := unix.Mkdirat(dir, base, 0o755)
	if err == unix.EEXIST {
		// A directory may come twice. What is a link to one stays: usrmerge.
		fd, err := u.root.open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return errors.New("it is there already and is no directory")
		}
		unix.Close(fd)
	} else if err != nil {
		return err
	}
	if _, again := u.dirs[name]; !again {
		if err := u.used.name(name); err != nil {
			return err
		}
	}
	u.dirs[name] = dirTime{h.ModTime, u.have}
	return nil
}

// link resolves its target like any name of the archive.
func (u *unpacker) link(dir int, base, target string) error {
	name, err := cleanName(target)
	if err != nil {
		return err
	}
	from, err := u.root.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", target, err)
	}
	defer unix.Close(from)
	if err := unix.Linkat(from, path.Base(name), dir, base, 0); err != nil {
		return fmt.Errorf("hard link to %s: %w", target, err)
	}
	return nil
}

func (u *unpacker) writeFile(dir int, base string, content body) error {
	fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	n, err := content.writeTo(f)
	u.size += n
	return errors.Join(err, f.Close())
}

// attributes sets what the archive says, in the order in which one does not undo
// another: chown clears set-id bits and capabilities.
func (u *unpacker) attributes(dir int, base string, h *tar.Header) error {
	if err := unix.Fchownat(dir, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		// Just made, or checked not to be a link.
		if err := unix.Fchmodat(dir, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return err
		}
	}
	if err := setXattrs(dir, base, h); err != nil {
		return err
	}
	return setTime(dir, base, h.ModTime)
}

func setTime(dir int, base string, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return fmt.Errorf("time %v: %w", at, err)
	}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (u *unpacker) setDirTimes(ctx context.Context) error {
	order := func(a, b string) int { return cmp.Compare(u.dirs[a].entry, u.dirs[b].entry) }
	for _, name := range slices.SortedFunc(maps.Keys(u.dirs), order) {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir, err := u.root.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			err = setTime(dir, path.Base(name), u.dirs[name].at)
			unix.Close(dir)
		}
		// A later entry may have replaced it.
		if err != nil && err != unix.ENOENT && err != unix.ENOTDIR {
			return err
		}
	}
	return nil
}

// xattrRecord begins the names of extended attributes in an archive.
const xattrRecord = "SCHILY.xattr."

// keptXattr are file capabilities, ACLs and user attributes. Everything else
// is dropped, above all trusted.overlay.*, with which an archive could direct
// overlayfs elsewhere.
func keptXattr(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

func setXattrs(dir int, base string, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || len(value) > maxXattr || !keptXattr(name) {
			continue
		}
		file := fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
		if err := unix.Lsetxattr(file, name, []byte(value), 0); err != nil && err != unix.EOPNOTSUPP {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
