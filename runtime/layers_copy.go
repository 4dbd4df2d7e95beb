package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxTreeDepth bounds how deep a tree is followed, and so the descriptors that
// are open. A path cannot name anything deeper.
const maxTreeDepth = unix.PathMax / 2

// cloneTree copies the directory from to a new one: all kinds of files with
// owners, modes, times, attributes, holes and hard links, an overlay's whiteouts
// and its marks on directories among them. No link is followed; what is on another
// file system is refused.
func cloneTree(ctx context.Context, from, to string, progress func(done, total uint64)) error {
	c := &cloner{ctx: ctx, progress: progress, reflink: true}
	source, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	c.device = st.Dev
	parent, err := unix.Open(filepath.Dir(to), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := c.measure(source, 0); err != nil {
		return err
	}
	if err := inheritProject(source, parent); err != nil {
		return fmt.Errorf("quota of %s: %w", filepath.Dir(to), err)
	}
	// A file of several names is found here by its number when the next of
	// them comes.
	const staging = ".names"
	if err := unix.Mkdirat(parent, staging, 0o700); err != nil {
		return err
	}
	if c.names, err = openDirectory(parent, staging); err != nil {
		return err
	}
	defer unix.Close(c.names)
	if err := c.directory(source, ".", parent, filepath.Base(to), &st, ownAttribute); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = fmt.Errorf("%w (the copy counts against the disk's limit, too: raise it with virsh blockresize, or take the snapshot while it is shut off, which copies nothing)", err)
		}
		return fmt.Errorf("copy %s: %w", from, err)
	}
	c.advance(int64(c.total))
	return removeAllAt(parent, staging)
}

// inheritProject has what is made in a directory belong to the project of
// another: a file cannot be moved from one project's to another's.
func inheritProject(from, to int) error {
	source, err := os.Open(procPath(from, "."))
	if err != nil {
		return err
	}
	defer source.Close()
	project, err := projectOf(source)
	if err != nil || project == 0 {
		return err
	}
	target, err := os.Open(procPath(to, "."))
	if err != nil {
		return err
	}
	defer target.Close()
	return setProject(target, project)
}

type cloner struct {
	ctx         context.Context
	progress    func(done, total uint64)
	done, total uint64 // bytes
	device      uint64
	names       int // directory
	reflink     bool
	depth       int
}

// measure sums up what there is to copy.
func (c *cloner) measure(dir, depth int) error {
	return eachName(dir, func(name string) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
			return nil
		} else if err != nil {
			return err
		}
		switch kind := st.Mode & unix.S_IFMT; {
		case kind == unix.S_IFREG:
			c.total += uint64(min(st.Size, st.Blocks*512)) / uint64(max(1, st.Nlink))
		case kind == unix.S_IFDIR && depth < maxTreeDepth:
			child, err := openDirectory(dir, name)
			if err != nil {
				return err
			}
			err = c.measure(child, depth+1)
			unix.Close(child)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// directory copies one, its content first: that changes its times.
func (c *cloner) directory(from int, path string, to int, base string, st *unix.Stat_t, keep func(string) bool) error {
	if c.depth++; c.depth > maxTreeDepth {
		return fmt.Errorf("it has directories nested deeper than %d", maxTreeDepth)
	}
	defer func() { c.depth-- }()
	if err := unix.Mkdirat(to, base, 0o700); err != nil {
		return err
	}
	made, err := openDirectory(to, base)
	if err != nil {
		return err
	}
	defer unix.Close(made)
	err = eachName(from, func(name string) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(from, made, name); err != nil {
			return fmt.Errorf("%s: %w", printable(name, 64), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return copyAttributes(procPath(from, path), to, base, st, keep)
}

func (c *cloner) entry(from, to int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Dev != c.device {
		return errors.New("it is on another file system")
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		child, err := openDirectory(from, name)
		if err != nil {
			return err
		}
		defer unix.Close(child)
		return c.directory(child, ".", to, name, &st, everyAttribute)
	}
	number := strconv.FormatUint(st.Ino, 10)
	if st.Nlink > 1 {
		if err := unix.Linkat(c.names, number, to, name, 0); err != unix.ENOENT {
			return err
		}
	}
	if err := c.make(from, to, name, &st); err != nil {
		return err
	}
	if err := copyAttributes(procPath(from, name), to, name, &st, everyAttribute); err != nil {
		return err
	}
	if st.Nlink > 1 {
		return unix.Linkat(to, name, c.names, number, 0)
	}
	return nil
}

func (c *cloner) make(from, to int, name string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(from, to, name)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, target)
		if err != nil {
			return err
		}
		return unix.Symlinkat(string(target[:n]), to, name)
	default: // a node, a whiteout among them, which is the character device 0:0
		return unix.Mknodat(to, name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev))
	}
}

func (c *cloner) file(from, to int, name string) error {
	source, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("it changed while it was copied")
	}
	made, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(made)
	if c.reflink {
		if err := unix.IoctlFileClone(made, source); err == nil {
			c.advance(min(st.Size, st.Blocks*512))
			return nil
		}
		c.reflink = st.Size == 0 // an empty one tells nothing of the file system
	}
	return c.data(source, made, st.Size)
}

// chunk is how much is copied between two looks at whether to go on.
const chunk = 8 << 20

// data copies the first size bytes, leaving out holes.
func (c *cloner) data(from, to int, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(from, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // the rest is a hole
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(from, start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = min(end, size); start < at; {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			in, out := start, start
			n, err := unix.CopyFileRange(from, &in, to, &out, int(min(at-start, chunk)), 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 {
				break // shorter than it was
			}
			start += int64(n)
			c.advance(int64(n))
		}
	}
	return unix.Ftruncate(to, size)
}

func (c *cloner) advance(n int64) {
	c.done += uint64(n)
	if c.progress != nil {
		c.progress(min(c.done, c.total), c.total)
	}
}

func everyAttribute(string) bool { return true }

// overlayAttribute begins the names of what the overlay notes about a file.
const overlayAttribute = "trusted.overlay."

// ownAttribute is for the top directory of a layer: what the overlay notes
// there is about that layer.
func ownAttribute(name string) bool { return !strings.HasPrefix(name, overlayAttribute) }

// copyAttributes makes an entry what st and the file named from say: owner,
// mode, attributes and times, in the order in which none undoes another.
func copyAttributes(from string, to int, base string, st *unix.Stat_t, keep func(string) bool) error {
	if err := unix.Fchownat(to, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, base, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	names, err := attributes(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !keep(name) {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
		if err := unix.Lsetxattr(procPath(to, base), name, value[:n], 0); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return unix.UtimesNanoAt(to, base, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func attributes(file string) ([]string, error) {
	list := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(file, list)
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	return strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }), nil
}

// procPath names an entry of an open directory for calls that want a path and
// follow no link at the end of it.
func procPath(dir int, base string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", dir, base) }

func openDirectory(dir int, base string) (int, error) {
	return unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
