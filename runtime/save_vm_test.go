//go:build vm

package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

const vmImage = vmData + "/test.save"

func savedEnvironment(t testing.TB) *xml.Environment {
	env := vmEnvironment(t, "busybox")
	env.Interfaces = vmInterfaces()[:2]
	return env
}

// savingChild saves an environment, or makes a snapshot of it, in a manager that
// is killed meanwhile.
func savingChild(r *Runtime, what string, ready func()) int {
	env := savedEnvironment(&testing.T{})
	i, err := r.Start(context.Background(), env, StartOptions{})
	if err != nil {
		panic(err)
	}
	command := Command{Args: []string{"/bin/sh", "-c", "echo kept > /run/in-memory; " + counting}}
	if status, err := i.Exec(context.Background(), command); err != nil || status != 0 {
		panic(fmt.Sprint(status, err))
	}
	ready()
	quiet := func(_, _ uint64) {}
	switch what {
	case "snapshot":
		i.Snapshot(context.Background(), SavedHeader{Name: env.Name}, env.Interfaces, false, quiet)
	case "save":
		if os.Getenv("VIRTVZD_TEST_CHILD") == "save within dump" {
			time.AfterFunc(1500*time.Millisecond, func() { unix.Kill(os.Getpid(), unix.SIGKILL) })
		}
		i.Save(context.Background(), vmImage, SavedHeader{Name: env.Name}, env.Interfaces, quiet)
	}
	return 1
}

// TestKilledInSnapshot: a manager that is killed while it makes a snapshot leaves
// an environment that goes on, and nothing of what it was making.
func TestKilledInSnapshot(t *testing.T) {
	exec.Command("ip", "addr", "add", "192.0.2.1/24", "dev", vmBridge).Run()
	for _, step := range []string{"checkpoint freeze", "checkpoint dump", "snapshot copy", "snapshot memory"} {
		t.Run(step, func(t *testing.T) {
			runChild(t, "snapshot "+step)
			r := vmRuntime(t)
			adopted, ended, err := r.Recover(t.Context(), vmStore.take())
			if err != nil || len(adopted) != 1 || len(ended) != 0 {
				t.Fatalf("adopted %d, ended %+v, %v", len(adopted), ended, err)
			}
			i := adopted[0]
			if saved, err := i.FinishSave(t.Context(), savedEnvironment(t).Interfaces); saved || err != nil {
				t.Fatal(saved, err)
			}
			savesLeft(t)
			goesOn(t, i)
			vmEnd(t, r, i)
		})
	}
}

// TestSnapshot: disk and processes are those of one moment, also when the
// environment went on for a while, and however often that is gone back to.
func TestSnapshot(t *testing.T) {
	exec.Command("ip", "addr", "add", "192.0.2.1/24", "dev", vmBridge).Run()
	r := vmRuntime(t)
	env := savedEnvironment(t)
	quiet := func(_, _ uint64) {}
	i := vmStart(t, r, env, StartOptions{})
	vmExec(t, i, "echo kept | tee /run/in-memory /on-disk; "+counting)
	layer, err := i.Snapshot(t.Context(), SavedHeader{Name: env.Name}, env.Interfaces, false, quiet)
	if err != nil {
		t.Fatal(err)
	}
	goesOn(t, i)
	savesLeft(t)
	layers := r.Layers()
	for range 2 {
		vmExec(t, i, "echo changed | tee /run/in-memory /on-disk")
		vmGone(t, i)
		if err := layers.Revert(env.UUID, layer); err != nil {
			t.Fatal(err)
		}
		if i, err = r.Restore(t.Context(), env, layers.Memory(layer), false, quiet); err != nil {
			t.Fatal(err)
		}
		goesOn(t, i)
		if out := vmExec(t, i, "cat /on-disk"); out != "kept" {
			t.Errorf("on its disk is %q", out)
		}
	}

	// One that fails leaves neither layer nor image, and lets the network go on that
	// CRIU has locked by then.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	locked := make(chan bool)
	go func() {
		defer close(locked)
		for has := false; !has && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
			i.inside("packet filter", []string{"net"}, func() error {
				out, err := exec.Command(nft, "list", "tables").Output()
				has = strings.Contains(string(out), "CRIU-")
				return err
			})
		}
		cancel()
	}()
	if _, err := i.Snapshot(ctx, SavedHeader{}, env.Interfaces, false, quiet); err == nil {
		t.Error("it was made though that was given up")
	}
	<-locked
	goesOn(t, i)
	savesLeft(t)
	images, _ := filepath.Glob(vmData + "/memory/*")
	if len(images) != 1 {
		t.Errorf("images: %v", images)
	}
	vmEnd(t, r, i)
	if err := layers.Release(env.UUID, layer); err != nil {
		t.Fatal(err)
	}
	if exists(layers.Memory(layer)) {
		t.Error("the image is there without its snapshot")
	}
}

