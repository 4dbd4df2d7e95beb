//go:build vm

// These tests run inside the virtual machine of integration/vm, as root, with
// systemd as the manager: go test -c -tags vm. The roots are found in /srv/roots or
// VIRTVZD_TEST_ROOTS.
package runtime

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"virtvzd/systemd"
	"virtvzd/xml"
)

const (
	vmState = "/run/virtvzd-test"
	vmData  = "/var/lib/virtvzd-test"
)

var vmStore = &memoryStore{}

func runTests(m *testing.M) int {
	if step := os.Getenv("VIRTVZD_TEST_CHILD"); step != "" {
		return childManager(step)
	}
	os.RemoveAll(vmState)
	vmLinks()
	return m.Run()
}

func vmRuntime(t testing.TB) *Runtime {
	t.Helper()
	r, err := newVMRuntime()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func newVMRuntime() (*Runtime, error) {
	conn, err := systemd.Connect(context.Background())
	if err != nil {
		return nil, err
	}
	return New(Config{StateDir: vmState, DataDir: vmData, OCI: "crun", Scopes: conn, FDs: vmStore, Networks: vmNetworks{vmPorts}, Filters: vmFilters{vmBindings}})
}

// vmTemplate imports one of the roots once.
func vmTemplate(t testing.TB, name string) string {
	t.Helper()
	templates := OpenTemplates(vmData)
	if _, err := templates.Lookup(name); err == nil {
		return name
	}
	roots := cmp.Or(os.Getenv("VIRTVZD_TEST_ROOTS"), "/srv/roots")
	files, _ := filepath.Glob(filepath.Join(roots, name+".tar*"))
	if len(files) == 0 {
		t.Fatalf("no root %s.tar* in %s", name, roots)
	}
	begin := time.Now()
	made, err := templates.Import(context.Background(), name, files[0], ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("imported %s: %d files, %d MB in %v", name, made.Files, made.Size>>20, time.Since(begin))
	return name
}

func vmEnvironment(t testing.TB, template string) *xml.Environment {
	t.Helper()
	env := &xml.Environment{
		Name: "test-" + template, UUID: testUUID, Type: "vz", PrivateNetwork: true,
		Memory: xml.MemoryLimits{Max: 400 << 20, High: unlimited, Swap: unlimited},
		Counts: xml.NoCounts(),
	}
	if template != "" {
		env.Filesystems = []xml.Filesystem{{Type: "template", Source: vmTemplate(t, template), Target: "/"}}
	}
	return env
}

// vmStart starts env and makes sure that at the end of the test nothing is left of it.
func vmStart(t testing.TB, r *Runtime, env *xml.Environment, o StartOptions) *Instance {
	t.Helper()
	i, err := r.Start(context.Background(), env, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vmEnd(t, r, i) })
	for _, w := range i.Warnings() {
		t.Log(w)
	}
	return i
}

func vmEnd(t testing.TB, r *Runtime, i *Instance) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := i.Kill(ctx); err != nil {
		t.Error(err)
	}
	if err := i.Release(ctx); err != nil {
		t.Error(err)
	}
	if err := r.RemovePrivate(i.UUID()); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}

// nothingLeft is what must hold when no environment runs, however the last one
// ended.
func nothingLeft(t testing.TB) {
	t.Helper()
	var left []string
	for range 600 { // orphans of a killed manager need a moment to die
		if left = leftovers(); len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

func leftovers() []string {
	var left []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, vmState) || strings.Contains(line, vmData) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for dir, what := range map[string]string{vmState: "state", vmState + "/crun": "crun", vmState + "/images": "image"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			stays := dir == vmState && (e.Name() == "crun" || e.Name() == "images" || e.Name() == "criu-dump.log" || e.Name() == "criu-restore.log") // what CRIU said last
			if !stays && !strings.HasPrefix(e.Name(), ".") {
				left = append(left, what+" "+e.Name())
			}
		}
	}
	if scope := findScope(systemd.ScopeName("test-busybox")); scope != "" {
		left = append(left, "cgroup "+scope)
	}
	if out, _ := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", `machine-vz*`).Output(); len(bytes.TrimSpace(out)) > 0 {
		left = append(left, "unit "+string(out))
	}
	if out, _ := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", imageUnit("*")).Output(); len(bytes.TrimSpace(out)) > 0 {
		left = append(left, "unit "+string(out))
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		line, _ := os.ReadFile(p)
		if bytes.HasPrefix(line, []byte(stubName)) || bytes.Contains(line, []byte(vmState)) {
			left = append(left, "process "+p+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	left = append(left, networkLeftovers()...)
	vmStore.mu.Lock()
	for name := range vmStore.files {
		left = append(left, "descriptor "+name)
	}
	vmStore.mu.Unlock()
	return left
}

// inside runs a shell command in all namespaces of the environment.
func inside(i *Instance, script string) (string, error) {
	out, err := exec.Command("nsenter", "-t", fmt.Sprint(i.Init()), "-a", "-S", "0", "-G", "0", "--", "/bin/sh", "-c", script).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// eventually waits until the command's output contains want.
func eventually(t testing.TB, i *Instance, timeout time.Duration, script, want string) {
	t.Helper()
	var out string
	for end := time.Now().Add(timeout); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		select {
		case <-i.Exited():
			t.Fatalf("%s ended: %v; console:\n%s", i.Name(), i.Exit(), consoleText(i))
		default:
		}
		if out, _ = inside(i, script); strings.Contains(out, want) {
			return
		}
	}
	t.Fatalf("%s: %q after %v, want %q; console:\n%s", script, out, timeout, want, consoleText(i))
}

// consoleText is what is in the ring, whoever has seen it.
func consoleText(i *Instance) string {
	c, err := i.Console("")
	if err != nil {
		return err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	text := make([]byte, ringLimit)
	n, _ := c.ring.readAt(text, 0)
	return string(text[:n])
}

func awaitEnd(t testing.TB, i *Instance, timeout time.Duration, want ExitCause) {
	t.Helper()
	select {
	case <-i.Exited():
		if i.Exit().Cause != want {
			t.Errorf("ended with %v, want %v; console:\n%s", i.Exit(), want, consoleText(i))
		}
	case <-time.After(timeout):
		ps, _ := inside(i, "ps ax")
		t.Fatalf("does not end in %v; processes:\n%s\nconsole:\n%s", timeout, ps, consoleText(i))
	}
}

// childManager is replaced by the crash tests.
var childManager = func(step string) int { return 1 }
