package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// btrfs has no project quota. It counts what a subvolume refers to, in a qgroup
// of its own that can have a limit (btrfs-quota(8), btrfs-qgroup(8)). So the
// private directory of an environment becomes a subvolume when it first starts
// with a limit, see separate.
//
// It is not one before because overlayfs shows the inode numbers that files
// have below: those of two subvolumes can be the same, and a program that tells
// hard links by them may then take two files for one.
//
// statfs(2) of btrfs knows no qgroups: df inside shows the whole file system.

// volumeArgs is struct btrfs_ioctl_vol_args of <linux/btrfs.h>, qgroupLimit
// struct btrfs_ioctl_qgroup_limit_args, treeName struct
// btrfs_ioctl_ino_lookup_args, btrfsInfo the beginning of struct
// btrfs_ioctl_fs_info_args.
type (
	volumeArgs struct {
		FD   int64
		Name [4088]byte
	}
	qgroupLimit struct {
		Group                                                       uint64 // 0: of the subvolume it is asked of
		Flags, MaxReferenced, MaxExclusive, Reserved, ReservedOwned uint64
	}
	treeName struct {
		Tree, Object uint64
		Name         [4080]byte
	}
	btrfsInfo struct {
		MaxID, Devices uint64
		ID             [16]byte
		_              [992]byte
	}
)

// ioctl numbers and constants of <linux/btrfs.h> and <linux/btrfs_tree.h>.
const (
	btrfsSnapshotCreate  = 0x50009401
	btrfsSubvolumeCreate = 0x5000940e
	btrfsLookup          = 0xd0009412
	btrfsFSInfo          = 0x8400941f
	btrfsQgroupLimit     = 0x8030942b

	btrfsTop        = 256 // BTRFS_FIRST_FREE_OBJECTID: number of a subvolume's top directory
	limitReferenced = 1   // BTRFS_QGROUP_LIMIT_MAX_RFER
	btrfsUnlimited  = ^uint64(0)
)

// onBtrfs tells whether a directory is on btrfs, and whether it is a subvolume.
func onBtrfs(dir string) (btrfs, subvolume bool) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	btrfs = unix.Statfs(dir, &fs) == nil && fs.Type == unix.BTRFS_SUPER_MAGIC
	return btrfs, btrfs && unix.Lstat(dir, &st) == nil && st.Ino == btrfsTop && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// makeSubvolume makes an empty subvolume.
func makeSubvolume(name string) error {
	if err := subvolumeIoctl(btrfsSubvolumeCreate, name, 0); err != nil {
		return err
	}
	return os.Chmod(name, 0o700)
}

// snapshotSubvolume makes a subvolume that has all that another has, sharing the
// data. What is limited is the other.
func snapshotSubvolume(of, name string) error {
	source, err := os.Open(of)
	if err != nil {
		return err
	}
	defer source.Close()
	return subvolumeIoctl(btrfsSnapshotCreate, name, int64(source.Fd()))
}

func subvolumeIoctl(request uintptr, name string, source int64) error {
	parent, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	args := volumeArgs{FD: source}
	copy(args.Name[:len(args.Name)-1], filepath.Base(name))
	if err := ioctl(parent, request, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("make the subvolume %s: %w", name, err)
	}
	return nil
}

// qgroup is a subvolume's own.
type qgroup struct {
	subvolume *os.File
	sysfs     string // its directory in sysfs
}

// openQgroup opens that of the subvolume a directory is in.
func openQgroup(dir string) (*qgroup, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	q := &qgroup{subvolume: f}
	if q.sysfs, err = qgroupPlace(f); err != nil {
		f.Close()
		return nil, err
	}
	return q, nil
}

