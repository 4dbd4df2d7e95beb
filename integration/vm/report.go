package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
)

// TestResult is how one test of a package ended that ran in a machine.
type TestResult struct {
	Name    string  // subtests as "TestA/b"
	Action  string  // pass, fail or skip; "" when the process died in it
	Elapsed float64 // seconds
	Output  string
}

// testEvent is a line of go tool test2json.
type testEvent struct {
	Action, Test, Output string
	Elapsed              float64
}

// PackageResults runs a package's tests in the machine as TestPackage does, and
// returns how each ended, in the order they began. The error tells how the
// process ended, with what it said outside of tests, when that was not well. It
// is an error when no test ran.
func (v *VM) PackageResults(ctx context.Context, path string, args ...string) ([]TestResult, error) {
	tests, err := v.PackageTests(ctx, path)
	if err != nil {
		return nil, err
	}
	return tests.Results(ctx, args...)
}

// PackageTests are a package's tests in a machine, to be run several times.
type PackageTests struct {
	v            *VM
	path, binary string
}

// PackageTests puts a package's tests into the machine.
func (v *VM) PackageTests(ctx context.Context, path string) (*PackageTests, error) {
	binary, err := v.pushTests(ctx, path)
	return &PackageTests{v, path, binary}, err
}

// Results runs them, see PackageResults.
func (p *PackageTests) Results(ctx context.Context, args ...string) ([]TestResult, error) {
	v, path, binary := p.v, p.path, p.binary
	args = append([]string{"-test.v=test2json"}, args...)
	remote := v.Command(ctx, testCommand(binary, args)+" 2>&1")
	convert := exec.CommandContext(ctx, "go", "tool", "test2json", "-t")
	convert.WaitDelay = remote.WaitDelay
	var err error
	if convert.Stdin, err = remote.StdoutPipe(); err != nil {
		return nil, err
	}
	events, err := convert.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := convert.Start(); err != nil {
		return nil, err
	}
	if err := remote.Start(); err != nil {
		convert.Process.Kill()
		return nil, errors.Join(err, convert.Wait())
	}
	var current atomic.Value
	current.Store("starting")
	stop := during(func() string { return path + ": " + current.Load().(string) })
	results, rest := collect(events, func(r TestResult) {
		current.Store(r.Name)
		if r.Action != "" {
			progress("%s: %s %s %.1fs", path, r.Name, r.Action, r.Elapsed)
		}
	})
	stop()
	err = errors.Join(remote.Wait(), convert.Wait())
	switch {
	case err != nil:
		err = fmt.Errorf("the tests of %s: %w\n%s", path, err, rest)
	case len(results) == 0:
		err = fmt.Errorf("not one test of %s ran", path)
	}
	return results, err
}

// collect reads test2json's events to the end. top is called when a top-level
// test begins, without Action then, and when it ended. rest is what was printed
// outside of tests.
func collect(events io.Reader, top func(TestResult)) (results []TestResult, rest string) {
	index := map[string]int{}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		var e testEvent
		switch {
		case json.Unmarshal(line, &e) != nil:
			rest += string(line)
		case e.Test == "":
			rest += e.Output
		default:
			i, known := index[e.Test]
			if !known {
				i = len(results)
				index[e.Test] = i
				results = append(results, TestResult{Name: e.Test})
			}
			r := &results[i]
			r.Output += e.Output
			ended := e.Action == "pass" || e.Action == "fail" || e.Action == "skip"
			if ended {
				r.Action, r.Elapsed = e.Action, e.Elapsed
			}
			if (ended || !known) && !strings.Contains(r.Name, "/") {
				top(*r)
			}
		}
		if err != nil {
			return results, rest
		}
	}
}
