package runtime

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// importDir copies a directory into dir/rootfs: what lies in directories of other
// file systems mounted in it is left out, and what an archive could not bring is
// not taken from it either.
func importDir(ctx context.Context, source, dir string, o ImportOptions) (Generation, error) {
	fd, err := unix.Open(source, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Generation{}, err
	}
	made, err := copyTree(ctx, fd, dir, o)
	made.Source = absolute(source)
	return made, err
}

// copyTree copies the directory fd, which it closes, into dir/rootfs.
func copyTree(ctx context.Context, fd int, dir string, o ImportOptions) (Generation, error) {
	var made Generation
	u, err := newUnpacker(filepath.Join(dir, "rootfs"), o.Limits)
	if err != nil {
		unix.Close(fd)
		return made, err
	}
	defer u.close()
	w := &walker{ctx: ctx, to: u, digest: sha256.New(), links: map[inode]string{}, progress: o.progress}
	if err := w.walk(fd, ""); err != nil {
		return made, err
	}
	if err := u.finish(ctx, &made); err != nil {
		return made, err
	}
	made.Digest = fmt.Sprintf("sha256-%x", w.digest.Sum(nil))
	return made, nil
}

// walker copies a tree in the order of names, entry by entry as if they came
// from an archive. It never follows a link: the tree may be changed meanwhile
// by whom it belongs to.
type walker struct {
	ctx      context.Context
	to       *unpacker
	digest   hash.Hash // of everything but times
	device   uint64
	links    map[inode]string // those with several names: the first of them
	ahead    int64            // entries whose names are read
	progress func(done, total int64)
}

// inode tells a file from all others. A tree has those of several file systems
// where files are mounted in it, and also where an overlay shows it.
type inode struct{ device, number uint64 }

// walk copies the directory fd, and closes it.
func (w *walker) walk(fd int, name string) error {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if name == "" {
		w.device = st.Dev
	}
	if err := w.add(fd, name, &st); err != nil || st.Dev != w.device {
		return err
	}
	if strings.Count(name, "/") > maxTarDepth {
		return fmt.Errorf("%s: %w", printable(name, 256), errTooDeep)
	}
	names, err := w.readNames(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", printable(name, 256), err)
	}
	for _, base := range names {
		w.ahead--
		if err := w.child(fd, base, path.Join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

// readNames does not read more than there may be files: of a directory that
// does not end, the names alone would fill the memory.
func (w *walker) readNames(fd int) ([]string, error) {
	used := w.to.used
	most := used.limits.Files - used.files - w.ahead
	names, err := readNamesUpTo(fd, int(most)+1)
	if err == nil && int64(len(names)) > most {
		err = used.tooManyFiles()
	}
	w.ahead += int64(len(names))
	return names, err
}

func (w *walker) child(dir int, base, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	// A symbolic link can be opened as such only with O_PATH.
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil // gone meanwhile
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return w.add(fd, name, &st)
	}
	// The same file, for reading: the way by /proc cannot lead to another.
	open, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return w.walk(open, name)
	}
	defer unix.Close(open)
	return w.add(open, name, &st)
}

// add makes an archive's header of what fd is, and an entry of that.
func (w *walker) add(fd int, name string, st *unix.Stat_t) error {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), PAXRecords: map[string]string{},
	}
	var content *extents
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		var err error
		if content, err = newExtents(w.ctx, fd, st.Size); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", target)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(target[:n])
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil // nodes of devices and sockets
	}
	same := inode{st.Dev, st.Ino}
	if first, ok := w.links[same]; ok && h.Typeflag != tar.TypeDir && st.Nlink > 1 {
		h.Typeflag, h.Linkname, content = tar.TypeLink, first, nil
	} else if st.Nlink > 1 && h.Typeflag != tar.TypeDir {
		if err := w.to.used.name(name); err != nil {
			return err
		}
		w.links[same] = name
	}
	if h.Typeflag != tar.TypeLink {
		readXattrs(fd, h)
	}
	var bytes body // a nil *extents would not be a nil body
	if content != nil {
		bytes = content
	}
	if err := w.to.entry(h, bytes); err != nil {
		return fmt.Errorf("%q: %w", printable(name, 256), err)
	}
	w.sum(h, content)
	w.progress(w.to.size, 0)
	return nil
}

