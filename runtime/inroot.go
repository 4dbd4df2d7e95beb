package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
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
	how := openHow(flags, mode)
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(dir, name, &how)
		if (err == unix.EAGAIN || err == unix.EINTR) && tries < maxOpenTries {
			continue
		}
		return fd, err
	}
}

// maxOpenTries bounds those after EAGAIN: something was renamed during the walk
// and the kernel could not tell whether ".." stayed inside.
const maxOpenTries = 64

func openHow(flags int, mode uint32) unix.OpenHow {
	return unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
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

// openRegular is openIn for a regular file that keeps data. What is none, as a
// pipe, has somebody wait, and what the kernel makes up says and changes what is
// the reader's own: to us, the host's. That is known once it is open, so that it
// is truncated only then.
func openRegular(dir int, name string, flags int, mode uint32) (int, error) {
	fd, err := openIn(dir, name, regularFlags(flags), mode)
	if err != nil {
		return -1, err
	}
	if err := acceptRegular(fd, flags); err != nil {
		return -1, err
	}
	return fd, nil
}

func regularFlags(flags int) int { return flags&^unix.O_TRUNC | unix.O_NONBLOCK | unix.O_NOCTTY }

// acceptRegular truncates what was opened, if that is wanted, or closes it.
func acceptRegular(fd, flags int) error {
	err := refuseIrregular(fd)
	if err == nil && flags&unix.O_TRUNC != 0 {
		err = unix.Ftruncate(fd, 0)
	}
	if err != nil {
		unix.Close(fd)
	}
	return err
}

func refuseIrregular(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("it is no regular file")
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if slices.Contains(kernelFilesystems, uint32(fs.Type)) {
		return errors.New("it is a file of the kernel, as those in /proc and /sys: only programs inside see there what is the environment's (guest-exec, vzctl exec)")
	}
	return nil
}

// kernelFilesystems are those whose files the kernel makes up (f_type of
// statfs(2)). The numbers are those of fusectl, configfs, nfsd, rpc_pipefs,
// functionfs, gadgetfs, oprofilefs and ibmasmfs.
var kernelFilesystems = []uint32{
	unix.AAFS_MAGIC, unix.BINDERFS_SUPER_MAGIC, unix.BINFMTFS_MAGIC, unix.BPF_FS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.EFIVARFS_MAGIC, unix.NSFS_MAGIC, unix.OPENPROM_SUPER_MAGIC, unix.PID_FS_MAGIC,
	unix.PROC_SUPER_MAGIC, unix.PSTOREFS_MAGIC, unix.RDTGROUP_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.SMACK_MAGIC,
	unix.SYSFS_MAGIC, unix.TRACEFS_MAGIC, unix.USBDEVICE_SUPER_MAGIC, unix.XENFS_SUPER_MAGIC,
	0x65735543, 0x62656570, 0x6e667364, 0x67596969, 0xa647361, 0xaee71ee7, 0x6f70726f, 0x66726d62,
}

// read returns at most limit bytes of a regular file.
func (t *tree) read(name string, limit int) ([]byte, error) {
	fd, err := openRegular(t.fd, name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return readRegular(fd, limit)
}

func readRegular(fd, limit int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
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
