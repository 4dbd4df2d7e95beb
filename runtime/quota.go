package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// The space an environment's own layer takes is limited by a project quota
// (quotactl(2), xfs_quota(8)) of the file system it is on, ext4 or xfs; on btrfs
// as quota_btrfs.go tells. What is made in a directory of a project belongs to
// that project, and df shows its limit as the size. Root inside can change
// neither, as both are for the host's user namespace.
//
// The project's number is where the kernel has it, on the directory, and so is
// gone with it. An environment has one from the first limit on.

// firstProject and projects are the numbers that environments get. Nothing
// hands out such numbers; those in use by others are avoided.
const (
	firstProject = 0x767a0000 // "vz"
	projects     = 1 << 16
)

func ownProject(id uint32) bool { return id >= firstProject && id < firstProject+projects }

// ErrTooMuchData is returned when the disk is to be less than what is on it.
var ErrTooMuchData = errors.New("more than that is in use")

// fsxattr is struct fsxattr of <linux/fs.h>.
type fsxattr struct {
	Flags, ExtentSize, Extents, Project, CowExtentSize uint32
	_                                                  [8]byte
}

// ioctl numbers of <linux/fs.h> and commands of <linux/quota.h>, which x/sys
// has not.
const (
	getFSXattr     = 0x801c581f
	setFSXattr     = 0x401c5820
	projectInherit = 0x200

	projectQuota  = 2
	quotaGet      = 0x800007<<8 | projectQuota
	quotaSet      = 0x800008<<8 | projectQuota
	quotaState    = ('X'<<8|8)<<8 | projectQuota
	quotaLimits   = 1      // QIF_BLIMITS
	quotaEnforced = 1 << 5 // FS_QUOTA_PDQ_ENFD
	quotaUnit     = 1024
)

// diskQuota is struct if_dqblk of <linux/quota.h>; limits are in KiB.
type diskQuota struct {
	HardKiB, SoftKiB, Used       uint64
	InodeHard, InodeSoft, Inodes uint64
	BlockTime, InodeTime         uint64
	Valid                        uint32
}

// quota is the limit of what a directory holds.
type quota struct{ dir *os.File }

// openQuota opens the quota of an environment's layer. Where the file system
// has none the error says how to get it.
func openQuota(layers string) (*quota, error) {
	dir, err := os.Open(layers)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		dir.Close()
		return nil, err
	}
	q := &quota{dir}
	state := [256]byte{1} // struct fs_quota_statv, of version 1
	err = q.control(quotaState, 0, unsafe.Pointer(&state))
	if err == nil && binary.NativeEndian.Uint16(state[2:])&quotaEnforced != 0 {
		return q, nil
	}
	dir.Close()
	return nil, noQuota(layers, int64(fs.Type))
}

func noQuota(dir string, magic int64) error {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return fmt.Errorf("the disk space of an environment cannot be limited: the ext4 file system of %s has no project quota: "+
			"unmount it, run 'tune2fs -O project,quota -Q prjquota DEVICE' and mount it with the option prjquota: %w", dir, ErrUnsupported)
	case unix.XFS_SUPER_MAGIC:
		return fmt.Errorf("the disk space of an environment cannot be limited: the xfs file system of %s has no project quota: mount it with the option prjquota: %w", dir, ErrUnsupported)
	}
	return fmt.Errorf("the disk space of an environment cannot be limited: the file system of %s has no project quota: use ext4 or xfs, mounted with the option prjquota, or btrfs: %w", dir, ErrUnsupported)
}

func (q *quota) close() { q.dir.Close() }

