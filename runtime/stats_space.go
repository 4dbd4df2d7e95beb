package runtime

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Space is the size of a file system, file or block device, in bytes.
type Space struct {
	Capacity   uint64 // largest size
	Allocation uint64 // used of it
	Physical   uint64 // taken of what it lies on
}

// FilesystemSpace is that of the file system a directory of the host is on,
// as df shows it: a project quota on the directory is its size, and what
// counts against the quota is what it uses. So is the limit of a btrfs
// subvolume, which df does not show.
func FilesystemSpace(dir string) (Space, error) {
	if s, ok := subvolumeSpace(dir); ok {
		return s, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Space{}, fmt.Errorf("%s: %w", dir, err)
	}
	unit := uint64(fs.Bsize)
	used := (fs.Blocks - min(fs.Bfree, fs.Blocks)) * unit
	return Space{Capacity: fs.Blocks * unit, Allocation: used, Physical: used}, nil
}

// ImageSpace is that of a disk's source: a block device, or a file, which can
// have holes and be a qcow2 image.
func ImageSpace(path string, isQcow2 bool) (Space, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Space{}, fmt.Errorf("%s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		size, err := blockSize(Device{unix.Major(st.Rdev), unix.Minor(st.Rdev)})
		return Space{size, size, size}, err
	case unix.S_IFREG:
		s := Space{uint64(st.Size), uint64(st.Blocks) * sector, uint64(st.Size)}
		if isQcow2 {
			image, err := os.Open(path)
			if err != nil {
				return Space{}, err
			}
			defer image.Close()
			h, err := readQcow2(image)
			if err != nil {
				return Space{}, fmt.Errorf("image %s: %w", path, err)
			}
			s.Capacity = h.Size
		}
		return s, nil
	}
	return Space{}, fmt.Errorf("%s is neither a block device nor a file", path)
}

// sector is the unit of both sizes, whatever the device's or file system's own is.
const sector = 512

// blockSize is the size of a block device in bytes.
func blockSize(d Device) (uint64, error) {
	text, err := os.ReadFile("/sys/dev/block/" + d.String() + "/size")
	if err != nil {
		return 0, err
	}
	return uint64(max(0, parseNumber([]byte(strings.TrimSpace(string(text)))))) * sector, nil
}

// PrivateDir is the directory of an environment's own layer, all its data. It
// is there from the first start on.
func (r *Runtime) PrivateDir(uuid [16]byte) string { return r.privateDir(uuid) }

// Remote tells whether a path is on a file system that another host, or a
// program, answers for.
func Remote(path string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return remote(uint32(fs.Type)), nil
}

func remote(magic uint32) bool {
	switch magic {
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC:
		return true
	}
	return false
}
