package runtime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"virtvzd/xml"
)

// TestHostDevices: whatever the host has mounted is not an environment's own.
func TestHostDevices(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	text := "23 1 8:2 / / rw shared:1 - ext4 /dev/root rw\n\n24 23 7:3 /a /b\\040c rw - ext4 /dev/loop3 rw\nnonsense - x\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	devices, err := hostDevices(file)
	if err != nil || !devices[Device{8, 2}] || !devices[Device{7, 3}] || devices[Device{7, 4}] {
		t.Errorf("%v, %v", devices, err)
	}
	if err := os.Truncate(file, maxProcFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := hostDevices(file); err == nil {
		t.Error("a list that is cut off is taken for whole")
	}
}

func TestPick(t *testing.T) {
	a, b := ownFilesystem{Target: "/"}, ownFilesystem{Target: "/srv"}
	for _, c := range []struct{ points, want []string }{
		{nil, []string{"/", "/srv"}},
		{[]string{"/srv"}, []string{"/srv"}},
		{[]string{"/srv", "/", "/srv"}, []string{"/", "/srv"}},
		{[]string{"/srv", "/proc"}, nil},
	} {
		var got []string
		list, err := pick([]ownFilesystem{a, b}, c.points, "it is not there")
		for _, o := range list {
			got = append(got, o.Target)
		}
		same(t, got, c.want)
		if (err != nil) != (c.want == nil) {
			t.Errorf("%v: %v", c.points, err)
		}
	}
}

// TestFrozenRefuses: nothing is begun that would wait for a file system that is
// frozen, or is being, and a record of one whose device is gone holds nothing up.
func TestFrozenRefuses(t *testing.T) {
	gone := ownFilesystem{Target: "/srv", Device: Device{4095, 77}, Sequence: 5}
	i := newInstance(&Runtime{}, &record{UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Name: "web1", Phase: running, Frozen: []ownFilesystem{gone}}, nil)
	i.dir = t.TempDir()
	before, after := &xml.Environment{}, &xml.Environment{Filesystems: []xml.Filesystem{{Type: "ram", Target: "/srv/x"}}}
	if err := i.Tune(t.Context(), before, after, nil); !errors.Is(err, ErrFrozen) {
		t.Errorf("a filesystem is attached: %v", err)
	}
	if err := i.Suspend(t.Context()); !errors.Is(err, ErrFrozen) {
		t.Errorf("it is suspended: %v", err)
	}
	if _, err := i.TrimFilesystems(t.Context(), nil, 0); !errors.Is(err, ErrFrozen) {
		t.Errorf("it is trimmed: %v", err)
	}
	if _, err := i.ThawFilesystems(t.Context(), []string{"/"}); err == nil || !i.recordedFrozen() {
		t.Errorf("what is not frozen is thawed: %v", err)
	}
	if points, err := i.FrozenFilesystems(t.Context()); err != nil || len(points) != 0 || i.recordedFrozen() {
		t.Errorf("%v, %v", points, err)
	}
	if rec, err := loadRecord(i.dir); err != nil || len(rec.Frozen) != 0 {
		t.Errorf("%+v, %v", rec, err)
	}
	if release, err := i.keepThawed(); err != nil {
		t.Error(err)
	} else {
		defer release()
	}
	if err := i.Tune(t.Context(), before, after, nil); !errors.Is(err, ErrFrozen) {
		t.Errorf("two change filesystems at once: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := i.ThawFilesystems(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client waits without end: %v", err)
	}
}

// TestEnding: a process that was killed is told from one that lives, also when
// nobody has waited for it.
func TestEnding(t *testing.T) {
	lives := exec.Command("sleep", "600")
	if err := lives.Start(); err != nil {
		t.Fatal(err)
	}
	if ending(lives.Process.Pid) || ending(os.Getpid()) {
		t.Error("a process that lives ends")
	}
	lives.Process.Kill()
	for end := time.Now().Add(10 * time.Second); !ending(lives.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a process that was killed does not end")
		}
	}
	lives.Wait()
}
