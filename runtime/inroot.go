package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Everything that looks into an environment's root goes through a tree: whatever
// symbolic links are inside, and whoever swaps them meanwhile, a lookup never
// leaves the root (RESOLVE_IN_ROOT, Linux 5.6).
type tree struct {
	fd   int
	name string // host path, for messages and to strip from /proc/self/fd links
}

func openTreeRoot(name string) (*tree, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", name, err)
	}
	return &tree{fd, name}, nil
}

func (t *tree) Close() { unix.Close(t.fd) }

// open resolves name inside the root. Flags are those of open(2); creation
// is possible only where the directory is already known to be safe.
func (t *tree) open(name string, flags int) (int, error) {
	return openIn(t.fd, name, flags, 0)
}

func openIn(dir int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, name, &how)
		// EAGAIN: something was renamed during the walk and the kernel could not
		// tell whether ".." stayed inside.
		if (err == unix.EAGAIN || err == unix.EINTR) && tries < 64 {
			continue
		}
		return fd, err
	}
}

// path tells where name really is, symbolic links followed, as seen from inside.
func (t *tree) path(fd int) (string, error) {
	full, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(full, strings.TrimSuffix(t.name, "/"))
	if !ok {
		return "", fmt.Errorf("%s is outside %s", full, t.name)
	}
	return rest, nil
}

// read returns at most limit bytes of a regular file.
func (t *tree) read(name string, limit int) ([]byte, error) {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	body := make([]byte, min(int64(limit), st.Size))
	n := 0
	for n < len(body) {
		m, err := unix.Read(fd, body[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	return body[:n], nil
}

// readAll reads regular files of a directory, see Instance.ReadFiles.
func (t *tree) readAll(name string, most, limit int) (bodies [][]byte, err error) {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	entries, err := dir.Readdirnames(most)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	below := &tree{fd, name}
	for _, entry := range entries {
		if body, err := below.read(entry, limit+1); err == nil && len(body) <= limit {
			bodies = append(bodies, body)
		}
	}
	return bodies, nil
}

// directory opens name, making the directories that are missing.
func (t *tree) directory(name string, mode uint32) (int, error) {
	fd, err := t.open(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, base := path.Split(path.Clean("/" + name))
	if base == "" {
		return -1, unix.ENOENT
	}
	dir, err := t.directory(parent, mode)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, base, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return t.open(name, unix.O_PATH|unix.O_DIRECTORY)
}

// isLink tells whether the last component of name is a symbolic link.
func (t *tree) isLink(name string) (bool, error) {
	fd, err := t.open(name, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Mode&unix.S_IFMT == unix.S_IFLNK, err
}
