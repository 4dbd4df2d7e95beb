package runtime

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is a block device's number.
type Device struct{ Major, Minor uint32 }

func (d Device) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

// IOStats is what an environment did on one block device, a whole disk: bytes
// and requests since its start. Writes are counted when the page cache is written
// back.
type IOStats struct {
	Device                           Device
	ReadBytes, WriteBytes, Discarded Number
	Reads, Writes, Discards          Number
}

// IO reads the block devices the environment has used. A device that lies on
// others (device mapper, RAID, loop) is there beside them.
func (c *Cgroup) IO() []IOStats { return parseIO(c.read("io.stat")) }

// parseIO reads "254:16 rbytes=1 wbytes=2 …" lines. Kernels before 5.16 leave
// the line's end out after a device without numbers, so it is the device's
// number that begins a device, not the line.
func parseIO(text []byte) (list []IOStats) {
	var device Device
	var s *IOStats
	for field := range bytes.FieldsSeq(text) {
		name, value, isValue := bytes.Cut(field, []byte("="))
		if !isValue {
			device, s = parseDevice(string(field)), nil
			continue
		}
		if s == nil {
			list = append(list, IOStats{Device: device, ReadBytes: Unknown, WriteBytes: Unknown, Discarded: Unknown,
				Reads: Unknown, Writes: Unknown, Discards: Unknown})
			s = &list[len(list)-1]
		}
		switch string(name) {
		case "rbytes":
			s.ReadBytes = parseNumber(value)
		case "wbytes":
			s.WriteBytes = parseNumber(value)
		case "dbytes":
			s.Discarded = parseNumber(value)
		case "rios":
			s.Reads = parseNumber(value)
		case "wios":
			s.Writes = parseNumber(value)
		case "dios":
			s.Discards = parseNumber(value)
		}
	}
	return list
}

// TotalIO adds up devices; none did nothing.
func TotalIO(list []IOStats) (total IOStats) {
	for _, s := range list {
		total.ReadBytes = Sum(total.ReadBytes, s.ReadBytes)
		total.WriteBytes = Sum(total.WriteBytes, s.WriteBytes)
		total.Discarded = Sum(total.Discarded, s.Discarded)
		total.Reads = Sum(total.Reads, s.Reads)
		total.Writes = Sum(total.Writes, s.Writes)
		total.Discards = Sum(total.Discards, s.Discards)
	}
	return total
}

func parseDevice(text string) (d Device) {
	major, minor, _ := strings.Cut(text, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if err1 != nil || err2 != nil {
		return Device{}
	}
	return Device{uint32(a), uint32(b)}
}

// DiskOf is the disk that a file, directory or block device of the host is
// on: for a partition the whole disk, for that is what is accounted. It is
// the zero Device where there is none to tell: tmpfs, btrfs, network file
// systems.
func DiskOf(path string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Device{}, fmt.Errorf("%s: %w", path, err)
	}
	number := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		number = st.Rdev
	}
	d := Device{unix.Major(number), unix.Minor(number)}
	if d.Major == 0 {
		return Device{}, nil
	}
	return wholeDisk("/sys/dev/block", d), nil
}

// wholeDisk finds a partition's disk: its directory in sysfs lies in the
// disk's.
func wholeDisk(sysfs string, d Device) Device {
	dir := filepath.Join(sysfs, d.String())
	if _, err := os.Lstat(dir + "/partition"); err != nil {
		return d
	}
	text, err := os.ReadFile(dir + "/../dev") // the kernel resolves the link before ".."
	if err != nil {
		return d
	}
	return parseDevice(strings.TrimSpace(string(text)))
}

// DiskNode is the path of the node of the disk that DiskOf tells, or "".
func DiskNode(path string) (string, error) {
	d, err := DiskOf(path)
	if err != nil || d == (Device{}) {
		return "", err
	}
	return nodeOf(d)
}

// nodeOf is the path of the node of a block device.
func nodeOf(d Device) (string, error) {
	text, err := os.ReadFile("/sys/dev/block/" + d.String() + "/uevent")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			return "/dev/" + strings.TrimSpace(name), nil
		}
	}
	return "", fmt.Errorf("the kernel does not name the block device %s", d)
}
