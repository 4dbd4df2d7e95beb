package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// limitedInstance is one whose cgroup is a directory with the given files.
func limitedInstance(t *testing.T, scopes Scopes, files map[string]string) *Instance {
	t.Helper()
	dir := t.TempDir()
	cgroup, err := filepath.Rel(cgroupRoot, dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := &Runtime{config: Config{StateDir: t.TempDir(), Scopes: scopes}, host: Host{CPUs: []int{0}}, claims: map[[16]byte]claim{}}
	i := newInstance(r, &record{UUID: formatUUID(testUUID), Name: "web1", Scope: filepath.Base(cgroup), Cgroup: cgroup}, nil)
	if err := os.Mkdir(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return i
}

// lateScopes is a systemd that does the first that is asked of it, and tells
// nobody.
type lateScopes struct {
	Scopes
	asked int
	has   map[string]any
}

func (s *lateScopes) SetProperties(_ context.Context, _ string, props ...systemd.Property) error {
	for _, p := range props {
		s.has[p.Name] = p.Value.Value()
	}
	if s.asked++; s.asked == 1 {
		return &systemd.UnavailableError{Service: "systemd", Err: io.EOF}
	}
	return nil
}

// TestTuneLate: a change that systemd carries out after it was given up is undone.
func TestTuneLate(t *testing.T) {
	s := &lateScopes{has: map[string]any{}}
	i := limitedInstance(t, s, map[string]string{"memory.high": "max"})
	before := &xml.Environment{Memory: xml.MemoryLimits{Max: 64 << 20, High: unlimited, Swap: unlimited}, Counts: xml.NoCounts()}
	after := *before
	after.Memory.Max = 128 << 20
	if err := i.Tune(t.Context(), before, &after, nil); !errors.As(err, new(*systemd.UnavailableError)) {
		t.Fatal(err)
	}
	if s.has["MemoryMax"] != before.Memory.Max {
		t.Errorf("systemd has %v", s.has)
	}
}

// TestRlimitsUndone: limits that could not be changed are none for what is run
// inside later either.
func TestRlimitsUndone(t *testing.T) {
	i := limitedInstance(t, nil, map[string]string{})
	if err := os.Mkdir(filepath.Join(i.CgroupPath(), "cgroup.procs"), 0o700); err != nil { // cannot be read
		t.Fatal(err)
	}
	config := filepath.Join(i.dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"ociVersion":"1.0.0","process":{"cwd":"/"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	after := xml.NoCounts()
	after.Files = 1 << 40
	if err := i.setRlimits(xml.NoCounts(), after); err == nil {
		t.Fatal("it succeeds")
	}
	if text, err := os.ReadFile(config); err != nil || strings.Contains(string(text), "RLIMIT") {
		t.Errorf("noted: %s, %v", text, err)
	}
}
