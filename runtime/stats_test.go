package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/sys/unix"
)

// testCgroup opens a copy of testdata/cgroup, the files of a scope on Linux
// 6.12 after a write of 20 MiB and an OOM kill, with some of them replaced.
// An empty text removes a file.
func testCgroup(t testing.TB, replace map[string]string) *Cgroup {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/cgroup")); err != nil {
		t.Fatal(err)
	}
	for name, text := range replace {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := OpenCgroup(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestCgroupNumbers(t *testing.T) {
	c := testCgroup(t, nil)
	same(t, c.CPU(), CPUStats{Usage: 5539794000, User: 2025393000, System: 3514401000})
	same(t, c.Tasks(), TaskStats{Current: 2, Peak: 6, Max: 32768, MaxCgroups: Unlimited})
	same(t, c.Memory(), MemoryStats{
		Current: 548864, Peak: 64 << 20, High: Unlimited, Max: 64 << 20, SwapMax: Unlimited,
		Anon: 118784, File: 32768, Shmem: 20480, ActiveFile: 12288, Kernel: 401408, SlabReclaimable: 103000,
		Faults: 18862, SwappedIn: Unknown, SwappedOut: Unknown,
		Events: MemoryEvents{Max: 160, OOM: 2, Killed: 1},
	})
	same(t, c.IO(), []IOStats{{Device: Device{254, 16}, WriteBytes: 20987904, Writes: 26}})
	same(t, c.Pressure("memory"), Pressure{Some: Stall{0.76, 0.32, 0.07, 252873}, Full: Stall{0.76, 0.32, 0.07, 252873}})
	same(t, c.Pressure("cpu").Some, Stall{0.72, 0.45, 0.11, 542132})
}

// TestCgroupWithout: files that an older kernel or a controller that is off
// does not have make their own numbers unknown, and no other.
func TestCgroupWithout(t *testing.T) {
	c := testCgroup(t, map[string]string{
		"memory.peak": "", "memory.swap.current": "", "memory.swap.events": "", "pids.peak": "", "io.stat": "", "cpu.pressure": "",
		"cpu.stat": "usage_usec 7\n", "memory.max": "max\n",
	})
	same(t, c.CPU(), CPUStats{7000, Unknown, Unknown, Unknown, Unknown, Unknown})
	m := c.Memory()
	same(t, []Number{m.Peak, m.Swap, m.SwapEvents.Failed, m.Max, m.Events.Killed}, []Number{Unknown, Unknown, Unknown, Unlimited, 1})
	same(t, []Number{m.Unused(), m.Usable(), m.Caches()}, []Number{Unknown, Unknown, 12288})
	same(t, c.Tasks().Peak, Unknown)
	same(t, len(c.IO()), 0)
	same(t, TotalIO(c.IO()), IOStats{})
	same(t, c.Pressure("cpu").Some.Total, Unknown)
}

// TestCgroupHostile: the environment's root owns the directory of its scope,
// in which the kernel lets it make directories and nothing else.
func TestCgroupHostile(t *testing.T) {
	c := testCgroup(t, map[string]string{"memory.peak": "", "memory.events": "oom_kill\n\noom_kill x\noom -3\nmax 9 9\n", "pids.current": "7"})
	dir, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", c.dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "memory.peak"), 0o700); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "memory.low"))
	if err := os.Symlink("memory.max", filepath.Join(dir, "memory.low")); err != nil {
		t.Fatal(err)
	}
	m := c.Memory()
	same(t, []Number{m.Peak, m.Low, m.Events.Killed, m.Events.OOM, m.Events.Max}, []Number{Unknown, Unknown, Unknown, Unknown, Unknown})
	same(t, c.Tasks().Current, Number(7))
}

// TestCgroupLongFile reads more than the buffer has room for, and no more
// than is allowed.
func TestCgroupLongFile(t *testing.T) {
	var b strings.Builder
	for n := range 1000 {
		fmt.Fprintf(&b, "8:%d rbytes=%d wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n", n, n)
	}
	list := testCgroup(t, map[string]string{"io.stat": b.String()}).IO()
	if len(list) != 1000 {
		t.Fatalf("%d devices, want 1000", len(list))
	}
	same(t, list[999], IOStats{Device{8, 999}, 999, 2, 5, 3, 4, 6})
	same(t, TotalIO(list), IOStats{Device{}, 999 * 500, 2000, 5000, 3000, 4000, 6000})

	endless := testCgroup(t, map[string]string{"io.stat": strings.Repeat(b.String(), 200)})
	if n := len(endless.read("io.stat")); n > 2*maxCgroupFile {
		t.Errorf("read %d bytes, the bound is %d", n, maxCgroupFile)
	}
}

func TestOpenCgroupGone(t *testing.T) {
	if _, err := OpenCgroup(filepath.Join(t.TempDir(), "gone.scope")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening a cgroup that is not there: %v", err)
	}
}

func TestParseNumber(t *testing.T) {
	for text, want := range map[string]Number{
		"0": 0, "42": 42, "max": Unlimited, "": Unknown, "-1": Unknown, "1 2": Unknown, "1.5": Unknown, "maximal": Unknown,
		"9223372036854775807": Unlimited, "18446744073709551615": Unlimited, "99999999999999999999999": Unlimited,
		"922337203685477579": 922337203685477579,
	} {
		if got := parseNumber([]byte(text)); got != want {
			t.Errorf("%q is %d, want %d", text, got, want)
		}
	}
}

func TestSum(t *testing.T) {
	same(t, Sum(), Number(0))
	same(t, Sum(1, 2, 3), Number(6))
	same(t, Sum(1, Unknown, 3), Unknown)
	same(t, Sum(1, Unlimited), Unlimited)
	same(t, Sum(Unlimited-1, 1, 5), Unlimited)
}

// TestParseIO has the lines of kernels before 5.16, which run on after a
// device without numbers.
func TestParseIO(t *testing.T) {
	text := "7:0 7:1 254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n253:0 \n8:16 rbytes=9\nrubbish wbytes=1\n"
	u := Unknown
	same(t, parseIO([]byte(text)), []IOStats{
		{Device{254, 0}, 1, 2, 5, 3, 4, 6}, {Device{8, 16}, 9, u, u, u, u, u}, {Device{}, u, 1, u, u, u, u},
	})
}

// TestWholeDisk has sysfs as it is: links from the number to the device, a
// partition's directory inside its disk's.
func TestWholeDisk(t *testing.T) {
	sys := t.TempDir()
	for _, dir := range []string{"devices/vda/vda1", "devices/dm-0", "dev/block"} {
		os.MkdirAll(filepath.Join(sys, dir), 0o700)
	}
	os.WriteFile(filepath.Join(sys, "devices/vda/dev"), []byte("254:0\n"), 0o600)
	os.WriteFile(filepath.Join(sys, "devices/vda/vda1/dev"), []byte("254:1\n"), 0o600)
	os.WriteFile(filepath.Join(sys, "devices/vda/vda1/partition"), []byte("1\n"), 0o600)
	for number, target := range map[string]string{"254:0": "vda", "254:1": "vda/vda1", "253:0": "dm-0"} {
		if err := os.Symlink("../../devices/"+target, filepath.Join(sys, "dev/block", number)); err != nil {
			t.Fatal(err)
		}
	}
	for d, want := range map[Device]Device{{254, 0}: {254, 0}, {254, 1}: {254, 0}, {253, 0}: {253, 0}, {9, 9}: {9, 9}} {
		if got := wholeDisk(filepath.Join(sys, "dev/block"), d); got != want {
			t.Errorf("disk of %s is %s, want %s", d, got, want)
		}
	}
}

func TestSpace(t *testing.T) {
	dir := t.TempDir()
	s, err := FilesystemSpace(dir)
	if err != nil || s.Capacity == 0 || s.Allocation > s.Capacity {
		t.Errorf("space of %s: %+v, %v", dir, s, err)
	}
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 10<<20); err != nil {
		t.Fatal(err)
	}
	if s, err = ImageSpace(image, false); err != nil || s.Capacity != 10<<20 || s.Physical != 10<<20 || s.Allocation >= 1<<20 {
		t.Errorf("space of a file with a hole: %+v, %v", s, err)
	}
	if _, err = ImageSpace(dir, false); err == nil {
		t.Error("a directory has the size of a disk")
	}
	if _, err = FilesystemSpace(dir + "/gone"); err == nil {
		t.Error("what is not there has a size")
	}
}

func TestParseInterfaces(t *testing.T) {
	list := parseInterfaces(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
veth0a1b:12345678 90 1 2 3 4 5 6 987654321 89 7 8 9 10 11 12
  bad:  1 2 3
`)
	same(t, list, map[string]InterfaceStats{
		"lo":       {Traffic{100, 2, 0, 0}, Traffic{100, 2, 0, 0}},
		"veth0a1b": {Traffic{12345678, 90, 1, 2}, Traffic{987654321, 89, 7, 8}},
	})
}

func TestParseSockets(t *testing.T) {
	v4 := "sockets: used 9\nTCP: inuse 3 orphan 0 tw 0 alloc 3 mem 0\nUDP: inuse 1 mem 0\nFRAG: inuse 0 memory 0\n"
	same(t, parseSockets([]byte(v4), []byte("TCP6: inuse 2\nUDP6: inuse 0\n")), Sockets{TCP: 5, Other: 4})
	same(t, parseSockets([]byte(v4), nil), Sockets{TCP: 3, Other: 6})
	same(t, parseSockets(nil, nil), Sockets{Unknown, Unknown})
	same(t, parseSockets([]byte("sockets: used 0\nTCP: inuse 1 orphan 0\n"), nil), Sockets{TCP: 1, Other: 0})
}

// TestParseMounts keeps what keeps data, and nothing that an environment
// writes gets further than a printable name.
func TestParseMounts(t *testing.T) {
	text := `220 230 0:42 /proc/cpuinfo /proc/cpuinfo rw,nosuid - fuse.lxcfs lxcfs rw,user_id=0
228 188 0:43 / / rw,relatime - overlay overlay rw,lowerdir=/run/x
229 228 0:45 / /run rw,nosuid - tmpfs tmpfs rw,size=65536k
230 228 0:47 / /proc rw,nosuid shared:4 master:2 - proc proc rw
300 228 254:17 /home /srv/my\040data rw - ext4 /dev/vdb1 rw
301 228 0:60 / /b rw - btrfs /dev/mapper/pool rw
302 228 254:0 / /with\011tab` + "\x1b[2J" + `\012and\134more rw - ext4 /dev/vda rw
rubbish
303 - ext4
`
	same(t, parseMounts(text, 10), []Mount{
		{"/", "overlay", "overlay"}, {"/srv/my data", "ext4", "vdb1"}, {"/b", "btrfs", "pool"},
		{`/with?tab?[2J?and\more`, "ext4", "vda"},
	})
	same(t, len(parseMounts(strings.Repeat(text, 1000), 256)), 256)
}

// FuzzParseMounts: what an environment writes into its mounts' names is at
// most printed.
func FuzzParseMounts(f *testing.F) {
	f.Add("228 188 0:43 / / rw,relatime - overlay overlay rw\n")
	f.Add("302 228 254:0 / /with\\011tab\x1b[2J rw - ext4 /dev/vda rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		list := parseMounts(text, 5)
		if len(list) > 5 {
			t.Errorf("%d mounts", len(list))
		}
		for _, m := range list {
			for _, r := range m.Point + m.Type + m.Source {
				if !unicode.IsPrint(r) {
					t.Errorf("%q is not printable", m)
				}
			}
		}
	})
}

func TestRemote(t *testing.T) {
	for magic, want := range map[uint32]bool{unix.NFS_SUPER_MAGIC: true, unix.FUSE_SUPER_MAGIC: true, unix.TMPFS_MAGIC: false, unix.BTRFS_SUPER_MAGIC: false} {
		if remote(magic) != want {
			t.Errorf("file system %#x: remote is %v", magic, !want)
		}
	}
	if _, err := Remote("/no/such/path"); err == nil {
		t.Error("what does not exist is somewhere")
	}
}
