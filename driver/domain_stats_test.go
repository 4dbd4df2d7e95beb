package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// statsDriver is a driver with the domains named, shut off.
func statsDriver(t testing.TB, names ...string) *Driver {
	t.Helper()
	machine, err := probeHost()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	drv, err := open(Config{ConfigDir: dir, StateDir: dir}, machine, &runtime.Runtime{}, slog.New(slog.DiscardHandler), machine.facts)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		addDomain(t, drv, name, "")
	}
	return drv
}

func addDomain(t testing.TB, drv *Driver, name, more string) *domain {
	t.Helper()
	id := fmt.Sprintf("%08x-0000-4000-8000-000000000000", len(drv.domains.all())+1)
	def, err := xml.Parse(domainXML(name, "<uuid>"+id+"</uuid>"+more), drv.facts(), xml.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	uuid, err := protocol.ParseUUID(id)
	if err != nil {
		t.Fatal(err)
	}
	d, err := drv.domains.claim(drv, uuid, name)
	if err != nil {
		t.Fatal(err)
	}
	setView(d, func(v *view) { v.config, v.persistent = def, true })
	return d
}

func setView(d *domain, edit func(*view)) {
	c := d.changeAlways("test")
	defer c.done()
	c.publish(edit)
}

func statsRequest(t testing.TB, drv *Driver) *request {
	return &request{ctx: t.Context(), drv: drv, client: &client{drv: drv}, info: protocol.ConnectGetAllDomainStats.Info}
}

func recordNames(records []protocol.DomainStatsRecord) string {
	var names []string
	for _, r := range records {
		names = append(names, r.Dom.Name)
	}
	return strings.Join(names, " ")
}

// TestDomainStats holds every field of a running environment: its name, its
// type on the wire and its value from the files of a real scope.
func TestDomainStats(t *testing.T) {
	drv := statsDriver(t)
	limits := ""
	for name, limit := range map[string]int{"numpty": 32, "numfile": 100, "numsiginfo": 5, "lockedpages": 16, "shmpages": 256} {
		limits += fmt.Sprintf("<ve:ubc name='%s' limit='%d'/>", name, limit)
	}
	d := addDomain(t, drv, "web1", "<vcpu current='2'>4</vcpu><metadata><ve:ve xmlns:ve='"+xml.VENamespace+"'>"+limits+"</ve:ve></metadata>")
	setView(d, func(v *view) { v.state, v.reason, v.live = Running, 1, v.config })
	cgroup, err := runtime.OpenCgroup("../runtime/testdata/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	g := &gathering{drv: drv, d: d, v: d.view(), cgroup: cgroup, shared: newSharedStats()}
	groups, err := chooseGroups(0, false)
	if err != nil {
		t.Fatal(err)
	}
	// Over the wire and back, as a client gets it.
	sent := protocol.ConnectGetAllDomainStatsRet{RetStats: []protocol.DomainStatsRecord{{Dom: d.ref(d.view()), Params: g.collect(groups &^ protocol.DomainStatsInterface)}}}
	e := xdr.NewEncoder(nil)
	if err := sent.EncodeXDR(e); err != nil {
		t.Fatal(err)
	}
	var got protocol.ConnectGetAllDomainStatsRet
	if err := xdr.Unmarshal(e.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	seen := map[string]bool{}
	for _, p := range got.RetStats[0].Params {
		if seen[p.Field] {
			t.Errorf("%s is there twice", p.Field)
		}
		seen[p.Field] = true
		if len(p.Field) >= 80 { // VIR_TYPED_PARAM_FIELD_LENGTH, with its NUL
			t.Errorf("%s is too long a name", p.Field)
		}
		if p.Field != protocol.DomainStatsBalloonLastUpdate {
			fmt.Fprintf(&b, "%s %s %v\n", p.Field, strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", p.Value), "protocol."), "Value"), p.Value)
		}
	}
	golden(t, "testdata/stats.golden", b.String())
}

func TestDomainStatsChoice(t *testing.T) {
	drv := statsDriver(t, "a", "b", "c", "d")
	byName := drv.domains.lookupName
	setView(byName("b"), func(v *view) { v.state, v.live = Running, v.config })
	setView(byName("c"), func(v *view) { v.state, v.live, v.persistent = Paused, v.config, false })
	setView(byName("d"), func(v *view) { v.state, v.live = Stopping, v.config })
	ref := func(names ...string) (list []protocol.NonnullDomain) {
		for _, name := range names {
			list = append(list, byName(name).ref(byName(name).view()))
		}
		return list
	}
	gone := protocol.NonnullDomain{Name: "gone", UUID: protocol.UUID{9}}
	for _, c := range []struct {
		doms  []protocol.NonnullDomain
		flags uint32
		want  string
	}{
		{nil, 0, "a b c d"},
		{nil, protocol.ConnectGetAllDomainsStatsActive, "b c d"},
		{nil, protocol.ConnectGetAllDomainsStatsInactive, "a"},
		{nil, protocol.ConnectGetAllDomainsStatsActive | protocol.ConnectGetAllDomainsStatsInactive, "a b c d"},
		{nil, protocol.ConnectGetAllDomainsStatsPersistent, "a b d"},
		{nil, protocol.ConnectGetAllDomainsStatsTransient, "c"},
		{nil, protocol.ConnectGetAllDomainsStatsRunning, "b"},
		{nil, protocol.ConnectGetAllDomainsStatsPaused | protocol.ConnectGetAllDomainsStatsShutoff, "a c"},
		{nil, protocol.ConnectGetAllDomainsStatsOther, "d"},
		{nil, protocol.ConnectGetAllDomainsStatsNowait | protocol.ConnectGetAllDomainsStatsBacking, "a b c d"},
		{ref("c", "a"), 0, "c a"},
		{ref("c", "a"), protocol.ConnectGetAllDomainsStatsPersistent, "a"},
		{append(ref("b", "b", "b"), gone), 0, "b"},
		{[]protocol.NonnullDomain{gone}, 0, ""},
	} {
		ret, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{Doms: c.doms, Flags: c.flags, Stats: protocol.DomainStatsState})
		if err != nil || recordNames(ret.RetStats) != c.want {
			t.Errorf("flags 0x%x of %d named: %q, %v, want %q", c.flags, len(c.doms), recordNames(ret.RetStats), err, c.want)
		}
	}
	if _, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{Flags: 1 << 20}); err == nil {
		t.Error("a flag nobody knows is accepted")
	}
	// Whoever hangs up is not worked for.
	r := statsRequest(t, drv)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.ctx = ctx
	if _, err := allDomainStats(r, &protocol.ConnectGetAllDomainStatsArgs{}); !errors.Is(err, context.Canceled) {
		t.Errorf("the answer for a client that is gone: %v", err)
	}
}

func TestDomainStatsGroups(t *testing.T) {
	drv := statsDriver(t, "a")
	for _, c := range []struct {
		stats, flags uint32
		want         string // fields, or the error
	}{
		{protocol.DomainStatsState, 0, "state.state state.reason"},
		{protocol.DomainStatsCPUTotal | protocol.DomainStatsInterface, 0, ""}, // nothing of what does not run
		{protocol.DomainStatsBalloon, 0, "balloon.current balloon.maximum"},
		{protocol.DomainStatsVcpu, 0, "vcpu.current vcpu.maximum vcpu.0.state"},
		{protocol.DomainStatsBlock, 0, "block.count block.0.name block.0.path"},
		{protocol.DomainStatsIothread | protocol.DomainStatsMemory, 0, "iothread.count memory.bandwidth.monitor.count"},
		{protocol.DomainStatsPerf | protocol.DomainStatsDirtyrate | protocol.DomainStatsVm | 1<<30, 0, ""},
		{protocol.DomainStatsState | protocol.DomainStatsVcpu, protocol.ConnectGetAllDomainsStatsEnforceStats,
			"state.state state.reason vcpu.current vcpu.maximum vcpu.0.state"},
		{protocol.DomainStatsState | protocol.DomainStatsPerf, protocol.ConnectGetAllDomainsStatsEnforceStats,
			"argument unsupported: Stats types bits 0x40 are not supported by this daemon"},
	} {
		ret, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{Stats: c.stats, Flags: c.flags})
		var got []string
		if err != nil {
			got = []string{err.Error()}
		} else {
			for _, p := range ret.RetStats[0].Params {
				got = append(got, p.Field)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("groups 0x%x: %q, want %q", c.stats, strings.Join(got, " "), c.want)
		}
	}
}

// TestDomainStatsBound: definitions can ask for more numbers than a message
// holds; they are not all collected first.
func TestDomainStatsBound(t *testing.T) {
	drv := statsDriver(t)
	for n := range maxNumbers/16384 + 1 {
		addDomain(t, drv, fmt.Sprintf("web%d", n), "<vcpu>16384</vcpu>")
	}
	ret, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{Stats: protocol.DomainStatsVcpu})
	if err == nil || !strings.Contains(err.Error(), "ask for fewer domains or groups at a time") {
		t.Errorf("%d records, %v", len(ret.RetStats), err)
	}
}

// deny is an access driver that refuses one permission on one domain.
type deny struct{ domain, permission string }

func (a deny) allowed(_ context.Context, _ identity, o object, permission string) error {
	if o.name == a.domain && permission == a.permission {
		return errors.New("denied")
	}
	return nil
}

// TestDomainStatsAccess: a client gets the numbers of those domains that it
// may read, named or not.
func TestDomainStatsAccess(t *testing.T) {
	drv := statsDriver(t, "a", "b")
	drv.access = deny{"a", "read"}
	a := drv.domains.lookupName("a")
	for _, doms := range [][]protocol.NonnullDomain{nil, {a.ref(a.view())}} {
		ret, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{Doms: doms})
		if got := recordNames(ret.RetStats); err != nil || strings.Contains(got, "a") {
			t.Errorf("%d named: %q, %v", len(doms), got, err)
		}
	}
	drv.access = deny{"a", "write"}
	if ret, err := allDomainStats(statsRequest(t, drv), &protocol.ConnectGetAllDomainStatsArgs{}); err != nil || recordNames(ret.RetStats) != "a b" {
		t.Errorf("%q, %v", recordNames(ret.RetStats), err)
	}
}

