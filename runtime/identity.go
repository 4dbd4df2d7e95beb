package runtime

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (q rootRequest) forgetIdentity(kind InitKind) error {
	t, err := openTreeRoot(filepath.Join(q.Dir, "rootfs"))
	if err != nil {
		return err
	}
	defer t.Close()
	return forgetIdentity(t, kind)
}

// forgetIdentity lets a root that was cloned get a machine-id(5) of its own. An
// empty one is what systemd fills at the next boot without taking it for the
// first of a new system; other inits make a file that is not there.
func forgetIdentity(t *tree, kind InitKind) error {
	for _, file := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if err := forgetFile(t, file, kind == Systemd && path.Dir(file) == "/etc"); err != nil {
			return fmt.Errorf("%s of the clone: %w", file, err)
		}
	}
	return nil
}

// forgetFile empties or removes a regular file. What is none, as a link, names
// no identity of its own.
func forgetFile(t *tree, file string, keep bool) error {
	dir, err := t.open(path.Dir(file), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	err = unix.Fstatat(dir, path.Base(file), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if err != nil {
		return err
	}
	if !keep {
		return unix.Unlinkat(dir, path.Base(file), 0)
	}
	fd, err := unix.Openat(dir, path.Base(file), unix.O_WRONLY|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
