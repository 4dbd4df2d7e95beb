package vm

import (
	"context"
	"sync"
	"testing"
)

var shared struct {
	sync.Mutex
	vm  *VM
	err error
}

// Test returns the machine that all tests of this binary share, with this
// tree's daemon installed. The first call starts it; it dies with the test
// process, at once when TestMain calls Main. Tests remove what they make in it.
//
// Its users have the build tag vm: plain `go test ./...` needs no machine.
func Test(t testing.TB) *VM {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.vm == nil && shared.err == nil {
		shared.vm, shared.err = startInstalled()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.vm
}

// Own returns a machine with this tree's daemon for one test, which may run
// beside others.
func Own(t testing.TB) *VM {
	t.Helper()
	v, err := startInstalled()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func startInstalled() (*VM, error) {
	// Not a test's context: the machine outlives the test that is first.
	ctx := context.Background()
	v, err := Start(ctx, "test", Options{})
	if err != nil {
		return nil, err
	}
	if err := v.Install(ctx); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// Main runs a package's tests and removes the machine that they shared:
//
//	func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }
//
// Without it the next Start removes what is left of it.
func Main(m *testing.M) int {
	defer func() {
		shared.Lock()
		defer shared.Unlock()
		if shared.vm != nil {
			shared.vm.Close()
		}
	}()
	return m.Run()
}

// Sh runs a shell command as root and returns its standard output; the test
// ends when it fails.
func (v *VM) Sh(t testing.TB, command string) string {
	t.Helper()
	out, err := v.Run(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
