package runtime

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// stubMount is a mount the stub makes in the root, before the OCI runtime runs.
type stubMount struct {
	Kind     string // "bind": Source is a host directory or file; "inside": Source is a path of the root; "tmpfs"
	Source   string
	Target   string
	ReadOnly bool
	Data     string // tmpfs options
	Flags    uintptr
}

// furnish completes the mounted root. The tmpfs on /run is mounted here and
// not by the OCI runtime for two reasons: files can be put there before init
// starts, and its size limit belongs to the host, so root inside cannot raise it.
func furnish(q rootRequest, w workRequest) error {
	t, err := openTreeRoot(filepath.Join(q.Dir, "rootfs"))
	if err != nil {
		return err
	}
	defer t.Close()
	for _, dir := range mountPoints {
		if err := mountPoint(t, dir, q.ReadOnly); err != nil {
			return err
		}
	}
	var space *os.File
	if len(q.UIDs) > 0 && needsSpace(w.Mounts) {
		if space, err = openUserNamespace(q.UIDs, q.GIDs); err != nil {
			return err
		}
		defer space.Close()
	}
	for _, m := range w.Mounts {
		if err := mountInRoot(t, m, space, q.ReadOnly); err != nil {
			return err
		}
	}
	if len(w.Nodes) > 0 {
		if err := makeNodes(devicesDir(q.Dir), w.Nodes, rootID(q.UIDs), rootID(q.GIDs)); err != nil {
			return err
		}
	}
	if err := writeRunFiles(t, w.Files); err != nil {
		return err
	}
	return writeResolver(t, w.Names)
}

// rootID is the host's id of root inside.
func rootID(ids []idRange) uint32 {
	if len(ids) == 0 {
		return 0
	}
	return hostID(ids, 0)
}

func needsSpace(mounts []stubMount) bool {
	for _, m := range mounts {
		if m.Kind == "bind" {
			return true
		}
	}
	return false
}

func mountPoint(t *tree, dir string, readOnly bool) error {
	fd, err := t.directory(dir, 0o755)
	if err == unix.EROFS && readOnly {
		return fmt.Errorf("the read-only root has no directory %s to mount on", dir)
	}
	if err != nil {
		return fmt.Errorf("make %s in the root: %w", dir, err)
	}
	return unix.Close(fd)
}

func mountInRoot(t *tree, m stubMount, space *os.File, readOnly bool) error {
	source, err := mountSource(t, m, space)
	if err != nil {
		return err
	}
	if source >= 0 {
		defer unix.Close(source)
	}
	target, err := openTarget(t, m, source)
	if err != nil {
		return fmt.Errorf("mount point %s in the root: %w", m.Target, err)
	}
	defer unix.Close(target)
	if m.Kind == "tmpfs" {
		where := fmt.Sprintf("/proc/self/fd/%d", target)
		if err := unix.Mount("tmpfs", where, "tmpfs", m.Flags, m.Data); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", m.Target, err)
		}
		return nil
	}
	err = unix.MoveMount(source, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
	}
	return nil
}

// mountSource returns a detached mount, or -1 for a file system without one.
func mountSource(t *tree, m stubMount, space *os.File) (int, error) {
	attr := uint64(0)
	if m.ReadOnly {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	switch m.Kind {
	case "tmpfs":
		return -1, nil
	case "inside": // ids are right already: the root itself is shifted
		fd, err := t.open(m.Source, unix.O_PATH)
		if err != nil {
			return -1, fmt.Errorf("%s in the root: %w", m.Source, err)
		}
		defer unix.Close(fd)
		return openTree(fd, "", nil, attr, true)
	}
	return openTree(unix.AT_FDCWD, m.Source, space, attr, true)
}

// openTarget opens the mount point, making it, as a directory or an empty file
// like the source, when it is missing.
func openTarget(t *tree, m stubMount, source int) (int, error) {
	if source >= 0 {
		var st unix.Stat_t
		if err := unix.Fstat(source, &st); err != nil {
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fileTarget(t, m.Target)
		}
	}
	return t.directory(m.Target, 0o755)
}

func fileTarget(t *tree, name string) (int, error) {
	fd, err := t.open(name, unix.O_PATH)
	if err != unix.ENOENT {
		return fd, err
	}
	parent, base := path.Split(path.Clean("/" + name))
	dir, err := t.directory(parent, 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	fd, err = openIn(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return -1, err
	}
	unix.Close(fd)
	return t.open(name, unix.O_PATH)
}

// writeRunFiles fills /run. It is a fresh tmpfs and nothing runs inside yet, but
// lookups stay in the root all the same.
func writeRunFiles(t *tree, files []runFile) error {
	for _, f := range files {
		name := "/run/" + f.Path
		dir, err := t.directory(path.Dir(name), 0o755)
		if err != nil {
			return fmt.Errorf("make %s: %w", path.Dir(name), err)
		}
		err = writeIn(dir, path.Base(name), f)
		unix.Close(dir)
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

func writeIn(dir int, name string, f runFile) error {
	if f.Link != "" {
		return unix.Symlinkat(f.Link, dir, name)
	}
	fd, err := openIn(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), name)
	if _, err := strings.NewReader(f.Text).WriteTo(out); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
