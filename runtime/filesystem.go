package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// The root is mounted by the stub. The filesystems below it are mounted in the
// environment's mount namespace, between create and start or while it runs,
// in the same way:
//
//	filesystem.go         what is to be mounted, as a mount that is nowhere yet
//	filesystem_image.go   those in a file or on a block device
//	filesystem_qcow2.go   a block device of a qcow2 image
//	filesystem_change.go  into the environment and out of it again
//	filesystem_freeze.go  frozen, thawed and trimmed
//
// All go with the namespace when the last process has ended. Root inside may
// unmount them, and sees what is below in its root then.

// Volumes is what is wanted of libvirt's storage pools.
type Volumes interface {
	// VolumePath tells where on the host a volume is.
	VolumePath(ctx context.Context, pool, volume string) (string, error)
}

// ErrMountBusy is returned by Tune when a filesystem that is to be detached is
// in use.
var ErrMountBusy = errors.New("the filesystem is in use")

// hostSource tells where on the host the source of a filesystem is, and
// whether that is a directory or file to be seen inside as it is. If not, there
// is a file system in it.
func (r *Runtime) hostSource(ctx context.Context, fs xml.Filesystem) (source string, plain bool, err error) {
	source = fs.Source
	if fs.Type == "volume" {
		if source, err = r.VolumePath(ctx, fs.Source); err != nil {
			return "", false, err
		}
	}
	info, err := os.Stat(source)
	if err != nil {
		return "", false, fmt.Errorf("%s: %w", source, errnoOf(err))
	}
	isBlock := info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	switch {
	case fs.Type == "file" && !info.Mode().IsRegular():
		return "", false, fmt.Errorf("%s is not a regular file: a filesystem of type 'file' is an image, use 'block' for a device or 'mount' for a directory", source)
	case fs.Type == "block" && !isBlock:
		return "", false, fmt.Errorf("%s is not a block device: use type 'file' for an image or 'mount' for a directory", source)
	}
	return source, fs.Type == "mount" || info.IsDir(), nil
}

// recordedRoot is where a root is that is not in a template or a directory
// named by the definition.
type recordedRoot struct {
	Source string // image, block device or directory of the host
	Device Device // what is mounted of an image or block device

	ReadOnly bool `json:",omitempty"`
}

// openRoot mounts a root that is not in a directory of the host, for the stub.
func (r *Runtime) openRoot(ctx context.Context, fs xml.Filesystem) (*os.File, recordedRoot, error) {
	source, plain, err := r.hostSource(ctx, fs)
	if err != nil {
		return nil, recordedRoot{}, fmt.Errorf("root: %w", err)
	}
	fd, root := -1, recordedRoot{Source: source, ReadOnly: fs.ReadOnly}
	if plain {
		attr := uint64(0)
		if fs.ReadOnly {
			attr = unix.MOUNT_ATTR_RDONLY
		}
		fd, err = openTree(unix.AT_FDCWD, source, nil, attr, true)
	} else {
		fd, root.Device, err = r.openImage(ctx, source, fs)
	}
	if err != nil {
		return nil, root, fmt.Errorf("root: %w", err)
	}
	return os.NewFile(uintptr(fd), source), root, nil
}

// ImageRoot tells where the root is that is in a file, on a block device or
// in a volume, and which block device is mounted of it: the zero Device where
// the volume is a directory. source is "" for any other root.
func (i *Instance) ImageRoot() (source string, device Device) {
	if i.rec.Root == nil {
		return "", Device{}
	}
	return i.rec.Root.Source, wholeDisk("/sys/dev/block", i.rec.Root.Device)
}

// VolumePath tells where on the host the volume "POOL/VOLUME" is.
func (r *Runtime) VolumePath(ctx context.Context, name string) (string, error) {
	if r.config.Volumes == nil {
		return "", fmt.Errorf("there are no storage pools: %w", ErrUnsupported)
	}
	pool, volume, _ := strings.Cut(name, "/")
	return r.config.Volumes.VolumePath(ctx, pool, volume)
}

// freshMount is a mount that is nowhere yet.
type freshMount struct {
	*os.File
	deep bool   // others are below that came with it
	on   Device // of an image or block device
}