func TestMemoryValues(t *testing.T) {
	m := runtime.MemoryStats{Current: 40 << 20, Max: 64 << 20, ActiveFile: 8 << 20, InactiveFile: 2 << 20, SlabReclaimable: 1 << 20,
		Faults: 100, MajorFaults: 3, SwappedIn: 5, SwappedOut: runtime.Unknown}
	got := memoryValues(m, time.Unix(1700000000, 0))
	page := runtime.Number(os.Getpagesize()) >> 10
	for tag, want := range map[int32]runtime.Number{
		protocol.DomainMemoryStatRss: 40 << 10, protocol.DomainMemoryStatAvailable: 64 << 10, protocol.DomainMemoryStatUnused: 24 << 10,
		protocol.DomainMemoryStatUsable: 35 << 10, protocol.DomainMemoryStatDiskCaches: 10 << 10,
		protocol.DomainMemoryStatMajorFault: 3, protocol.DomainMemoryStatMinorFault: 97,
		protocol.DomainMemoryStatSwapIn: 5 * page, protocol.DomainMemoryStatSwapOut: runtime.Unknown,
		protocol.DomainMemoryStatLastUpdate: 1700000000,
	} {
		if got[tag] != want {
			t.Errorf("tag %d is %d, want %d", tag, got[tag], want)
		}
	}
	// Without a limit there is no telling what is left of it.
	m.Max = runtime.Unlimited
	got = memoryValues(m, time.Now())
	for _, tag := range []int32{protocol.DomainMemoryStatAvailable, protocol.DomainMemoryStatUnused, protocol.DomainMemoryStatUsable} {
		if got[tag].Known() {
			t.Errorf("tag %d is %d without a limit", tag, got[tag])
		}
	}
}

