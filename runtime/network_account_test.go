package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// TestCountOnce: a run is counted from its start, and once, also by a daemon
// that finds it without what the service manager kept, and what goes on from an
// image is a run of its own.
func TestCountOnce(t *testing.T) {
	dir := t.TempDir()
	r := &Runtime{config: Config{StateDir: dir, DataDir: t.TempDir()}}
	r.links = linkState{claims: map[string]string{}, spaces: map[[16]byte]*os.File{}, next: map[string]int{}}
	t.Cleanup(r.links.close)
	total := func(now InterfaceStats) Number {
		t.Helper()
		l := &recordedLink{ID: "52:54:00:00:00:01", HostIndex: 7, GuestIndex: 2}
		r.count(testUUID, l, now)
		s, err := r.Traffic(testUUID, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s.Sent.Bytes
	}
	sent := func(n Number) InterfaceStats { return InterfaceStats{Sent: Traffic{Bytes: n}} }
	start := func() *record {
		t.Helper()
		s := &starter{r: r, env: &xml.Environment{UUID: testUUID, Name: "web1"}, res: Reserved{Dir: filepath.Join(dir, formatUUID(testUUID))}}
		if err := s.writeRecord(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.rec
	}
	rec := start()
	if got := total(sent(1000)); got != 1000 {
		t.Errorf("the first run: %d", got)
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Skip("network namespaces can only be made by root")
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	rec.Init, rec.Links = cmd.Process.Pid, []*recordedLink{{ID: "52:54:00:00:00:01", HostIndex: 7, GuestIndex: 2}}
	pidfd, err := openPidfd(rec.Init, startTime(rec.Init))
	if err != nil {
		t.Fatal(err)
	}
	defer pidfd.Close()
	i := newInstance(r, rec, pidfd)
	r.adoptLinks(i, nil)
	if got := total(sent(1500)); got != 1500 || r.links.spaces[testUUID] == nil {
		t.Errorf("after another daemon has found it: %d, its namespace is kept: %v", got, r.links.spaces[testUUID] != nil)
	}
	r.dropSpace(testUUID)
	if err := os.RemoveAll(i.dir); err != nil {
		t.Fatal(err)
	}
	start() // from an image, after a restart of the host: the numbers of its links are the same
	if err := i.replugLinks(nil); err != nil {
		t.Fatal(err)
	}
	if got := total(sent(100)); got != 1600 || r.links.spaces[testUUID] == nil {
		t.Errorf("the second run: %d, its namespace is kept: %v", got, r.links.spaces[testUUID] != nil)
	}
}
