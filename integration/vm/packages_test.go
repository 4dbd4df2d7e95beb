//go:build vm

package vm

import (
	"context"
	"strings"
	"testing"
	"time"
)

// The packages below have tests that need a real kernel and a real systemd but
// no daemon of ours. Each runs in a machine of its own: they kill message buses.
var inMachine = []struct {
	path string
	run  string // pattern of tests; the others run on the host anyway
}{
	{"./systemd", "VM"},
	{"./runtime", "."},
	{"./driver", "."},
	{"./driver/protocol/tee", "."}, // with the libvirt of Debian 13
}

func TestInMachine(t *testing.T) {
	for _, p := range inMachine {
		t.Run(strings.TrimPrefix(p.path, "./"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 70*time.Minute)
			defer cancel()
			v, err := Start(ctx, "in-machine", Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			results, err := v.PackageResults(ctx, p.path, "-test.run", p.run, "-test.timeout", "70m")
			for _, r := range results {
				if !strings.Contains(r.Name, "/") {
					t.Run(r.Name, func(t *testing.T) { report(t, r, results) })
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNoTestsRan guards TestInMachine against a pattern that matches nothing.
func TestNoTestsRan(t *testing.T) {
	v, err := Start(t.Context(), "no-tests", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	results, err := v.PackageResults(t.Context(), "./systemd", "-test.run", "NoSuchTest")
	if err == nil || !strings.Contains(err.Error(), "not one test") {
		t.Errorf("%v, %v", results, err)
	}
}

// report makes a test here of one that ran there, with its subtests' output.
func report(t *testing.T, r TestResult, all []TestResult) {
	output := r.Output
	for _, sub := range all {
		if strings.HasPrefix(sub.Name, r.Name+"/") {
			output += sub.Output
		}
	}
	t.Logf("%.1f s in the machine\n%s", r.Elapsed, output)
	switch r.Action {
	case "pass":
	case "skip":
		t.Skip("skipped in the machine")
	case "fail":
		t.Fail()
	default:
		t.Error("the process died in it")
	}
}
