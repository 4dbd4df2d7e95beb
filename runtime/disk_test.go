package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// TestResolved: what is planned of disks that are images is of their devices, and
// nothing of one that has none.
func TestResolved(t *testing.T) {
	raw := xml.Device{Source: "/srv/a", Target: "/dev/vdb", Block: true, Image: "raw"}
	volume := xml.Device{Source: "pool/b", Target: "/dev/vdc", Block: true, ReadOnly: true, Image: "raw", Volume: true}
	gone := xml.Device{Source: "/srv/c", Target: "/dev/vdd", Block: true, Image: "qcow2"}
	fuse := xml.Device{Source: "/dev/fuse", Target: "/dev/fuse"}
	env := &xml.Environment{Name: "web1", Devices: []xml.Device{fuse, raw, volume, gone}}
	env.IO.Devices = []xml.DeviceIO{{Path: "/dev/vda", Weight: 7}, {Disk: "/dev/vdb", WriteIOPS: 40}, {Disk: "/dev/vdc", ReadIOPS: 3}, {Disk: "/dev/vdd", ReadIOPS: 4}}
	env.IO.Weight = 50
	got := resolved(env, []recordedDisk{
		{Device: gone, ID: "x"}, // not yet made
		{Device: volume, Path: "/dev/mapper/b"},
		{Device: raw, Path: "/srv/a", ID: "y", Number: 30007},
		{Device: xml.Device{Source: "/srv/a", Target: "/dev/vdb", Block: true, ReadOnly: true, Image: "raw"}, Path: "/srv/a", ID: "z", Number: 30008},
	})
	want := []xml.Device{fuse, {Source: "/dev/nbd30007", Target: "/dev/vdb", Block: true}, {Source: "/dev/mapper/b", Target: "/dev/vdc", Block: true, ReadOnly: true},
		{Target: "/dev/vdd", Block: true}}
	if !slices.Equal(got.Devices, want) {
		t.Errorf("%+v, want %+v", got.Devices, want)
	}
	limits := xml.IOLimits{Weight: 50, Devices: []xml.DeviceIO{{Path: "/dev/vda", Weight: 7}, {Path: "/dev/nbd30007", WriteIOPS: 40}, {Path: "/dev/mapper/b", ReadIOPS: 3}}}
	if fmt.Sprint(got.IO) != fmt.Sprint(limits) {
		t.Errorf("%+v, want %+v", got.IO, limits)
	}
	if env.Devices[1] != raw || env.IO.Devices[1].Disk == "" {
		t.Error("the definition's own is changed")
	}
	allow := byName(limitProperties(got, nil))["DeviceAllow"]
	if text := fmt.Sprint(allow.Value.Value()); text != fmt.Sprint([]systemd.Device{
		{Path: "/dev/fuse", Permissions: "rwm"}, {Path: "/dev/nbd30007", Permissions: "rwm"}, {Path: "/dev/mapper/b", Permissions: "rm"}}) {
		t.Error(text)
	}
	if plain := (&xml.Environment{Devices: []xml.Device{fuse}}); resolved(plain, nil) != plain {
		t.Error("one without images is copied")
	}
}

// TestDiskNumbers: a number is one environment's until that ends, also when its
// disk is detached, and after a restart.
func TestDiskNumbers(t *testing.T) {
	dir, rec := t.TempDir(), &record{}
	disk := recordedDisk{Device: xml.Device{Source: "/srv/a", Image: "raw"}, ID: "x"}
	for _, number := range []int{0, 30000} {
		disk.Number = number
		if err := rec.noteDisk(dir, disk); err != nil {
			t.Fatal(err)
		}
	}
	if len(rec.Disks) != 1 || rec.Disks[0] != disk {
		t.Error(rec.Disks)
	}
	rec.Disks = nil // detached
	if err := rec.save(dir); err != nil {
		t.Fatal(err)
	}
	rec, err := loadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &Runtime{claims: map[[16]byte]claim{{1}: rec.claim()}}
	if r.claimDisk([16]byte{2}, 30000) || !r.claimDisk([16]byte{1}, 30000) || !r.claimDisk([16]byte{2}, 30001) || r.claimDisk([16]byte{1}, 30001) {
		t.Error(r.claims)
	}
	r.unreserve([16]byte{2})
	if !r.claimDisk([16]byte{1}, 30001) {
		t.Error(r.claims)
	}
}

// TestOpenDiskRefused: what is refused is so before anything is recorded or
// started.
func TestOpenDiskRefused(t *testing.T) {
	dir := t.TempDir()
	image, empty, busy := filepath.Join(dir, "image"), filepath.Join(dir, "empty"), filepath.Join(dir, "busy")
	for name, size := range map[string]int{image: 4096, empty: 100, busy: 4096} {
		if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(busy)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{config: Config{StateDir: dir}, claims: map[[16]byte]claim{}}
	for _, c := range []struct {
		disk xml.Device
		want string
	}{
		{xml.Device{Source: dir + "/none", Image: "raw"}, "disk " + dir + "/none: no such file"},
		{xml.Device{Source: dir, Image: "raw"}, "it is not a regular file"},
		{xml.Device{Source: "/dev/null", Image: "raw"}, "it is not a regular file"},
		{xml.Device{Source: empty, Image: "raw"}, "it has 100 bytes: make it larger"},
		{xml.Device{Source: image, Image: "vmdk"}, "the format 'vmdk' cannot be used: raw and qcow2 can"},
		{xml.Device{Source: image, Image: "qcow2"}, "it is no qcow2 image"},
		{xml.Device{Source: busy, Image: "raw"}, "it is in use: one can write"},
		{xml.Device{Source: "pool/volume", Image: "raw", Volume: true}, "there are no storage pools"},
	} {
		err := r.openDisk(t.Context(), [16]byte{1}, c.disk, nil, func(recordedDisk) error { t.Errorf("%+v: recorded", c.disk); return errors.New("not to be") })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.disk, err, c.want)
		}
	}
	if exists(r.imagesDir()) {
		t.Error("something was begun")
	}
}

