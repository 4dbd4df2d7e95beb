//go:build vm

package runtime

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"

	"virtvzd/systemd"
)

// TestUnfinishedImages: a daemon that is killed between any two steps of
// opening a qcow2 image leaves neither a server nor a device once another has
// started.
func TestUnfinishedImages(t *testing.T) {
	r := vmRuntime(t)
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "10M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-utils are wanted here: %v: %s", err, out)
	}
	conn, err := systemd.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for n := 0; ; n++ {
		steps := dying(n, func() {
			device, err := r.openQcow2(t.Context(), image, false)
			if err != nil {
				t.Fatal(err)
			}
			device.Close()
		})
		if err := r.endUnfinishedImages(context.Background()); err != nil {
			t.Fatalf("killed at %v: %v", steps, err)
		}
		var units []systemd.Unit
		var devices []string
		for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
			goruntime.GC() // closes what the killed one had open, which the kernel does when a process ends
			if units, err = conn.ListUnits(t.Context(), imageUnit("*")); err != nil {
				t.Fatal(err)
			}
			devices, _ = filepath.Glob("/sys/block/nbd*/pid")
			if len(units)+len(devices) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("killed at %v: left %v, %v", steps, units, devices)
			}
		}
		if left, _ := os.ReadDir(r.imagesDir()); len(left) != 0 {
			t.Errorf("killed at %v: left %v", steps, left)
		}
		if len(steps) <= n {
			t.Logf("steps: %v", steps)
			return
		}
	}
}