// TestCPUStats has the questions virsh cpu-stats asks. An answer without
// parameters to the last would make libvirt's client divide by zero.
func TestCPUStats(t *testing.T) {
	drv := statsDriver(t, "a")
	d := drv.domains.lookupName("a")
	ask := func(nparams uint32, start int32, ncpus uint32) (int32, error) {
		ret, err := domainCPUStats(statsRequest(t, drv), d, &protocol.DomainGetCPUStatsArgs{Nparams: nparams, StartCPU: start, Ncpus: ncpus, Flags: protocol.TypedParamStringOkay})
		return ret.Nparams, err
	}
	if _, err := ask(0, -1, 1); err == nil || !strings.Contains(err.Error(), "domain is not running") {
		t.Errorf("of a domain that is shut off: %v", err)
	}
	setView(d, func(v *view) { v.state, v.live = Running, v.config })
	present, err := cpuList(sysCPU + "/present")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := ask(0, 0, 0); int(n) != present[len(present)-1]+1 || err != nil {
		t.Errorf("%d CPUs, %v", n, err)
	}
	if n, err := ask(0, 0, 1); n != 0 || err != nil {
		t.Errorf("%d parameters for each CPU, %v", n, err)
	}
	for _, bad := range [][3]int{{1, 0, 1}, {0, -1, 2}, {0, -2, 1}, {17, -1, 1}, {1, 0, 129}} {
		if n, err := ask(uint32(bad[0]), int32(bad[1]), uint32(bad[2])); err == nil {
			t.Errorf("nparams, start and ncpus %v are answered %d", bad, n)
		}
	}
	list := cpuParameters(runtime.CPUStats{Usage: 3000, User: 2000, System: 1000})
	if got := fmt.Sprint(list); got != "[{cpu_time 3000} {user_time 2000} {system_time 1000}]" {
		t.Error(got)
	}
}

