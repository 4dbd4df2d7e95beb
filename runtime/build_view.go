package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The view is all that what builds a root sees of the host: programs and the
// settings of package managers, read-only, and the root itself.

// viewTarget is where the root is in the view.
const viewTarget = "/target"

// viewBinds are there if the host has them. None of them is secret: what only
// root may read (/etc/apt/auth.conf) cannot be read through the user namespace.
var viewBinds = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
	"/etc/alternatives", "/etc/ca-certificates", "/etc/ca-certificates.conf", "/etc/crypto-policies", "/etc/group",
	"/etc/hosts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf",
	"/etc/os-release", "/etc/passwd", "/etc/pki", "/etc/resolv.conf", "/etc/ssl", "/etc/ethertypes", "/etc/protocols", "/etc/services",
	"/etc/apt", "/etc/dpkg", "/etc/debian_version", "/etc/dnf", "/etc/rpm", "/etc/yum.repos.d", "/etc/yum", "/etc/zypp",
	"/etc/apk", "/etc/pacman.conf", "/etc/pacman.d",
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
}

// viewDirs can be written to: in memory, and within viewMemory.
var viewDirs = []string{"/tmp", "/run", "/run/build", "/root", "/var/tmp", "/var/lib/dnf", "/var/cache/dnf", "/var/log", "/dev/shm"}

const viewMemory = "size=1g,nr_inodes=200k,mode=755"

// makeView builds the view at dir, makes it the root of this mount namespace
// and lets go of the host. owner is root of the build.
func makeView(dir string, q buildRequest) error {
	if err := unix.Mount("view", dir, "tmpfs", unix.MS_NOSUID, viewMemory); err != nil {
		return fmt.Errorf("the view: %w", err)
	}
	for _, name := range viewBinds {
		if err := showInView(dir, name); err != nil {
			return err
		}
	}
	for _, name := range q.Binds {
		seen, err := inView(dir, name) // a key below /usr, say
		if err == nil && !seen {
			err = showInView(dir, name)
		}
		if err != nil {
			return err
		}
	}
	if err := ownDirs(dir, q); err != nil {
		return err
	}
	for _, f := range append(q.Files, viewFile{"/etc/hostname", "localhost\n"}) {
		name := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(f.Text), 0o644); err != nil {
			return err
		}
	}
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2", "/dev/ptmx": "pts/ptmx"} {
		if err := os.Symlink(to, dir+link); err != nil {
			return err
		}
	}
	for _, m := range []struct{ kind, at, data string }{{"devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620"}, {"proc", "/proc", ""}} {
		if err := os.MkdirAll(dir+m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, dir+m.at, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.data); err != nil {
			return fmt.Errorf("mount %s of the view: %w", m.at, err)
		}
	}
	return enterView(dir)
}

// inView tells whether the view has something of that name.
func inView(dir, name string) (bool, error) {
	t, err := openTreeRoot(dir)
	if err != nil {
		return false, err
	}
	defer t.Close()
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return false, nil
	}
	return true, unix.Close(fd)
}

// showInView mounts what the host has at name, with what is mounted below, at
// the same place of the view. A link is a link there, too.
func showInView(dir, name string) error {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			return nil // dangling
		}
		if target, err := os.Stat(real); err == nil && target.IsDir() {
			to, _ := os.Readlink(name)
			return os.Symlink(to, at)
		}
		name = real // a file such as resolv.conf, wherever it is
	}
	if info, err = os.Stat(name); err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o644)
	}
	if err != nil {
		return err
	}
	set := uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID)
	if info.Mode()&fs.ModeDevice != 0 {
		set = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	}
	return cloneMount(name, at, nil, set, true)
}

// ownDirs makes the directories that the build's root may write to.
func ownDirs(dir string, q buildRequest) error {
	for _, name := range append(viewDirs, viewTarget) {
		at := dir + name
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := os.Chown(at, int(hostID(q.UIDs, 0)), int(hostID(q.GIDs, 0))); err != nil {
			return err
		}
	}
	for _, name := range []string{"/tmp", "/var/tmp", "/dev/shm"} {
		if err := os.Chmod(dir+name, 0o777|fs.ModeSticky); err != nil {
			return err
		}
	}
	return nil
}

// enterView makes dir the root of this mount namespace. The host's old root is
// unmounted: there is nothing left that a path could lead to.
func enterView(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter the view: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host: %w", err)
	}
	return unix.Chdir("/")
}