func (w *walker) sum(h *tar.Header, content *extents) {
	fmt.Fprintf(w.digest, "%c %q %o %d %d %q", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname)
	keys := make([]string, 0, len(h.PAXRecords))
	for key := range h.PAXRecords {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprintf(w.digest, " %q=%q", key, h.PAXRecords[key])
	}
	if content != nil {
		fmt.Fprintf(w.digest, " %d %x", h.Size, content.digest.Sum(nil))
	}
	w.digest.Write([]byte{'\n'})
}

// readXattrs puts the attributes that are kept into a header. By /proc, because
// fd may be one that only names its file; a symbolic link has none of these.
func readXattrs(fd int, h *tar.Header) {
	if h.Typeflag == tar.TypeSymlink {
		return
	}
	file := fmt.Sprintf("/proc/self/fd/%d", fd)
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(file, list)
	if err != nil {
		return
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if !keptXattr(name) {
			continue
		}
		value := make([]byte, maxXattr)
		if n, err := unix.Getxattr(file, name, value); err == nil {
			h.PAXRecords[xattrRecord+name] = string(value[:n])
		}
	}
}

// extents is the content of a file that may have holes.
type extents struct {
	ctx    context.Context
	fd     int
	length int64
	data   [][2]int64 // from, to
	digest hash.Hash
}

// maxExtents bounds what is kept of one file in memory; what follows is copied
// holes and all.
const maxExtents = 1 << 16

func newExtents(ctx context.Context, fd int, length int64) (*extents, error) {
	e := &extents{ctx: ctx, fd: fd, length: length, digest: sha256.New()}
	for at := int64(0); at < length; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		end := length
		if err == nil && len(e.data) < maxExtents {
			end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		}
		if err != nil {
			return nil, err
		}
		at = min(end, length)
		if start < at {
			e.data = append(e.data, [2]int64{start, at})
		}
	}
	return e, nil
}

func (e *extents) size() (n int64) {
	for _, x := range e.data {
		n += (x[1] - x[0] + block - 1) / block * block
	}
	return n
}

// writeTo copies the data that was counted, whatever the file is by now.
func (e *extents) writeTo(to *os.File) (done int64, err error) {
	for _, x := range e.data {
		fmt.Fprintf(e.digest, "@%d ", x[0])
		n, err := e.copyRange(to, x[0], x[1]-x[0])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, to.Truncate(e.length)
}

func (e *extents) copyRange(to *os.File, start, n int64) (int64, error) {
	if _, err := to.Seek(start, io.SeekStart); err != nil {
		return 0, err
	}
	from := io.NewSectionReader(readerAt(e.fd), start, n)
	counted := &countingReader{ctx: e.ctx, r: from, progress: func(int64, int64) {}}
	return io.Copy(to, io.TeeReader(counted, e.digest))
}

// readerAt reads a descriptor that somebody else owns.
type readerAt int

func (fd readerAt) ReadAt(p []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(fd), p, off)
		switch {
		case err == unix.EINTR:
		case err == nil && n == 0:
			return 0, io.EOF
		default:
			return max(n, 0), err
		}
	}
}

// readNames lists a directory, sorted, and leaves it open.
func readNames(fd int) ([]string, error) { return readNamesUpTo(fd, -1) }

// readNamesUpTo lists so many of its entries.
func readNamesUpTo(fd, most int) ([]string, error) {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again), ".")
	defer f.Close()
	names, err := f.Readdirnames(most)
	if err == io.EOF { // it is empty
		err = nil
	}
	slices.Sort(names)
	return names, err
}