func TestBlocks(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	drv := statsDriver(t)
	disk := "<disk type='file'><source file='" + image + "'/><target dev='sda'/></disk>"
	addWith := func(name, devices string) *domain {
		d := addDomain(t, drv, name, "")
		doc := strings.Replace(domainXML(name, ""), "<filesystem type='template'><source name='busybox'/>", devices, 1)
		def, err := xml.Parse(doc, drv.facts(), xml.ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		setView(d, func(v *view) { v.config = def })
		return d
	}
	own := addWith("own", disk+"<filesystem type='template'><source name='busybox'/>")
	given := addWith("given", disk+strings.Replace(disk, "sda", "sdb", 1)+"<filesystem type='mount'><source dir='"+dir+"'/>")
	for _, c := range []struct {
		d          *domain
		name, want string
	}{
		{own, "/", "rootLayer private/" + own.uuid.String()},
		{own, "sda", "diskImage " + image}, {own, image, "diskImage " + image},
		{given, "/", "rootDirectory " + dir}, {given, dir, "rootDirectory " + dir}, {given, "sdb", "diskImage " + image},
		{given, image, "invalid argument: invalid path: " + image}, // two have it
		{own, "", "invalid argument: invalid path: "}, {own, "sdc", "invalid argument: invalid path: sdc"},
	} {
		b, err := drv.findBlock(c.d, c.name)
		got := []string{"rootLayer", "rootDirectory", "rootImage", "diskDevice", "diskImage"}[b.kind] + " " + b.path
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q is %q, want %q", c.name, got, c.want)
		}
	}

	// Roots in images.
	at := func(offset int, text string) { os.WriteFile(image, []byte(strings.Repeat("\x00", offset)+text), 0o600) }
	qcow2 := "QFI\xfb\x00\x00\x00\x03" + string(make([]byte, 96))
	at(0, qcow2[:24]+"\x00\x00\x00\x00\x40\x00\x00\x00"+qcow2[32:])
	file := addWith("file", "<filesystem type='file'><source file='"+image+"'/>")
	packed := addWith("packed", "<filesystem type='file'><driver type='nbd' format='qcow2'/><source file='"+image+"'/>")
	stored := addWith("stored", "<filesystem type='volume'><source pool='p' volume='v'/>")
	for d, want := range map[*domain]uint64{file: 104, packed: 1 << 30, stored: 0} {
		info, err := domainBlockInfo(statsRequest(t, drv), d, &protocol.DomainGetBlockInfoArgs{Path: "/"})
		if info.Capacity != want || (err == nil) != (want != 0) {
			t.Errorf("%s: %+v, %v", d.view().name, info, err)
		}
	}
	at(0, strings.Repeat("\x00", 4096))

	r := statsRequest(t, drv)
	info, err := domainBlockInfo(r, given, &protocol.DomainGetBlockInfoArgs{Path: "/"})
	if err != nil || info.Capacity == 0 {
		t.Errorf("the root: %+v, %v", info, err)
	}
	info, err = domainBlockInfo(r, given, &protocol.DomainGetBlockInfoArgs{Path: "sda"})
	if err != nil || info.Capacity != 4096 {
		t.Errorf("the disk: %+v, %v", info, err)
	}
	if _, err = domainBlockInfo(r, own, &protocol.DomainGetBlockInfoArgs{Path: "/"}); err == nil {
		t.Error("a root that was never started has a size")
	}

	// The numbers are those of the disk the path is on, or of all.
	disks := []runtime.IOStats{{Device: runtime.Device{Major: 1 << 20}, Reads: 1}}
	here, err := runtime.DiskOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	if here != (runtime.Device{}) {
		disks = append(disks, runtime.IOStats{Device: here, Reads: 10})
	}
	want := disks[len(disks)-1].Reads
	if s, err := (block{name: "/", path: dir, kind: rootDirectory}).io(disks); s.Reads != want || err != nil {
		t.Errorf("%d reads, %v, want %d", s.Reads, err, want)
	}
}

