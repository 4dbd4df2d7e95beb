package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// recordedMount is what is to be found again of a filesystem: root inside may
// have moved it, or mounted something over it.
type recordedMount struct {
	Target string
	ID     uint64 // of the mount, as in mountinfo
	Deep   bool   `json:",omitempty"` // see freshMount

	Device   Device // of an image or block device
	ReadOnly bool   `json:",omitempty"`
}

// changeFilesystems makes the filesystems of a running environment what after
// says instead of before: all, or they are again what they were.
func (i *Instance) changeFilesystems(ctx context.Context, before, after []xml.Filesystem) error {
	var done []func(context.Context) error
	undo := func(err error) error {
		ctx := context.WithoutCancel(ctx)
		for _, back := range slices.Backward(done) {
			err = errors.Join(err, back(ctx))
		}
		return err
	}
	for _, fs := range after {
		was, there := filesystemAt(before, fs.Target)
		if there && was == fs {
			continue
		}
		var err error
		switch {
		case fs.Target == "/":
			err = i.changeRoot(ctx, was, fs)
			done = append(done, func(ctx context.Context) error { return i.changeRoot(ctx, fs, was) })
		case !there:
			err = i.attachFilesystem(ctx, fs)
			done = append(done, func(ctx context.Context) error { return i.detachFilesystem(ctx, fs.Target) })
		default:
			err = i.changeFilesystem(ctx, was, fs)
			done = append(done, func(ctx context.Context) error { return i.changeFilesystem(ctx, fs, was) })
		}
		if err != nil {
			done = done[:len(done)-1]
			return undo(err)
		}
	}
	for _, fs := range slices.Backward(before) { // what lies in another first
		if _, stays := filesystemAt(after, fs.Target); stays {
			continue
		}
		if err := i.detachFilesystem(ctx, fs.Target); err != nil {
			return undo(err)
		}
		done = append(done, func(ctx context.Context) error { return i.attachFilesystem(ctx, fs) })
	}
	return nil
}

func filesystemAt(list []xml.Filesystem, target string) (xml.Filesystem, bool) {
	n := slices.IndexFunc(list, func(fs xml.Filesystem) bool { return fs.Target == target })
	if n < 0 {
		return xml.Filesystem{}, false
	}
	return list[n], true
}

// changeFilesystem changes the size of a tmpfs, whose content stays. Anything
// else is another mount in the place of the old one, unless that is in use.
func (i *Instance) changeFilesystem(ctx context.Context, was, fs xml.Filesystem) error {
	sized := was
	sized.Size = fs.Size
	if fs.Type == "ram" && sized == fs {
		return i.resizeTmpfs(ctx, fs)
	}
	if err := i.detachFilesystem(ctx, fs.Target); err != nil {
		return err
	}
	err := i.attachFilesystem(ctx, fs)
	if err != nil {
		err = errors.Join(err, i.attachFilesystem(context.WithoutCancel(ctx), was))
	}
	return err
}

// changeRoot changes the limit of the space of a root and refuses what it is
// made with.
func (i *Instance) changeRoot(ctx context.Context, was, fs xml.Filesystem) error {
	limited := was
	limited.HardLimit, limited.SoftLimit = fs.HardLimit, fs.SoftLimit
	if limited == fs {
		return i.limitRoot(ctx, fs)
	}
	return fmt.Errorf("the root of a running environment cannot be another or change between writable and read-only: use --config, it holds from the next start on: %w", ErrUnsupported)
}

// limitRoot is called with its file systems kept from being frozen.
func (i *Instance) limitRoot(ctx context.Context, fs xml.Filesystem) error {
	if fs.Type == "file" {
		return limitImage(fs, func() error { return i.r.growRoot(ctx, i, fs, fs.HardLimit) })
	}
	return i.r.limitSpace(ctx, i.uuid, fs)
}

