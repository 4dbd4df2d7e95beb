package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
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

// TestTuneTorn: what could not be undone stays noted for the next daemon, whatever
// is changed after it.
func TestTuneTorn(t *testing.T) {
	for name, c := range map[string]struct {
		refuses []int // which of its calls systemd refuses
		changes int   // without Settle
		torn    bool
	}{
		"undone":                                {nil, 1, false},
		"refused":                               {[]int{1}, 1, false},
		"not undone":                            {[]int{2}, 1, true},
		"not undone when it could not be saved": {nil, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			i := limitedInstance(t, &refusingScopes{refuses: c.refuses}, map[string]string{"memory.high": "max"})
			if err := os.Mkdir(filepath.Join(i.CgroupPath(), "cgroup.max.descendants"), 0o700); err != nil { // cannot be written
				t.Fatal(err)
			}
			before := &xml.Environment{Memory: xml.MemoryLimits{Max: 64 << 20, High: unlimited, Swap: unlimited}, Counts: xml.NoCounts()}
			after := *before
			after.Memory.Max, after.Counts.Cgroups = 128<<20, 5
			for range c.changes {
				if err := i.Tune(t.Context(), before, &after, nil); err == nil {
					t.Fatal("it succeeds")
				}
			}
			possible := after
			possible.Counts = before.Counts
			for range 3 {
				if err := i.Settle(); err != nil {
					t.Fatal(err)
				}
				if err := i.Tune(t.Context(), before, &possible, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := i.Settle(); err != nil {
				t.Fatal(err)
			}
			rec, err := loadRecord(i.dir)
			if err != nil {
				t.Fatal(err)
			}
			noted := slices.ContainsFunc(rec.InForce, func(e *xml.Environment) bool { return e.Counts.Cgroups == 5 })
			if rec.Unsettled != c.torn || noted != c.torn || len(rec.InForce) > 2*c.changes {
				t.Errorf("noted %v, %d states", rec.Unsettled, len(rec.InForce))
			}
		})
	}
}

// refusingScopes is a systemd that refuses some of what it is asked.
type refusingScopes struct {
	Scopes
	refuses []int
	asked   int
}

func (s *refusingScopes) SetProperties(context.Context, string, ...systemd.Property) error {
	if s.asked++; slices.Contains(s.refuses, s.asked) {
		return errors.New("refused")
	}
	return nil
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
