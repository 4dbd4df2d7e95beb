package runtime

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// stubMount is a tmpfs the stub mounts in the root, before the OCI runtime runs.
type stubMount struct {
	Target string
	Data   string // options
	Flags  uintptr
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
	for _, m := range w.Mounts {
		if err := mountInRoot(t, m); err != nil {
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

func mountInRoot(t *tree, m stubMount) error {
	target, err := t.directory(m.Target, 0o755)
	if err != nil {
		return fmt.Errorf("mount point %s in the root: %w", m.Target, err)
	}
	defer unix.Close(target)
	where := fmt.Sprintf("/proc/self/fd/%d", target)
	if err := unix.Mount("tmpfs", where, "tmpfs", m.Flags, m.Data); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", m.Target, err)
	}
	return nil
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