// attachFilesystem mounts one. Where that is, is looked up inside, as root
// there; the mount is recorded before it is made.
func (i *Instance) attachFilesystem(ctx context.Context, fs xml.Filesystem) error {
	if fs.Type == "tmp" {
		return nil // the stub's, there for good
	}
	if err := refuseLimit(fs); err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("filesystem at %s of %s: %w", fs.Target, i.Name(), err) }
	var m freshMount
	if fs.Type != "bind" {
		var err error
		if m, err = i.makeMount(ctx, fs); err != nil {
			return fail(err)
		}
	}
	found, err := patiently(ctx, i, func() (places, error) { return i.places(fs, m) })
	if err != nil {
		m.Close()
		return fail(err)
	}
	defer found.close()
	id, err := mountID(int(found.mount.Fd()), "")
	if err != nil {
		return fail(err)
	}
	made := recordedMount{Target: fs.Target, ID: id, Deep: m.deep, Device: m.on, ReadOnly: fs.ReadOnly}
	err = i.noteMounts(func(list []recordedMount) []recordedMount { return append(list, made) })
	if err != nil {
		return fail(err)
	}
	_, err = patientlyOr(ctx, i, func() (none struct{}, err error) { // who waits for an answer about a directory has it locked
		return none, i.inside("filesystem", []string{"mnt"}, func() error {
			return unix.MoveMount(int(found.mount.Fd()), "", int(found.target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
		})
	}, func(struct{}) { i.unmountRecorded(made) })
	if err != nil {
		return fail(errors.Join(err, i.forgetMount(id)))
	}
	return nil
}

// places are a mount and where it goes.
type places struct{ mount, target *os.File }

func (p places) close() {
	for _, f := range []*os.File{p.mount, p.target} {
		if f != nil {
			f.Close()
		}
	}
}

// places looks up the mount point, making it, as a directory or an empty file
// like what is to be mounted, when it is missing; and the source of type
// bind, a directory inside.
func (i *Instance) places(fs xml.Filesystem, m freshMount) (p places, err error) {
	p.mount = m.File
	if fs.Type == "bind" {
		source, err := i.lookUp(fs.Source, func(t *tree) (int, error) { return t.open(fs.Source, unix.O_PATH) })
		if err != nil {
			return p, fmt.Errorf("the source %s inside: %w", fs.Source, err)
		}
		defer source.Close()
		attr := uint64(0)
		if fs.ReadOnly {
			attr = unix.MOUNT_ATTR_RDONLY
		}
		err = i.inside("filesystem", []string{"mnt"}, func() error {
			fd, err := openTree(int(source.Fd()), "", nil, attr, true)
			if err == nil {
				p.mount = os.NewFile(uintptr(fd), fs.Source)
			}
			return err
		})
		if err != nil {
			return p, err
		}
	}
	p.target, err = i.lookUp(fs.Target, func(t *tree) (int, error) { return openTarget(t, fs.Target, int(p.mount.Fd())) })
	if err != nil {
		err = fmt.Errorf("the mount point inside: %w", err)
	}
	return p, err
}

// detachFilesystem unmounts one, wherever root inside has moved it. One that
// is gone already is no error.
func (i *Instance) detachFilesystem(ctx context.Context, target string) error {
	m, ok := i.mountAt(target)
	if !ok {
		return nil
	}
	_, err := patiently(ctx, i, func() (none struct{}, err error) { return none, i.unmountRecorded(m) })
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("the filesystem at %s of %s cannot be detached, it is in use inside or something is mounted below it: %w", target, i.Name(), ErrMountBusy)
	}
	if err != nil {
		return fmt.Errorf("filesystem at %s of %s: %w", target, i.Name(), err)
	}
	return i.forgetMount(m.ID)
}

func (i *Instance) unmountRecorded(m recordedMount) error {
	where, err := i.mountPlace(m.ID)
	if err != nil || where == "" {
		return err
	}
	return i.inside("filesystem", []string{"mnt"}, func() error { return unmount(where, m) })
}

