package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"virtvzd/systemd/bustest"
)

func setup(t *testing.T) (*bustest.Bus, *fake, *Conn, context.Context) {
	t.Helper()
	b := bustest.New(t)
	f := newFake(t, b, true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	c, err := Dial(ctx, b.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return b, f, c, ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStartScope(t *testing.T) {
	_, f, c, ctx := setup(t)
	must(t, c.StartScope(ctx, Scope{
		Name: ScopeName("web1"), Slice: "machine.slice", Description: "environment web1", PIDs: []uint32{42},
		Properties: []Property{
			Delegate(true), MemoryMax(1 << 30), MemorySwapMax(0), CPUWeight(200), CPUQuota(1_500_000), AllowedCPUs(0, 9), TasksMax(Infinity),
			DevicePolicy(DeviceClosed), DeviceAllow(Device{"/dev/fuse", "rwm"}), IOReadBandwidthMax(DeviceValue{"/dev/vda", 1 << 20}),
			CollectMode("inactive-or-failed"), TimeoutStop(90 * time.Second), OOMPolicy("continue"),
		},
	}))
	want := `machine-vz\x2dweb1.scope
	ActiveState=active
	AllowedCPUs=[1 2]
	CPUQuotaPerSecUSec=1500000
	CPUWeight=200
	CollectMode=inactive-or-failed
	Delegate=true
	Description=environment web1
	DeviceAllow=[[/dev/fuse rwm]]
	DevicePolicy=closed
	IOReadBandwidthMax=[[/dev/vda 1048576]]
	MemoryMax=1073741824
	MemorySwapMax=0
	OOMPolicy=continue
	PIDs=[42]
	Slice=machine.slice
	SubState=running
	TasksMax=18446744073709551615
	TimeoutStopUSec=90000000
`
	if got := f.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if n := f.called(""); n != 1 {
		t.Errorf("a start took %d calls: %q", n, f.calls)
	}
}

// The signal can be read before the caller has got the reply that names the job.
func TestJobEndsBeforeReply(t *testing.T) {
	_, f, c, ctx := setup(t)
	f.with(func() { f.early = true })
	for i := range 50 {
		must(t, c.StartScope(ctx, Scope{Name: fmt.Sprintf("a%d.scope", i), PIDs: []uint32{1}}))
	}
}

func TestManyStartsAtOnce(t *testing.T) {
	_, f, c, ctx := setup(t)
	f.with(func() { f.jobDelay = 20 * time.Millisecond })
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			if err := c.StartScope(ctx, Scope{Name: fmt.Sprintf("a%d.scope", i), PIDs: []uint32{1}}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	units, err := c.ListUnits(ctx, "a*.scope")
	if err != nil || len(units) != 100 {
		t.Errorf("%d units, %v", len(units), err)
	}
	if n := len(c.jobs.waiters); n != 0 {
		t.Errorf("%d waiters left behind", n)
	}
}

func TestFailedJob(t *testing.T) {
	_, f, c, ctx := setup(t)
	f.with(func() { f.jobResult = "failed" })
	err := c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{1}})
	var job *JobError
	if !errors.Is(err, ErrJobFailed) || !errors.As(err, &job) || job.Result != "failed" || job.Unit != "a.scope" {
		t.Errorf("got %v", err)
	}
	if s := f.String(); s != "" {
		t.Errorf("left behind: %s", s)
	}
}

// A signal can be lost with a connection: then the unit is asked.
func TestLostJobSignal(t *testing.T) {
	_, f, c, ctx := setup(t)
	f.with(func() { f.silent = true })
	must(t, c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{1}}))
}

func TestRefusedProperty(t *testing.T) {
	_, _, c, ctx := setup(t)
	err := c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{1}, Properties: []Property{property("Nonsense", true)}})
	var answer *Error
	if !errors.As(err, &answer) || !strings.Contains(err.Error(), "Nonsense") || !strings.Contains(err.Error(), "a.scope") {
		t.Errorf("got %v", err)
	}
}

func TestScopeNeedsProcessAndSuffix(t *testing.T) {
	_, f, c, ctx := setup(t)
	for _, s := range []Scope{{Name: "a.scope"}, {Name: "a.service", PIDs: []uint32{1}}} {
		if c.StartScope(ctx, s) == nil {
			t.Errorf("accepted %+v", s)
		}
	}
	if n := f.called(""); n != 0 {
		t.Errorf("systemd was asked: %q", f.calls)
	}
}

func TestVanishingScopeIsWaitedFor(t *testing.T) {
	for _, state := range []string{"deactivating", "active", "failed"} {
		t.Run(state, func(t *testing.T) {
			_, f, c, ctx := setup(t)
			c.cgroups = t.TempDir()
			must(t, os.MkdirAll(filepath.Join(c.cgroups, "x/a.scope"), 0o755))
			must(t, os.WriteFile(filepath.Join(c.cgroups, "x/a.scope/cgroup.events"), []byte("populated 0\nfrozen 0\n"), 0o644))
			f.set("a.scope", "ActiveState", state)
			f.set("a.scope", "ControlGroup", "/x/a.scope")
			tries := 0
			busy := func() {
				if tries++; tries == 4 {
					f.remove("a.scope")
				}
			}
			f.with(func() { f.onBusy = busy })
			must(t, c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{7}}))
			if !strings.Contains(f.String(), "PIDs=[7]") {
				t.Error(f)
			}
		})
	}
}

func TestRunningScopeIsInTheWay(t *testing.T) {
	_, f, c, ctx := setup(t)
	c.cgroups = t.TempDir()
	must(t, os.MkdirAll(filepath.Join(c.cgroups, "a.scope"), 0o755))
	must(t, os.WriteFile(filepath.Join(c.cgroups, "a.scope/cgroup.events"), []byte("populated 1\nfrozen 0\n"), 0o644))
	f.set("a.scope", "ActiveState", "active")
	f.set("a.scope", "ControlGroup", "/a.scope")
	begin := time.Now()
	err := c.StartScope(ctx, Scope{Name: "a.scope", PIDs: []uint32{7}})
	if !errors.Is(err, ErrUnitExists) || time.Since(begin) > 5*time.Second {
		t.Errorf("got %v after %v", err, time.Since(begin))
	}
}

func TestStop(t *testing.T) {
	_, f, c, ctx := setup(t)
	f.set("a.scope", "ActiveState", "active")
	must(t, c.Stop(ctx, "a.scope"))
	must(t, c.Stop(ctx, "a.scope")) // not there any more
	must(t, c.ResetFailed(ctx, "a.scope"))
	must(t, c.WaitGone(ctx, "a.scope"))
	if f.String() != "" {
		t.Error(f)
	}
}

func TestWaitGone(t *testing.T) {
	_, f, c, ctx := setup(t)
	f.set("a.scope", "ActiveState", "deactivating")
	time.AfterFunc(50*time.Millisecond, func() { f.set("a.scope", "ActiveState", "failed") })
	must(t, c.WaitGone(ctx, "a.scope")) // resets what failed
	f.set("b.scope", "ActiveState", "active")
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := c.WaitGone(short, "b.scope"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
