package runtime

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// Bounds of what an import accepts.
const (
	maxTarFiles = 10_000_000
	maxTarName  = 4096
	maxXattr    = 64 << 10
)

// unpackTemplate unpacks into dir/rootfs and describes it in dir/template.json.
func unpackTemplate(ctx context.Context, tarFile, dir string, progress func(done, total int64)) (Template, error) {
	made := Template{Source: tarFile, Imported: time.Now().UTC()}
	f, err := os.Open(tarFile)
	if err != nil {
		return made, errnoOf(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return made, err
	}
	if !info.Mode().IsRegular() {
		return made, errors.New("it is not a file")
	}
	counted := &countingReader{ctx: ctx, r: f, total: info.Size(), progress: progress}
	plain, err := decompress(bufio.NewReaderSize(counted, 256<<10))
	if err != nil {
		return made, err
	}
	digest := sha256.New()
	u, err := newUnpacker(filepath.Join(dir, "rootfs"))
	if err != nil {
		return made, err
	}
	defer u.close()
	all := io.TeeReader(plain, digest)
	if err := u.unpack(tar.NewReader(all)); err != nil {
		return made, err
	}
	if _, err := io.Copy(io.Discard, all); err != nil { // the padding belongs to the digest
		return made, err
	}
	if u.files == 0 {
		return made, errors.New("it has no files: a root as a tar archive is needed")
	}
	made.Digest = fmt.Sprintf("sha256-%x", digest.Sum(nil))
	made.Size, made.Files = u.bytes, u.files
	body, err := json.MarshalIndent(made, "", "\t")
	if err != nil {
		return made, err
	}
	if err := os.WriteFile(filepath.Join(dir, "template.json"), body, 0o644); err != nil {
		return made, err
	}
	return made, flush(dir)
}

// flush writes the file system to disk: a template that survives a crash must not
// be one of empty files.
func flush(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

type countingReader struct {
	ctx         context.Context
	r           io.Reader
	done, total int64
	progress    func(done, total int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.progress != nil {
		c.progress(c.done, c.total)
	}
	return n, err
}

// decompress goes by the first bytes, not by the name.
func decompress(r *bufio.Reader) (io.Reader, error) {
	magic, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.ReaderConfig{DictCap: 128 << 20}.NewReader(r)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return r, nil
}

// unpacker writes the entries of a tar below a root that it cannot leave: every
// parent is resolved inside the root, and a last component is never followed.
type unpacker struct {
	root         *tree
	files, bytes int64
	dirs         []dirTime

	parentName string // the last parent, which the next entry usually shares
	parentFD   int
}

// dirTime is set at the end: unpacking into a directory changes its time.
type dirTime struct {
	name string
	at   time.Time
}

func newUnpacker(dir string) (*unpacker, error) {
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
	return &unpacker{root: root, parentFD: -1}, nil
}

func (u *unpacker) close() {
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.root.Close()
}

func (u *unpacker) unpack(archive *tar.Reader) error {
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return u.setDirTimes()
		}
		if err != nil {
			if u.files == 0 {
				return fmt.Errorf("it is no tar archive, or one in an unknown compression (gzip, xz and zstd are known): %w", err)
			}
			return err
		}
		if u.files++; u.files > maxTarFiles {
			return fmt.Errorf("it has more than %d files", maxTarFiles)
		}
		if err := u.entry(h, archive); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

// cleanName makes an entry's name relative to the root. ".." is refused and
// not resolved: no honest root has it.
func cleanName(name string) (string, error) {
	if len(name) > maxTarName || strings.ContainsRune(name, 0) {
		return "", errors.New("bad name")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", errors.New("a name must not contain \"..\"")
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
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
	dir, err := u.parent(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	if err := u.create(dir, base, name, h, body); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink || skipped(h) {
		return nil
	}
	return u.attributes(dir, base, h)
}

// skipped entries are not made: device nodes do nothing in a user namespace, and
// /dev is a tmpfs. A character device 0:0 would even be a whiteout to
// overlayfs.
func skipped(h *tar.Header) bool {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeGNUSparse, '\x00':
		return false
	}
	return true
}

// parent opens the directory of an entry, inside the root whatever links an
// earlier entry made, and keeps it for the next.
func (u *unpacker) parent(name string) (int, error) {
	if u.parentFD >= 0 && u.parentName == name {
		return u.parentFD, nil
	}
	fd, err := u.root.directory(name, 0o755)
	if err != nil {
		return -1, err
	}
	if u.parentFD >= 0 {
		unix.Close(u.parentFD)
	}
	u.parentName, u.parentFD = name, fd
	return fd, nil
}

func (u *unpacker) create(dir int, base, name string, h *tar.Header, body io.Reader) error {
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
	return u.writeFile(dir, base, body)
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
	u.dirs = append(u.dirs, dirTime{name, h.ModTime})
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

func (u *unpacker) writeFile(dir int, base string, body io.Reader) error {
	fd, err := unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	n, err := io.Copy(f, body)
	u.bytes += n
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

func (u *unpacker) setDirTimes() error {
	for _, d := range u.dirs {
		dir, err := u.parent(path.Dir(d.name))
		if err != nil {
			return err
		}
		if err := setTime(dir, path.Base(d.name), d.at); err != nil {
			return err
		}
	}
	return nil
}

// setXattrs takes file capabilities, ACLs and user attributes. Everything else is
// dropped, above all trusted.overlay.*, with which an archive could direct
// overlayfs elsewhere.
func setXattrs(dir int, base string, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || len(value) > maxXattr {
			continue
		}
		switch {
		case name == "security.capability", strings.HasPrefix(name, "user."):
		case name == "system.posix_acl_access", name == "system.posix_acl_default":
		default:
			continue
		}
		file := fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)
		if err := unix.Lsetxattr(file, name, []byte(value), 0); err != nil && err != unix.EOPNOTSUPP {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