// TestStatsProcedures: what needs a running domain says so of another, and
// what libvirt's daemon bounds is bounded.
func TestStatsProcedures(t *testing.T) {
	drv := statsDriver(t, "a")
	d, r := drv.domains.lookupName("a"), statsRequest(t, drv)
	for name, call := range map[string]func() error{
		"DomainMemoryStats": func() error {
			_, err := domainMemoryStats(r, d, &protocol.DomainMemoryStatsArgs{MaxStats: 13})
			return err
		},
		"DomainBlockStats": func() error {
			_, err := domainBlockStats(r, d, &protocol.DomainBlockStatsArgs{Path: "/"})
			return err
		},
		"DomainBlockStatsFlags": func() error {
			_, err := domainBlockStatsFlags(r, d, &protocol.DomainBlockStatsFlagsArgs{Path: "", Nparams: 4})
			return err
		},
		"DomainInterfaceStats": func() error {
			_, err := domainInterfaceStats(r, d, &protocol.DomainInterfaceStatsArgs{Device: "lo"})
			return err
		},
		"DomainGetFsinfo": func() error {
			_, err := domainFilesystems(r, d, &protocol.DomainGetFsinfoArgs{})
			return err
		},
		"DomainGetDiskErrors": func() error {
			_, err := domainDiskErrors(r, d, &protocol.DomainGetDiskErrorsArgs{})
			return err
		},
	} {
		if err := call(); err == nil || !strings.Contains(err.Error(), "domain is not running") {
			t.Errorf("%s of a domain that is shut off: %v", name, err)
		}
	}
	for _, n := range []int32{-1, 17} {
		if _, err := domainBlockStatsFlags(r, d, &protocol.DomainBlockStatsFlagsArgs{Nparams: n}); err == nil {
			t.Errorf("%d parameters are accepted", n)
		}
	}
	if _, err := domainMemoryStats(r, d, &protocol.DomainMemoryStatsArgs{MaxStats: 1025}); err == nil {
		t.Error("1025 statistics of memory are accepted")
	}
	if _, err := domainDiskErrors(r, d, &protocol.DomainGetDiskErrorsArgs{Maxerrors: 257}); err == nil {
		t.Error("257 errors are accepted")
	}
	if ret, err := domainBlockStatsFlags(r, d, &protocol.DomainBlockStatsFlagsArgs{}); ret.Nparams != blockCounters || err != nil {
		t.Errorf("%d parameters, %v", ret.Nparams, err)
	}
}