// makeMount makes what is to be mounted of a filesystem that is the host's. It
// has the environment's ids.
func (i *Instance) makeMount(ctx context.Context, fs xml.Filesystem) (m freshMount, err error) {
	var space *os.File
	uids, gids := ranges(i.rec.IDMap.UIDs), ranges(i.rec.IDMap.GIDs)
	mapped := i.rec.IDMap.Mode != xml.Privileged
	if mapped && fs.Type != "ram" {
		if space, err = openUserNamespace(uids, gids); err != nil {
			return m, err
		}
		defer space.Close()
	}
	fd := -1
	if fs.Type == "ram" {
		fd, err = makeTmpfs(fs.Size, rootID(uids), rootID(gids), mapped)
	} else {
		var source string
		var plain bool
		if source, plain, err = i.r.hostSource(ctx, fs); err != nil {
			return m, err
		}
		attr := uint64(0)
		if fs.ReadOnly {
			attr = unix.MOUNT_ATTR_RDONLY
		}
		switch {
		case !plain:
			if fd, m.on, err = i.r.openImage(ctx, source, fs); err == nil {
				if err = setMount(fd, source, space, 0, false); err != nil {
					unix.Close(fd)
				}
			}
		case mapped:
			fd, m.deep, err = lockedTree(source, i.dir, space, attr)
		default:
			if m.deep, err = mountedBelow(source); err == nil {
				fd, err = openTree(unix.AT_FDCWD, source, nil, attr, true)
			}
		}
	}
	if err != nil {
		return m, err
	}
	m.File = os.NewFile(uintptr(fd), fs.Target)
	return m, nil
}

// makeTmpfs makes a tmpfs of at most size bytes that belongs to root inside.
// Its pages are the environment's memory. 0 is no limit but that.
func makeTmpfs(size uint64, uid, gid uint32, mapped bool) (int, error) {
	config, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(config)
	options := [][2]string{{"mode", "755"}, {"size", fmt.Sprint(size)}}
	if mapped {
		options = append(options, [2]string{"uid", fmt.Sprint(uid)}, [2]string{"gid", fmt.Sprint(gid)})
	}
	for _, o := range options {
		if err := unix.FsconfigSetString(config, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("tmpfs: %w", explain(config, err))
		}
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return -1, fmt.Errorf("tmpfs: %w", explain(config, err))
	}
	return unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
}

// lockedTree copies the mounts at source and locks them (mount_namespaces(7)):
// root of a user namespace who gets them can neither make what is read-only
// writable nor take away what lies over something else. The kernel locks what
// it copies for a mount namespace of another user, so one is made that lasts
// as long as this takes. dir has what to mount on: rootfs/ and the record.
func lockedTree(source, dir string, space *os.File, set uint64) (fd int, deep bool, err error) {
	result := make(chan error)
	go func() {
		goruntime.LockOSThread() // ends with the goroutine
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			at := filepath.Join(dir, "rootfs")
			if info, err := os.Stat(source); err == nil && !info.IsDir() {
				at = filepath.Join(dir, recordName)
			}
			if err := cloneMount(source, at, space, set, true); err != nil {
				return err
			}
			if deep, err = mountedBelow(at); err != nil {
				return err
			}
			pid, errno := clonePaused(unix.CLONE_NEWUSER | unix.CLONE_NEWNS)
			if errno != 0 {
				return errno
			}
			defer endPaused(pid)
			other, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
			if err != nil {
				return err
			}
			defer other.Close()
			if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWNS); err != nil {
				return err
			}
			fd, err = openTree(unix.AT_FDCWD, at, nil, 0, true)
			return err
		}()
	}()
	if err := <-result; err != nil {
		return -1, false, fmt.Errorf("mount of %s: %w", source, err)
	}
	return fd, deep, nil
}

// mountedBelow tells whether something is mounted below a directory, in the
// calling thread's mount namespace.
func mountedBelow(dir string) (bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	body, err := os.ReadFile("/proc/thread-self/mountinfo")
	return strings.Contains(unescape.Replace(string(body)), " "+real+"/"), err
}

// openTarget opens the mount point of name, making it, as a directory or an
// empty file like the source, when it is missing.
func openTarget(t *tree, name string, source int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return t.directory(name, 0o755)
	}
	return fileTarget(t, name)
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