func savesLeft(t *testing.T) {
	t.Helper()
	left, _ := filepath.Glob(vmData + "/save/.*-*")
	if exists(PartOfSaved(vmImage)) {
		left = append(left, PartOfSaved(vmImage))
	}
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestKilledWhileSaving: a manager that is killed while it saves leaves an
// environment that goes on, or a whole image of one, which is restored: never
// both, and never neither.
func TestKilledWhileSaving(t *testing.T) {
	exec.Command("ip", "addr", "add", "192.0.2.1/24", "dev", vmBridge).Run()
	for _, step := range []string{"checkpoint freeze", "checkpoint dump", "within dump", "writing", "saving", "saved"} {
		t.Run(step, func(t *testing.T) {
			os.Remove(vmImage)
			at := step
			if step == "writing" {
				at = "checkpoint dump"
			}
			runChild(t, "save "+at)
			r := vmRuntime(t)
			if step == "writing" {
				writeOn(t)
			}
			adopted, ended, err := r.Recover(t.Context(), vmStore.take())
			if err != nil || len(adopted) != 1 || len(ended) != 0 {
				t.Fatalf("adopted %d, ended %+v, %v", len(adopted), ended, err)
			}
			i, env := adopted[0], savedEnvironment(t)
			saved, err := i.FinishSave(t.Context(), env.Interfaces)
			if err != nil || saved != (step == "saved") || saved != exists(vmImage) {
				t.Fatalf("saved %v, %v; the image is there: %v", saved, err, exists(vmImage))
			}
			savesLeft(t)
			if saved {
				vmGone(t, i)
				if i, err = r.Restore(t.Context(), env, vmImage, false, func(_, _ uint64) {}); err != nil {
					t.Fatal(err)
				}
			}
			goesOn(t, i)
			vmEnd(t, r, i)
			os.Remove(vmImage)
		})
	}
}

// writeOn stands in for a CRIU that goes on writing when the daemon is gone.
func writeOn(t *testing.T) {
	t.Helper()
	uuid := formatUUID(savedEnvironment(t).UUID)
	images := filepath.Join(vmData, "save", ".save-"+uuid, "images")
	script := fmt.Sprintf("mkdir -p %[1]s; n=0; while :; do n=$((n+1)); : > %[1]s/$n; done", images)
	out, err := exec.Command("systemd-run", "--unit="+dumpUnit(uuid), "--collect", "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	deadline := time.Now().Add(time.Minute)
	for !exists(images + "/1") {
		if time.Now().After(deadline) {
			t.Fatal("it does not write")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// goesOn looks whether an environment runs, remembers, and is reached.
func goesOn(t *testing.T, i *Instance) {
	t.Helper()
	if frozen, err := i.Frozen(); frozen || err != nil {
		t.Fatalf("frozen %v, %v", frozen, err)
	}
	if out := vmExec(t, i, "cat /run/in-memory"); out != "kept" {
		t.Errorf("it remembers %q", out)
	}
	if out := vmExec(t, i, counted); out == "" || out == "0" {
		t.Errorf("it counted to %q", out)
	}
	for _, address := range []string{"192.0.2.7", "198.51.100.20"} {
		var out []byte
		var err error
		for range 6 { // one is lost where a link has just come back
			if out, err = exec.Command("busybox", "ping", "-c", "1", "-W", "10", address).CombinedOutput(); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s is not reached: %s", address, out)
		}
	}
	if has, _ := cgroupOptions(readText("/proc/self/mountinfo")); !has {
		t.Error("cgroup2 has lost its options")
	}
}

// TestFailedSave: whatever goes wrong, the environment goes on as it was, and
// so does one whose image cannot be restored.
func TestFailedSave(t *testing.T) {
	exec.Command("ip", "addr", "add", "192.0.2.1/24", "dev", vmBridge).Run()
	os.Remove(vmImage)
	r := vmRuntime(t)
	env := savedEnvironment(t)
	i := vmStart(t, r, env, StartOptions{})
	vmExec(t, i, "echo kept > /run/in-memory; "+counting)
	quiet := func(_, _ uint64) {}
	header := SavedHeader{Name: env.Name}
	unit := "/sys/fs/cgroup/system.slice/" + dumpUnit(i.rec.UUID)
	dumps := func() { // not a time: how long CRIU takes depends on the machine
		for t.Context().Err() == nil && readText(unit+"/cgroup.procs") == "" {
			time.Sleep(time.Millisecond)
		}
	}
	for what, do := range map[string]func() error{
		"no directory": func() error { return i.Save(t.Context(), "/no/such/test.save", header, env.Interfaces, quiet) },
		"no room":      func() error { return i.Save(t.Context(), smallDisk(t)+"/test.save", header, env.Interfaces, quiet) },
		"given up": func() error {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				dumps()
				cancel()
			}()
			return i.Save(ctx, vmImage, header, env.Interfaces, quiet)
		},
		"criu is killed": func() error {
			go func() {
				dumps()
				os.WriteFile(unit+"/cgroup.kill", []byte("1"), 0)
			}()
			return i.Save(t.Context(), vmImage, header, env.Interfaces, quiet)
		},
	} {
		if err := do(); err == nil {
			t.Errorf("%s: it was saved", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
		goesOn(t, i)
		savesLeft(t)
		if exists(vmImage) {
			t.Fatalf("%s: there is an image", what)
		}
	}
	if tables := vmNetTables(t, i); strings.Contains(tables, "CRIU") {
		t.Errorf("CRIU's tables are left inside:\n%s", tables)
	}
	if err := i.Save(t.Context(), vmImage, header, env.Interfaces, quiet); err != nil {
		t.Fatal(err)
	}
	vmGone(t, i)
	defer os.Remove(vmImage)

	// The criu of a restore is killed, and it is restored after all.
	broken := savedEnvironment(t)
	broken.Interfaces[1].Target = vmBridge // a name that is taken
	if _, err := r.Restore(t.Context(), broken, vmImage, false, quiet); err == nil {
		t.Error("it was restored with a name that is taken")
	}
	nothingLeft(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := r.Restore(ctx, env, vmImage, false, quiet); err == nil {
		t.Error("it was restored though that was given up")
	}
	nothingLeft(t)
	savesLeft(t)
	j, err := r.Restore(t.Context(), env, vmImage, false, quiet)
	if err != nil {
		t.Fatal(err)
	}
	goesOn(t, j)
	vmEnd(t, r, j)
}

// smallDisk is a directory with hardly any room.
func smallDisk(t *testing.T) string {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func vmNetTables(t *testing.T, i *Instance) string {
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(i.Init()), "-n", "nft", "list", "tables").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}
