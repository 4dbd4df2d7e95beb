package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// What is read or written inside is found from the environment's root, in its
// mount namespace, by one of its users: a link leads to where it leads inside,
// and a directory of the host that is mounted there gives no more than that
// user may have. Its root, too, is a user here without privileges; what it may
// not open so, it may by those that it has inside, see openAsRoot.

const (
	// fileTimeout is how long somebody may wait for a file.
	fileTimeout = 10 * time.Second
	// maxFileWaits bounds for how many in one environment; others wait for these.
	maxFileWaits = 4
)

// patiently runs do and waits for it, but not for ever: a file system that
// somebody inside serves (FUSE) may never answer. What waits then goes on to
// wait until the environment ends, which ends such a file system, too.
func patiently[T any](ctx context.Context, i *Instance, do func() (T, error)) (T, error) {
	return patientlyOr(ctx, i, do, func(T) {})
}

// patientlyOr is patiently for what is there to stay: what do has done when nobody
// waits for it any more, and was told that it cannot be had, is undone.
func patientlyOr[T any](ctx context.Context, i *Instance, do func() (T, error), undo func(T)) (value T, err error) {
	ctx, cancel := context.WithTimeout(ctx, fileTimeout)
	defer cancel()
	select {
	case i.waits <- struct{}{}:
	case <-ctx.Done():
		return value, fmt.Errorf("%d files of %s are waited for already: try again later: %w", maxFileWaits, i.Name(), ctx.Err())
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		defer func() { <-i.waits }()
		value, err := do()
		select {
		case done <- result{value, err}:
		case <-ctx.Done():
			if err == nil {
				undo(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return value, fmt.Errorf("a file of %s cannot be had: %w", i.Name(), ctx.Err())
	}
}

// inTime is patiently for what gives nothing back.
func (i *Instance) inTime(do func() error) error {
	_, err := patiently(context.Background(), i, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// Owner is a user and a group by their numbers inside; root is the zero value.
type Owner struct{ UID, GID uint32 }

// inTree is patiently for something in the environment's tree, as one of its
// users.
func inTree[T any](ctx context.Context, i *Instance, who Owner, name string, do func(*tree) (T, error)) (T, error) {
	return patiently(ctx, i, func() (value T, err error) {
		err = i.asUser(who, name, func(t *tree) error {
			value, err = do(t)
			return err
		})
		return value, err
	})
}

// asUser is inside with the environment's tree and the rights of a user.
func (i *Instance) asUser(who Owner, name string, do func(*tree) error) error {
	uid, gid := i.hostIDs(who)
	rights := uint32(0)
	if who == (Owner{}) && i.rec.IDMap.Mode == xml.Privileged { // it is root here, too
		var err error
		if rights, err = i.fileRights(); err != nil {
			return err
		}
	}
	return i.inside(name, []string{"mnt"}, func() error {
		t, err := openTreeRoot("/")
		if err != nil {
			return err
		}
		defer t.Close()
		if err := becomeUser(uid, gid, rights); err != nil {
			return err
		}
		return do(t)
	})
}

// openAs opens a regular file as a user.
func (i *Instance) openAs(who Owner, name string, flags int, mode uint32) (fd int, err error) {
	err = i.asUser(who, name, func(t *tree) error {
		fd, err = openRegular(t.fd, name, flags, mode)
		return err
	})
	if !i.mayMore(who, err) {
		return fd, err
	}
	if fd, err = i.openAsRoot(name, regularFlags(flags), mode); err == nil {
		err = acceptRegular(fd, flags)
	}
	return fd, err
}

// mayMore tells whether a user has capabilities for what was denied.
func (i *Instance) mayMore(who Owner, err error) bool {
	return errors.Is(err, unix.EACCES) && who == (Owner{}) && i.rec.IDMap.Mode != xml.Privileged
}

// lookUp opens a path (O_PATH), or makes it, as root inside.
func (i *Instance) lookUp(name string, open func(*tree) (int, error)) (f *os.File, err error) {
	fd := -1
	err = i.asUser(Owner{}, name, func(t *tree) error {
		fd, err = open(t)
		return err
	})
	if i.mayMore(Owner{}, err) {
		fd, err = i.openAsRoot(name, unix.O_PATH, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// File is a regular file inside that is open.
type File struct {
	i *Instance
	f *os.File
}

// OpenFile opens a regular file inside. Flags are those of open(2); a file
// that is made belongs to the user.
func (i *Instance) OpenFile(ctx context.Context, who Owner, name string, flags int, mode os.FileMode) (*File, error) {
	if flags&os.O_CREATE == 0 {
		mode = 0 // openat2(2) insists
	}
	f, err := patiently(ctx, i, func() (*os.File, error) {
		fd, err := i.openAs(who, name, flags, uint32(mode.Perm()))
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil // closed by the garbage collector if it comes too late
	})
	if err != nil {
		return nil, err
	}
	return &File{i, f}, nil
}

// Read reads count bytes, or with io.EOF what is left.
func (f *File) Read(ctx context.Context, count int) ([]byte, error) {
	return patiently(ctx, f.i, func() ([]byte, error) {
		body := make([]byte, count)
		n, err := io.ReadFull(f.f, body)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return body[:n], err
	})
}

// Write writes all of p.
func (f *File) Write(ctx context.Context, p []byte) (int, error) {
	return patiently(ctx, f.i, func() (int, error) { return f.f.Write(p) })
}

// Seek is lseek(2).
func (f *File) Seek(ctx context.Context, offset int64, whence int) (int64, error) {
	return patiently(ctx, f.i, func() (int64, error) { return f.f.Seek(offset, whence) })
}

// Sync is fsync(2).
func (f *File) Sync(ctx context.Context) error {
	_, err := patiently(ctx, f.i, func() (struct{}, error) { return struct{}{}, f.f.Sync() })
	return err
}

// Close closes the file and does not wait for it.
func (f *File) Close() { go f.f.Close() }

// ReadFile reads a regular file of at most limit bytes.
func (i *Instance) ReadFile(ctx context.Context, who Owner, name string, limit int) ([]byte, error) {
	body, err := patiently(ctx, i, func() ([]byte, error) {
		fd, err := i.openAs(who, name, unix.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return readRegular(fd, limit+1)
	})
	if err == nil && len(body) > limit {
		err = fmt.Errorf("%s of %s has more than %d bytes", name, i.Name(), limit)
	}
	return body, err
}

// ReadFiles reads the regular files of a directory that have no more than limit
// bytes, of most entries; what else there is is left out.
func (i *Instance) ReadFiles(ctx context.Context, who Owner, name string, most, limit int) ([][]byte, error) {
	return inTree(ctx, i, who, name, func(t *tree) ([][]byte, error) { return t.readAll(name, most, limit) })
}

// ReplaceFile makes a file of a user say body: it is the old or the new one
// at any moment. Its directory is made, for its owner alone, if it is not
// there.
func (i *Instance) ReplaceFile(ctx context.Context, who Owner, name string, body []byte, mode os.FileMode) error {
	_, err := inTree(ctx, i, who, name, func(t *tree) (none struct{}, err error) {
		dir, err := t.directory(path.Dir(name), 0o700)
		if err != nil {
			return none, err
		}
		defer unix.Close(dir)
		return none, replaceAt(dir, path.Base(name), body, uint32(mode.Perm()))
	})
	return err
}

func replaceAt(dir int, base string, body []byte, mode uint32) (err error) {
	temporary := fmt.Sprintf(".%.200s.%d", base, time.Now().UnixNano())
	fd, err := openIn(dir, temporary, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temporary)
	defer f.Close()
	_, err = f.Write(body)
	err = errors.Join(err, unix.Fchmod(fd, mode), f.Sync())
	if err == nil {
		err = unix.Renameat(dir, temporary, dir, base)
	}
	if err != nil {
		unix.Unlinkat(dir, temporary, 0)
	}
	return err
}

// hostIDs are the host's numbers of a user and a group inside.
func (i *Instance) hostIDs(o Owner) (uid, gid uint32) {
	if i.rec.IDMap.Mode == xml.Privileged {
		return o.UID, o.GID
	}
	return hostID(ranges(i.rec.IDMap.UIDs), o.UID), hostID(ranges(i.rec.IDMap.GIDs), o.GID)
}

// Account is a line of /etc/passwd inside.
type Account struct {
	Owner
	Home string
}

// Account looks up a user by name.
func (i *Instance) Account(ctx context.Context, name string) (a Account, err error) {
	body, err := i.ReadFile(ctx, Owner{}, "/etc/passwd", 1<<20)
	if err != nil {
		return a, err
	}
	line := accountLine(body, name)
	if line == nil {
		return a, fmt.Errorf("there is no user %q in %s", name, i.Name())
	}
	return Account{Owner{number(line[2]), number(line[3])}, line[5]}, nil
}

// FilesystemSpace is the space of what is mounted at a point inside.
func (i *Instance) FilesystemSpace(ctx context.Context, point string) (total, used uint64, err error) {
	if s, ok := subvolumeSpace(i.r.privateDir(i.uuid)); ok && point == "/" && i.rec.Template != "" {
		return s.Capacity, s.Allocation, nil
	}
	fs, err := inTree(ctx, i, Owner{}, point, func(t *tree) (fs unix.Statfs_t, err error) {
		fd, err := t.open(point, unix.O_PATH)
		if err != nil {
			return fs, err
		}
		defer unix.Close(fd)
		return fs, unix.Fstatfs(fd, &fs)
	})
	unit := uint64(max(fs.Frsize, fs.Bsize))
	return fs.Blocks * unit, (fs.Blocks - min(fs.Bfree, fs.Blocks)) * unit, err
}