func TestFreePages(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"meminfo":                              "MemTotal:        8192 kB\nMemFree:         1024 kB\n",
		"huge/hugepages-2048kB/nr_hugepages":   "3\n",
		"huge/hugepages-2048kB/free_hugepages": "2\n",
		"huge/hugepages-x/nr_hugepages":        "1\n",
	} {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := readPages(dir+"/meminfo", dir+"/huge")
	unit := uint64(os.Getpagesize()) >> 10
	if want := []pages{{unit, 2048 / unit, 1024 / unit}, {2048, 3, 2}}; err != nil || !slices.Equal(list, want) {
		t.Errorf("%v, %v, want %v", list, err, want)
	}
	if counts, err := freePages(list, []uint32{2048, uint32(unit)}); err != nil || !slices.Equal(counts, []uint64{2, 1024 / unit}) {
		t.Errorf("%v, %v", counts, err)
	}
	if _, err := freePages(list, []uint32{7}); err == nil || !strings.Contains(err.Error(), "page size 7 KiB is not available") {
		t.Errorf("7 KiB: %v", err)
	}

	drv := statsDriver(t)
	r, cells := statsRequest(t, drv), len(drv.host.cells)
	for _, c := range []struct {
		args protocol.NodeGetFreePagesArgs
		want int // numbers, -1 for an error
	}{
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}, CellCount: 1}, 1},
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}, CellCount: 1000}, cells},
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}, StartCell: -1, CellCount: 1}, 1},
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}, StartCell: int32(cells), CellCount: 1}, -1},
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}, StartCell: -2, CellCount: 1}, -1},
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}, CellCount: 1 << 31}, -1},
		{protocol.NodeGetFreePagesArgs{CellCount: 1}, -1},
		{protocol.NodeGetFreePagesArgs{Pages: []uint32{uint32(unit)}}, -1},
	} {
		ret, err := nodeFreePages(r, &c.args)
		if c.want < 0 && err == nil || c.want >= 0 && (err != nil || len(ret.Counts) != c.want) {
			t.Errorf("%+v: %v, %v, want %d numbers", c.args, ret.Counts, err, c.want)
		}
	}
}