// control is quotactl_fd(2).
func (q *quota) control(command int, id uint32, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, q.dir.Fd(), uintptr(command), uintptr(id), uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// get reads what a project uses and may use. xfs knows nothing of one that
// never used anything.
func (q *quota) get(project uint32) (d diskQuota, err error) {
	err = q.control(quotaGet, project, unsafe.Pointer(&d))
	if err == unix.ENOENT || err == unix.ESRCH {
		return diskQuota{}, nil
	}
	return d, err
}

func (q *quota) set(project uint32, hard, soft uint64) error {
	d := diskQuota{HardKiB: hard, SoftKiB: soft, Valid: quotaLimits}
	return q.control(quotaSet, project, unsafe.Pointer(&d))
}

// limit makes what fs says the limit, making the directory and what is in it a
// project if it is none. There must not be more in it than that already.
func (q *quota) limit(ctx context.Context, fs xml.Filesystem, numbers *projectNumbers) error {
	project, err := projectOf(q.dir)
	if err != nil {
		return err
	}
	hard, soft := kib(fs.HardLimit), kib(fs.SoftLimit)
	if project != 0 && !ownProject(project) { // others may have files there
		if hard == 0 && soft == 0 {
			return nil
		}
		return fmt.Errorf("the space of %s cannot be limited: it is of project %d, whose quota is not ours to set (xfs_quota, setquota -P): %w",
			q.dir.Name(), project, ErrUnsupported)
	}
	if project == 0 {
		if hard == 0 && soft == 0 && !q.isNew() {
			return nil // it would take long for nothing
		}
		if project, err = numbers.reserve(q); err != nil {
			return err
		}
		defer numbers.release(project)
		if err := q.give(ctx, project); err != nil {
			return fmt.Errorf("make %s a project of its own for the quota: %w", q.dir.Name(), err)
		}
	}
	now, err := q.get(project)
	if err != nil {
		return fmt.Errorf("read the quota of %s: %w", q.dir.Name(), err)
	}
	if hard != 0 && hard*quotaUnit < now.Used {
		return tooMuchData(hard*quotaUnit, now.Used)
	}
	if err := q.set(project, hard, soft); err != nil {
		return fmt.Errorf("set the quota of %s: %w", q.dir.Name(), err)
	}
	return nil
}

func tooMuchData(limit, used uint64) error {
	return fmt.Errorf("the disk space cannot be limited to %d KiB, %d KiB are in use: delete files inside, or choose more: %w",
		limit/quotaUnit, kib(used), ErrTooMuchData)
}

// free takes the limit off a project that is about to have nothing.
func (q *quota) free() error {
	project, err := projectOf(q.dir)
	if err != nil || !ownProject(project) {
		return err
	}
	return q.set(project, 0, 0)
}

// kib is a limit as the kernel has it.
func kib(bytes uint64) uint64 { return (bytes + quotaUnit - 1) / quotaUnit }

// projectNumbers are numbers that directories are being given: that takes as long
// as there are files, and only then is it seen at the directory.
type projectNumbers struct {
	mu    sync.Mutex
	given map[uint32]bool
}

// reserve finds a number that nobody uses: no sibling of the directory has it,
// and nothing is counted for it. A limit that is left of one whose directory
// somebody removed will be replaced.
func (p *projectNumbers) reserve(q *quota) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := map[uint32]bool{}
	parent, err := os.Open(filepath.Dir(q.dir.Name()))
	if err != nil {
		return 0, err
	}
	defer parent.Close()
	siblings, err := readNames(int(parent.Fd()))
	if err != nil {
		return 0, err
	}
	for _, name := range siblings {
		f, err := openPlain(parent, name)
		if f == nil || err != nil {
			continue
		}
		if id, err := projectOf(f); err == nil {
			taken[id] = true
		}
		f.Close()
	}
	for id := uint32(firstProject); id < firstProject+projects; id++ {
		if taken[id] || p.given[id] {
			continue
		}
		if d, err := q.get(id); err != nil {
			return 0, err
		} else if d.Used == 0 && d.Inodes == 0 {
			if p.given == nil {
				p.given = map[uint32]bool{}
			}
			p.given[id] = true
			return id, nil
		}
	}
	return 0, fmt.Errorf("no project number is free between %d and %d", firstProject, firstProject+projects)
}

func (p *projectNumbers) release(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.given, id)
}

// isNew tells whether nothing is in the layer yet.
func (q *quota) isNew() bool {
	upper, err := openPlain(q.dir, "upper")
	if err != nil || upper == nil {
		return false
	}
	defer upper.Close()
	some := errors.New("there is something")
	return eachName(int(upper.Fd()), func(string) error { return some }) == nil
}

// give makes the directory and what is in it a project, itself at last: one
// that has a number is wholly of that project.
func (q *quota) give(ctx context.Context, project uint32) error {
	err := eachName(int(q.dir.Fd()), func(name string) error { return giveBelow(ctx, q.dir, name, project, 0) })
	if err != nil {
		return err
	}
	return setProject(q.dir, project)
}

// projectOf reads the project of a directory that gives it to what is made in
// it; 0 is none.
func projectOf(f *os.File) (uint32, error) {
	var x fsxattr
	err := ioctl(f, getFSXattr, unsafe.Pointer(&x))
	if err == unix.ENOTTY || err == unix.EOPNOTSUPP || x.Flags&projectInherit == 0 {
		return 0, nil
	}
	return x.Project, err
}

