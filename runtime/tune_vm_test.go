//go:build vm

package runtime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"virtvzd/xml"
)

// tunedEnvironments are one environment without and with limits of each kind
// that has its own way into force.
func tunedEnvironments(t testing.TB) (plain, tuned *xml.Environment) {
	plain = vmEnvironment(t, "busybox")
	plain.Consoles = []xml.Console{{ID: "lxc 0"}}
	with := *plain
	disk, err := DiskNode(vmData)
	if err != nil {
		t.Fatal(err)
	}
	with.Memory = xml.MemoryLimits{Max: 200 << 20, High: 150 << 20, Low: 10 << 20, Min: 5 << 20, Swap: 0}
	with.CPU = xml.CPULimits{Count: 1, MaxCount: 1, Weight: 300, QuotaUSec: 50000, MemoryNodes: "0"}
	with.IO = xml.IOLimits{Weight: 200, Devices: []xml.DeviceIO{{Path: disk, Weight: 250, ReadBytes: 1 << 20, WriteIOPS: 77}}}
	with.Counts.Tasks, with.Counts.Cgroups, with.Counts.SharedPages, with.Counts.Terminals = 99, 9, 256, 7
	with.Counts.Files, with.Counts.LockedPages, with.Counts.Signals = 100, 16, 5
	image := filepath.Join(vmData, "disk")
	if err := errors.Join(os.MkdirAll(vmData, 0o711), os.WriteFile(image, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	with.Devices = []xml.Device{{Source: "/dev/fuse", Target: "/dev/fuse"}, {Source: image, Target: "/dev/vdx", Block: true, Image: "raw"}}
	with.IO.Devices = append(with.IO.Devices, xml.DeviceIO{Disk: "/dev/vdx", ReadIOPS: 55})
	with.Nameservers = []string{"192.0.2.53"}
	return plain, &with
}

// inForce is what kernel and systemd hold of an environment.
func inForce(t *testing.T, i *Instance) string {
	t.Helper()
	host, err := exec.Command("sh", "-ec", `cd "$1"
grep . memory.max memory.high memory.low memory.min memory.swap.max cpu.weight cpu.max cpuset.cpus.effective pids.max cgroup.max.descendants
sed 's/^/io.max:/' io.max; sed 's/^/io.weight:/' io.weight
systemctl show -p MemoryMax,MemoryHigh,CPUWeight,IOWeight,IOReadBandwidthMax,IOWriteIOPSMax,TasksMax,DeviceAllow "$2"`,
		"sh", i.CgroupPath(), i.Scope()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, host)
	}
	in, err := inside(i, `grep -E "open files|locked|pending" /proc/1/limits; ls /dev/fuse 2>&1; (exec 3</dev/fuse) 2>&1 && echo fuse opens; ls /dev/vdx 2>&1; (exec 3</dev/vdx) 2>&1 && echo disk opens; cat /proc/sys/kernel/shmall; grep -o 'max=[0-9]*' /proc/mounts; ls /dev/tty[0-9]* 2>&1; true`)
	if err != nil {
		t.Fatal(in, err)
	}
	return string(host) + in
}

// tuningChild tunes an environment in a manager that is killed meanwhile.
func tuningChild(r *Runtime, what string, ready func()) int {
	from, to := tunedEnvironments(&testing.T{})
	if what == "untune" {
		from, to = to, from
	}
	i, err := r.Start(context.Background(), from, StartOptions{})
	if err != nil {
		panic(err)
	}
	ready()
	i.Tune(context.Background(), from, to, nil)
	return 1
}

// TestKilledWhileTuning: a manager that is killed while it changes limits
// leaves an environment that gets those which are saved, and nothing of the
// others stays.
func TestKilledWhileTuning(t *testing.T) {
	plain, tuned := tunedEnvironments(t)
	r := vmRuntime(t)
	want := map[*xml.Environment]string{}
	for _, env := range []*xml.Environment{plain, tuned} {
		i, err := r.Start(t.Context(), env, StartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		want[env] = inForce(t, i)
		vmEnd(t, r, i)
	}
	if want[plain] == want[tuned] || !strings.Contains(want[tuned], "wiops=77") || !strings.Contains(want[tuned], "fuse opens") ||
		!strings.Contains(want[tuned], "disk opens") || !strings.Contains(want[tuned], "riops=55") {
		t.Fatalf("nothing is limited:\n%s\nand\n%s", want[plain], want[tuned])
	}
	for _, c := range []struct {
		step  string
		saved *xml.Environment
	}{
		{"tune tune properties", tuned}, {"tune tune done", plain}, {"untune tune done", tuned},
		{"tune disk recorded", plain}, {"tune image serve", tuned}, {"tune image connect", plain}, {"tune disk numbered", plain}, {"tune disk made", tuned},
		{"untune disk closes", tuned}, {"untune disk closed", tuned}, {"untune disk closed", plain},
	} {
		t.Run(c.step, func(t *testing.T) {
			runChild(t, c.step)
			r := vmRuntime(t)
			adopted, ended, err := r.Recover(t.Context(), vmStore.take())
			if err != nil || len(adopted) != 1 || len(ended) != 0 {
				t.Fatalf("adopted %d, ended %+v, %v", len(adopted), ended, err)
			}
			i := adopted[0]
			defer vmEnd(t, r, i)
			if err := i.Enforce(t.Context(), c.saved); err != nil {
				t.Error(err)
			}
			if got := inForce(t, i); got != want[c.saved] {
				t.Errorf("in force\n%s\nwant\n%s", got, want[c.saved])
			}
			if i.rec.Unsettled || i.rec.InForce != nil {
				t.Error("it is not settled")
			}
		})
	}
}

// TestTuneIsWhole: when a part cannot be had, nothing has changed.
func TestTuneIsWhole(t *testing.T) {
	plain, tuned := tunedEnvironments(t)
	r := vmRuntime(t)
	i := vmStart(t, r, plain, StartOptions{})
	before := inForce(t, i)
	next := *tuned
	next.Filesystems = append(next.Filesystems[:1:1], xml.Filesystem{Type: "bind", Source: "/no/such/directory", Target: "/srv"})
	if err := i.Tune(t.Context(), plain, &next, nil); err == nil {
		t.Fatal("a directory that is not there is mounted")
	}
	if after := inForce(t, i); after != before {
		t.Errorf("it was refused and changed\n%s\nto\n%s", before, after)
	}
	// Nor when it cannot be written down.
	note := filepath.Join(i.dir, recordName+".new")
	atStep = func(step string) error {
		if step == "tune properties" {
			return os.Mkdir(note, 0o700)
		}
		return nil
	}
	err := i.Tune(t.Context(), plain, tuned, nil)
	atStep = func(string) error { return nil }
	if err := os.Remove(note); err != nil {
		t.Fatal(err)
	}
	if after := inForce(t, i); err == nil || after != before {
		t.Errorf("it could not be noted, %v, and changed\n%s\nto\n%s", err, before, after)
	}
	if err := i.Tune(t.Context(), plain, tuned, nil); err != nil {
		t.Error(err)
	}
	if after := inForce(t, i); after == before {
		t.Errorf("nothing changed of\n%s", before)
	}
}