// TestTraffic: an end on the host counts the other way round, an interface
// that is inside as a whole does not, whatever has its name on the host.
func TestTraffic(t *testing.T) {
	some := func(n runtime.Number) runtime.InterfaceStats {
		return runtime.InterfaceStats{Received: runtime.Traffic{Bytes: n}, Sent: runtime.Traffic{Bytes: n + 1}}
	}
	host := map[string]runtime.InterfaceStats{"vnet0": some(10), "macvlan0": some(20), "vnet9": some(30)}
	pair := runtime.Link{ID: "52:54:00:00:00:01", Host: "vnet0", Paired: true}
	renamed := runtime.Link{ID: "52:54:00:00:00:01", Host: "vnet5", Paired: true}
	whole := runtime.Link{ID: "52:54:00:00:00:01", Host: "macvlan0"}
	inside := []runtime.InsideLink{{Name: "lo", Stats: some(1)}, {ID: pair.ID, Name: "eth0", Stats: some(2)}}
	for _, c := range []struct {
		name   string
		links  []runtime.Link
		inside []runtime.InsideLink
		want   string // received, "-" for one that is not in force
	}{
		{"a pair", []runtime.Link{pair}, inside, "11"},
		{"a pair whose end on the host was renamed", []runtime.Link{renamed}, inside, "2"},
		{"a macvlan", []runtime.Link{whole}, inside, "2"},
		{"a macvlan that was deleted inside", []runtime.Link{whole}, inside[:1], "-"},
		{"one that was never made", []runtime.Link{}, inside, "-"},
	} {
		g := &gathering{inside: c.inside, links: c.links, shared: &sharedStats{interfaces: func() map[string]runtime.InterfaceStats { return host }}}
		got := "-"
		if s, ok := g.traffic(pair.ID); ok {
			got = fmt.Sprint(s.Received.Bytes)
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestBlockPeek reads a disk that is a file, and nothing else.
func TestBlockPeek(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	drv := statsDriver(t)
	d, r := addDomain(t, drv, "web1", ""), statsRequest(t, drv)
	doc := strings.Replace(domainXML("web1", ""), "</devices>", fmt.Sprintf(`<disk type='file'><source file='%s'/><target dev='sda'/></disk>
<disk type='block'><source dev='/dev/null'/><target dev='sdb'/></disk>
<disk type='file'><driver name='nbd' type='qcow2'/><source file='%[1]s.qcow2'/><target dev='sdc'/></disk></devices>`, image), 1)
	def, err := xml.Parse(doc, drv.facts(), xml.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	setView(d, func(v *view) { v.config = def })
	for _, c := range []struct {
		path   string
		offset uint64
		size   uint32
		want   string // in the error when it begins with "!"
	}{
		{"sda", 2, 3, "234"},
		{image, 0, 10, "0123456789"},
		{"sda", 8, 3, "!has only 2 bytes available"},
		{"sda", 1 << 63, 1, "!bytes available"},
		{"sda", 0, protocol.DomainBlockPeekBufferMax + 1, "!beyond the limit"},
		{"sdb", 0, 1, "!neither a block device nor a file"},
		{"sdc", 0, 1, "!is a qcow2 image"},
		{"/", 0, 1, "!is a directory tree"},
		{"sdz", 0, 1, "!invalid path: sdz"},
	} {
		ret, err := domainBlockPeek(r, d, &protocol.DomainBlockPeekArgs{Path: c.path, Offset: c.offset, Size: c.size})
		if problem, refused := strings.CutPrefix(c.want, "!"); refused {
			if err == nil || !strings.Contains(err.Error(), problem) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || string(ret.Buffer) != c.want {
			t.Errorf("%+v: %q, %v", c, ret.Buffer, err)
		}
	}
}

func TestAllocPagesRefused(t *testing.T) {
	drv := statsDriver(t)
	r, cells := statsRequest(t, drv), int32(len(drv.host.cells))
	for _, c := range []struct {
		args protocol.NodeAllocPagesArgs
		want string
	}{
		{protocol.NodeAllocPagesArgs{CellCount: 1}, "at least one page size"},
		{protocol.NodeAllocPagesArgs{PageSizes: []uint32{2048}, CellCount: 1}, "a count for each"},
		{protocol.NodeAllocPagesArgs{PageSizes: []uint32{2048}, PageCounts: []uint64{1}, StartCell: cells, CellCount: 1}, "out of range"},
		{protocol.NodeAllocPagesArgs{PageSizes: []uint32{7}, PageCounts: []uint64{1}, CellCount: 1 << 31}, "page size 7 KiB is not available"},
		{protocol.NodeAllocPagesArgs{PageSizes: []uint32{7}, PageCounts: []uint64{1}, StartCell: -1, CellCount: 1, Flags: 2}, "unsupported flags"},
	} {
		if _, err := nodeAllocPages(r, &c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.args, err, c.want)
		}
	}
}

// TestSetPools: all pools get their pages, or all have what they had.
func TestSetPools(t *testing.T) {
	dir := t.TempDir()
	for size, count := range map[int]string{2048: "3\n", 1048576: "1\n"} {
		pool := fmt.Sprintf("%s/hugepages-%dkB", dir, size)
		if err := errors.Join(os.Mkdir(pool, 0o700), os.WriteFile(pool+"/nr_hugepages", []byte(count), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	small := dir + "/hugepages-2048kB/nr_hugepages"
	for _, c := range []struct {
		sizes  []uint32
		counts []uint64
		add    bool
		want   int // pages of 2 MiB afterwards
		err    string
	}{
		{[]uint32{2048, 1048576}, []uint64{5, 0}, false, 5, ""},
		{[]uint32{2048}, []uint64{2}, true, 7, ""},
		{[]uint32{2048, 4}, []uint64{9, 1}, false, 7, "page size 4 KiB is not available: the host's pools are 1048576, 2048 KiB"},
	} {
		err := setPools([]string{dir}, c.sizes, c.counts, c.add)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%+v: %v", c, err)
		}
		if n := readNumber(small); n != c.want {
			t.Errorf("%+v: the pool has %d pages", c, n)
		}
	}
}

// TestOnAllCPUs: each is done once, a failure ends it and is the answer, and so
// does a client that went away.
func TestOnAllCPUs(t *testing.T) {
	var done [1000]atomic.Int32
	if err := onAllCPUs(t.Context(), len(done), func(n int) error { done[n].Add(1); return nil }); err != nil {
		t.Fatal(err)
	}
	for n := range done {
		if times := done[n].Load(); times != 1 {
			t.Errorf("%d was done %d times", n, times)
		}
	}
	var count atomic.Int32
	failure := errors.New("no more")
	err := onAllCPUs(t.Context(), 1000, func(n int) error {
		if count.Add(1) == 10 {
			return failure
		}
		return nil
	})
	if err != failure || count.Load() > 500 {
		t.Errorf("%v after %d", err, count.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := onAllCPUs(ctx, 1000, func(int) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
	if err := onAllCPUs(t.Context(), 0, nil); err != nil {
		t.Error(err)
	}
}