// qgroupPlace finds the qgroup in sysfs. Without quotas the error says how to
// have them.
func qgroupPlace(subvolume *os.File) (string, error) {
	var info btrfsInfo
	if err := ioctl(subvolume, btrfsFSInfo, unsafe.Pointer(&info)); err != nil {
		return "", fmt.Errorf("btrfs of %s: %w", subvolume.Name(), err)
	}
	tree := treeName{Object: btrfsTop}
	if err := ioctl(subvolume, btrfsLookup, unsafe.Pointer(&tree)); err != nil {
		return "", fmt.Errorf("subvolume %s: %w", subvolume.Name(), err)
	}
	groups := fmt.Sprintf("/sys/fs/btrfs/%s/qgroups", formatUUID(info.ID))
	enabled, err := os.ReadFile(groups + "/enabled") // since Linux 6.1
	if !exists(groups) || err == nil && strings.TrimSpace(string(enabled)) != "1" {
		return "", fmt.Errorf("the disk space of an environment cannot be limited: quotas are off in the btrfs of %s: run 'btrfs quota enable %s': %w",
			subvolume.Name(), filepath.Dir(subvolume.Name()), ErrUnsupported)
	}
	return fmt.Sprintf("%s/0_%d", groups, tree.Tree), nil
}

func (q *qgroup) close() { q.subvolume.Close() }

func (q *qgroup) number(name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(q.sysfs, name))
	n := parseNumber([]byte(strings.TrimSpace(string(text))))
	if err == nil && !n.Known() {
		err = errors.New("it is no number")
	}
	if err != nil {
		return 0, fmt.Errorf("read the quota of %s: %w", q.subvolume.Name(), err)
	}
	return uint64(n), nil
}

// used is what counts against the limit in bytes, as of the last transaction,
// which is at most 30 seconds ago.
func (q *qgroup) used() (uint64, error) { return q.number("referenced") }

// limit is in bytes; 0 is none.
func (q *qgroup) limit() (uint64, error) {
	flags, err := q.number("limit_flags")
	if err != nil || flags&limitReferenced == 0 {
		return 0, err
	}
	return q.number("max_referenced")
}

// setLimit refuses a limit that is below what is in use.
func (q *qgroup) setLimit(hard uint64) error {
	if err := unix.Syncfs(int(q.subvolume.Fd())); err != nil { // or it is not counted yet
		return err
	}
	used, err := q.used()
	if err != nil {
		return err
	}
	if hard != 0 && hard < used {
		return tooMuchData(hard, used)
	}
	args := qgroupLimit{Flags: limitReferenced, MaxReferenced: hard}
	if hard == 0 {
		args.MaxReferenced = btrfsUnlimited
	}
	if err := ioctl(q.subvolume, btrfsQgroupLimit, unsafe.Pointer(&args)); err != nil {
		return fmt.Errorf("set the quota of %s: %w", q.subvolume.Name(), err)
	}
	return nil
}

// limitSubvolume puts what fs says in force for a private directory on btrfs.
func limitSubvolume(dir string, fs xml.Filesystem) error {
	hard := kib(fs.HardLimit) * quotaUnit
	if hard == 0 && fs.SoftLimit != 0 {
		return fmt.Errorf("btrfs has no soft limits of disk space: give a <space_hard_limit>: %w", ErrUnsupported)
	}
	if _, subvolume := onBtrfs(dir); !subvolume {
		if hard == 0 {
			return nil
		}
		return fmt.Errorf("the disk space cannot be limited while it runs: it was started without a limit, in a directory, and btrfs limits subvolumes only: "+
			"use --config, the next start makes it one: %w", ErrUnsupported)
	}
	q, err := openQgroup(dir)
	if errors.Is(err, ErrUnsupported) && hard == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	defer q.close()
	return q.setLimit(hard)
}

// subvolumeSpace is the space of a limited subvolume; ok is false of anything
// else.
func subvolumeSpace(dir string) (s Space, ok bool) {
	if _, subvolume := onBtrfs(dir); !subvolume {
		return s, false
	}
	q, err := openQgroup(dir)
	if err != nil {
		return s, false
	}
	defer q.close()
	limit, err := q.limit()
	if err != nil || limit == 0 {
		return s, false
	}
	used, err := q.used()
	return Space{Capacity: limit, Allocation: used, Physical: used}, err == nil
}
