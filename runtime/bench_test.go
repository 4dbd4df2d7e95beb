//go:build vm

package runtime

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkStart is a start and a destroy of busybox without a network, with the time
// of each step of the start.
func BenchmarkStart(b *testing.B) {
	r := vmRuntime(b)
	env := vmEnvironment(b, "busybox")
	type mark struct {
		step string
		at   time.Time
	}
	var marks []mark
	atStep = func(step string) error {
		marks = append(marks, mark{step, time.Now()})
		return nil
	}
	defer func() { atStep = func(string) error { return nil } }()
	spent := map[string]time.Duration{}
	var start, kill, release time.Duration
	for b.Loop() {
		marks = marks[:0]
		t0 := time.Now()
		i, err := r.Start(context.Background(), env, StartOptions{})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		marks = append(marks, mark{"end", t1})
		for n := range marks[:len(marks)-1] {
			spent[marks[n].step] += marks[n+1].at.Sub(marks[n].at)
		}
		if err := i.Kill(context.Background()); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if err := i.Release(context.Background()); err != nil {
			b.Fatal(err)
		}
		start, kill, release = start+t1.Sub(t0), kill+t2.Sub(t1), release+time.Since(t2)
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(start), "ms-start")
	b.ReportMetric(ms(kill), "ms-kill")
	b.ReportMetric(ms(release), "ms-release")
	for step, d := range spent {
		b.ReportMetric(ms(d), "ms-start:"+step)
	}
	r.RemovePrivate(env.UUID)
}

// BenchmarkBareCrun is the same specification run by crun alone: create, start
// and delete as three commands, with its own systemd scope and without a scope.
func BenchmarkBareCrun(b *testing.B) {
	for _, manager := range []string{"systemd", "cgroupfs"} {
		b.Run(manager, func(b *testing.B) { bareCrun(b, manager) })
	}
}

func bareCrun(b *testing.B, manager string) {
	r := vmRuntime(b)
	env := vmEnvironment(b, "busybox")
	template, err := r.Templates().Lookup("busybox")
	if err != nil {
		b.Fatal(err)
	}
	bundle := vmData + "/bare"
	os.RemoveAll(bundle)
	os.MkdirAll(bundle, 0o711)
	os.Chmod(vmData, 0o711)
	defer os.RemoveAll(bundle)
	if out, err := exec.Command("cp", "-a", template.Path, bundle+"/rootfs").CombinedOutput(); err != nil {
		b.Fatal(string(out))
	}
	res := testReserved()
	res.Dir = bundle
	plan, err := NewPlan(env, r.host, Root{Init: []string{"/sbin/init"}, Kind: Busybox}, res)
	if err != nil {
		b.Fatal(err)
	}
	plan.Spec.Process.Terminal = false
	limit := int64(env.Memory.Max)
	plan.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	if manager == "systemd" {
		plan.Spec.Linux.CgroupsPath = "machine.slice:bare:x"
	}
	exec.Command("chown", "-R", "655360:655360", bundle+"/rootfs").Run()
	body, _ := json.Marshal(plan.Spec)
	os.WriteFile(filepath.Join(bundle, "config.json"), body, 0o600)
	run := func(args ...string) time.Duration {
		begin := time.Now()
		// Files and pipes nobody reads: init inherits them and would keep Run waiting.
		out, _ := os.CreateTemp("", "bare")
		defer os.Remove(out.Name())
		in, hold, _ := os.Pipe()
		defer in.Close()
		b.Cleanup(func() { hold.Close() })
		cmd := exec.Command(r.host.OCI, append([]string{"--root", r.ociRoot(), "--cgroup-manager=" + manager}, args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, hold, out
		if err := cmd.Run(); err != nil {
			text, _ := os.ReadFile(out.Name())
			b.Fatalf("%v: %v\n%s", args, err, text)
		}
		return time.Since(begin)
	}
	var create, start, remove time.Duration
	for b.Loop() {
		create += run("create", "--bundle", bundle, "bare")
		start += run("start", "bare")
		remove += run("delete", "-f", "bare")
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(create), "ms-create")
	b.ReportMetric(ms(start), "ms-start")
	b.ReportMetric(ms(remove), "ms-delete")
	b.ReportMetric(ms(create+start), "ms-create+start")
}