// unmount unmounts m at where, in the calling thread's mount namespace. No
// descriptor of it may be open, or it would be in use.
func unmount(where string, m recordedMount) error {
	t, err := openTreeRoot("/")
	if err != nil {
		return err
	}
	defer t.Close()
	dir, err := t.open(path.Dir(where), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	base := path.Base(where)
	if id, err := mountID(dir, base); err != nil {
		return err
	} else if id != m.ID {
		return unix.EBUSY // something else is mounted over it
	}
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	flags := unix.UMOUNT_NOFOLLOW
	if m.Deep {
		flags |= unix.MNT_DETACH // with those below, which cannot always be unmounted one by one
	}
	return unix.Unmount(base, flags)
}

// mountID is the number of the mount that name of a directory is on, as mount
// point or below.
func mountID(dir int, name string) (uint64, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dir, name, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

// mountPlace finds where a mount is inside; "" when it is gone.
func (i *Instance) mountPlace(id uint64) (string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", i.rec.Init))
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<16) // of two paths
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && fields[0] == strconv.FormatUint(id, 10) {
			return unescape.Replace(fields[4]), nil
		}
	}
	return "", lines.Err()
}

// resizeTmpfs changes how much a tmpfs may hold.
func (i *Instance) resizeTmpfs(ctx context.Context, fs xml.Filesystem) error {
	m, ok := i.mountAt(fs.Target)
	if !ok {
		return fmt.Errorf("the filesystem at %s of %s is not there", fs.Target, i.Name())
	}
	_, err := patiently(ctx, i, func() (none struct{}, err error) {
		where, err := i.mountPlace(m.ID)
		if err != nil {
			return none, err
		}
		return none, i.inside("filesystem", []string{"mnt"}, func() error {
			t, err := openTreeRoot("/")
			if err != nil {
				return err
			}
			defer t.Close()
			fd, err := t.open(where, unix.O_PATH)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if id, err := mountID(fd, ""); err != nil || id != m.ID {
				return errors.Join(err, errors.New("something is mounted over it"))
			}
			config, err := unix.Fspick(fd, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(config)
			if err := unix.FsconfigSetString(config, "size", strconv.FormatUint(fs.Size, 10)); err != nil {
				return err
			}
			if err := unix.FsconfigReconfigure(config); err != nil {
				return explain(config, err)
			}
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("size of the filesystem at %s: %w", fs.Target, err)
	}
	return nil
}

// restoreFilesystems makes those below the root what list says, whatever an
// earlier daemon was about to do with them when it was killed.
func (i *Instance) restoreFilesystems(ctx context.Context, list []xml.Filesystem) error {
	i.mu.Lock()
	recorded := slices.Clone(i.rec.Mounts)
	i.mu.Unlock()
	var errs []error
	for _, m := range slices.Backward(recorded) {
		if _, wanted := filesystemAt(list, m.Target); wanted {
			if where, err := i.mountPlace(m.ID); err != nil || where != "" {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, i.detachFilesystem(ctx, m.Target))
	}
	if len(list) > 0 && list[0].Type != "file" { // an image has its size
		errs = append(errs, i.limitRoot(ctx, list[0]))
	}
	for _, fs := range list {
		if _, there := i.mountAt(fs.Target); !there && fs.Target != "/" {
			errs = append(errs, i.attachFilesystem(ctx, fs))
		}
	}
	return errors.Join(errs...)
}

func (i *Instance) mountAt(target string) (recordedMount, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, m := range slices.Backward(i.rec.Mounts) {
		if m.Target == target {
			return m, true
		}
	}
	return recordedMount{}, false
}

func (i *Instance) forgetMount(id uint64) error {
	return i.noteMounts(func(list []recordedMount) []recordedMount {
		return slices.DeleteFunc(list, func(m recordedMount) bool { return m.ID == id })
	})
}

// noteMounts changes what is recorded of the mounts.
func (i *Instance) noteMounts(change func([]recordedMount) []recordedMount) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Mounts = change(slices.Clone(i.rec.Mounts))
	return i.rec.save(i.dir)
}