// maxDepth bounds how many directories are open at once.
const maxDepth = 1000

// giveBelow gives an entry of a directory and all below it to a project. The
// environment may be running and making and moving files meanwhile, so nothing
// is opened that is not known to be a file or a directory, and a directory
// comes before what is in it. Links and nodes stay outside: they take no space.
func giveBelow(ctx context.Context, dir *os.File, name string, project uint32, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	f, err := openPlain(dir, name)
	if f == nil || err != nil {
		return err
	}
	defer f.Close()
	if other, err := mountedOver(dir, f); other || err != nil {
		return err
	}
	if err := setProject(f, project); err != nil {
		return err
	}
	err = eachName(int(f.Fd()), func(name string) error { return giveBelow(ctx, f, name, project, depth+1) })
	if err == unix.ENOTDIR {
		return nil
	}
	return err
}

// mountedOver tells whether an entry of a directory is of another file system.
func mountedOver(dir, entry *os.File) (bool, error) {
	var above, st unix.Stat_t
	err := errors.Join(unix.Fstat(int(dir.Fd()), &above), unix.Fstat(int(entry.Fd()), &st))
	return above.Dev != st.Dev, err
}

// setProject makes an open file or directory one of a project; what is made in
// a directory from then on is, too.
func setProject(f *os.File, project uint32) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var x fsxattr
	if err := ioctl(f, getFSXattr, unsafe.Pointer(&x)); err != nil {
		return err
	}
	x.Project = project
	if info.IsDir() {
		x.Flags |= projectInherit
	}
	return ioctl(f, setFSXattr, unsafe.Pointer(&x))
}

// openPlain opens a regular file or directory of a directory; nil for anything
// else, and for what is gone.
func openPlain(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil, nil
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("somebody inside has a lease of the file %s: end what holds it, 'lslocks' tells", name)
	}
	return f, errnoOf(err)
}

func ioctl(f *os.File, request uintptr, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(data))
	if errno != 0 {
		return errno
	}
	return nil
}

// limitSpace puts the limit of a root in force: of the environment's own layer,
// or of the directory that is its root.
func (r *Runtime) limitSpace(ctx context.Context, uuid [16]byte, fs xml.Filesystem) error {
	switch fs.Type {
	case "template":
		return r.limitSpaceOf(ctx, r.privateDir(uuid), fs)
	case "mount":
		return r.limitSpaceOf(ctx, fs.Source, fs)
	}
	return refuseLimit(fs)
}

func (r *Runtime) limitSpaceOf(ctx context.Context, dir string, fs xml.Filesystem) error {
	switch btrfs, _ := onBtrfs(dir); {
	case btrfs && fs.Type == "template":
		return limitSubvolume(dir, fs)
	case btrfs && fs.HardLimit == 0 && fs.SoftLimit == 0:
		return nil // one of the administrator's, perhaps
	case btrfs:
		return fmt.Errorf("the space of %s cannot be limited here, as it is on btrfs: 'btrfs qgroup limit' limits a subvolume, and a template's layer takes <space_hard_limit>: %w",
			dir, ErrUnsupported)
	}
	q, err := openQuota(dir)
	if errors.Is(err, ErrUnsupported) && fs.HardLimit == 0 && fs.SoftLimit == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	defer q.close()
	return q.limit(ctx, fs, &r.projects)
}

// refuseLimit refuses a limit of a filesystem that can have none.
func refuseLimit(fs xml.Filesystem) error {
	if fs.HardLimit == 0 && fs.SoftLimit == 0 {
		return nil
	}
	instead := "it has the size of its source"
	switch {
	case fs.Type == "ram":
		instead = "the size is in its <source>"
	case fs.Target == "/":
		instead += ", and 'virsh blockresize' makes its file system as large as that"
	case fs.Type == "mount" || fs.Type == "bind":
		instead = "a directory can have a limit as the root only"
	}
	return fmt.Errorf("<space_hard_limit> of the filesystem of type '%s' at %s cannot be held: %s: %w", fs.Type, fs.Target, instead, ErrUnsupported)
}

// freeSpace gives back what limitSpace took.
func (r *Runtime) freeSpace(uuid [16]byte) {
	if q, err := openQuota(r.privateDir(uuid)); err == nil {
		q.free()
		q.close()
	}
}