// TestLockImage: an image that is written to is nobody else's, one that is read may
// be read by others, whether by a loop device or by QEMU.
func TestLockImage(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	lock := func(bytes ...int64) func(*os.File) error {
		return func(f *os.File) (err error) {
			for _, b := range bytes {
				err = errors.Join(err, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: b, Len: 1}))
			}
			return err
		}
	}
	for what, c := range map[string]struct {
		user         func(*os.File) error
		write, share bool // may another then
	}{
		"nobody":         {func(*os.File) error { return nil }, true, true},
		"a loop, writes": {func(f *os.File) error { return lockImage(f, false) }, false, false},
		"a loop, reads":  {func(f *os.File) error { return lockImage(f, true) }, false, true},
		"QEMU, writes":   {lock(100, 101), false, false},
		"QEMU, alone":    {lock(100, 201), false, true},
		"QEMU, reads":    {lock(100, 203), false, true},
	} {
		user, other := open(), open()
		if err := c.user(user); err != nil {
			t.Fatal(what, err)
		}
		if err := lockImage(other, false); (err == nil) != c.write {
			t.Errorf("%s: to write: %v", what, err)
		}
		unix.Flock(int(other.Fd()), unix.LOCK_UN)
		if err := lockImage(other, true); (err == nil) != c.share {
			t.Errorf("%s: to read: %v", what, err)
		}
		user.Close()
		other.Close()
	}
}

// TestLooksForNoPartitions: a kernel that would read partitions is given no disk.
func TestLooksForNoPartitions(t *testing.T) {
	parameter := filepath.Join(t.TempDir(), "max_part")
	for text, fine := range map[string]bool{"0\n": true, "16\n": false, "": false} {
		os.WriteFile(parameter, []byte(text), 0o600)
		err := looksForNoPartitions(parameter)
		if (err == nil) != fine || err != nil && !strings.Contains(err.Error(), "options nbd max_part=0") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestServed: what QEMU serves is in use by others' reckoning as well, for as long
// as it does, and QEMU is told the format and of no other file.
func TestServed(t *testing.T) {
	for _, program := range []string{qemuNBD, "/usr/bin/qemu-img", flock} {
		if !exists(program) {
			if os.Getenv("VIRTVZD_REQUIRE") != "" {
				t.Fatal(program, "is missing: install qemu-utils")
			}
			t.Skip("needs", program)
		}
	}
	for _, format := range []string{"raw", "qcow2"} {
		for _, readOnly := range []bool{false, true} {
			dir, err := os.MkdirTemp("", "served-") // a short path, for the socket
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			image, pid := filepath.Join(dir, "image"), filepath.Join(dir, "pid")
			if out, err := exec.Command("qemu-img", "create", "-q", "-f", format, image, "1M").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			argv := append(serverCommand(image, format, filepath.Join(dir, "socket"), readOnly, false), "--pid-file="+pid)
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%q: %v: %s", argv, err, out)
			}
			text, err := os.ReadFile(pid)
			if err != nil {
				t.Fatal(err)
			}
			number, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			if err := lockOnce(t, image, false); err == nil {
				t.Errorf("%s, read-only %v: another may write", format, readOnly)
			}
			if err := lockOnce(t, image, true); (err == nil) != readOnly {
				t.Errorf("%s, read-only %v: another may read: %v", format, readOnly, err)
			}
			if number > 1 {
				unix.Kill(number, unix.SIGKILL)
			}
			for end := time.Now().Add(10 * time.Second); lockOnce(t, image, false) != nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s, read-only %v: in use for ever", format, readOnly)
				}
			}
		}
	}
}

// lockOnce locks an image for a moment.
func lockOnce(t *testing.T, name string, readOnly bool) error {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return lockImage(f, readOnly)
}

// TestGrowDisk of one that is not in use.
func TestGrowDisk(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	r, disk := &Runtime{}, xml.Device{Source: name, Target: "/dev/vdb", Block: true, Image: "raw"}
	if err := r.GrowDisk(t.Context(), nil, disk, 8192); err != nil {
		t.Error(err)
	}
	if err := r.GrowDisk(t.Context(), nil, disk, 4096); err == nil || !strings.Contains(err.Error(), "8 KiB already, and a disk does not shrink") {
		t.Error(err)
	}
	if err := r.GrowDisk(t.Context(), nil, disk, 1<<60); err == nil || !strings.Contains(err.Error(), "more than a disk can have") {
		t.Error(err)
	}
	readOnly := disk
	readOnly.ReadOnly = true
	if err := r.GrowDisk(t.Context(), nil, readOnly, 1<<20); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Error(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := lockImage(f, true); err != nil {
		t.Fatal(err)
	}
	if err := r.GrowDisk(t.Context(), nil, disk, 1<<20); err == nil || !strings.Contains(err.Error(), "it is in use") {
		t.Error(err)
	}
	if info, err := os.Stat(name); err != nil || info.Size() != 8192 {
		t.Error(info, err)
	}
}
