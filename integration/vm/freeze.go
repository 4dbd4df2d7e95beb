package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// snapshot is a machine that was booted, and stopped in the middle of running.
type snapshot struct {
	accel string
	image string // directory of kernel, initrd, ssh key
	dir   string // root.qcow2, data.qcow2, memory, state
}

// bootTime bounds a boot, and the work in it until the machine is quiet: 20 s
// emulated on an idle host, several minutes on one that is busy with others.
const bootTime = 8 * time.Minute

// frozen returns the snapshot that Start resumes copies from, and makes what is
// missing: the image, the choice of accelerator, the boot.
func frozen(ctx context.Context) (*snapshot, error) {
	cache := CacheDir()
	if s, err := findSnapshot(cache); err == nil && exists(s.dir) {
		return s, nil
	}
	unlock, err := lock(ctx, cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	image, err := image(ctx)
	if err != nil {
		return nil, err
	}
	accel, err := accelFor(ctx, cache, image)
	if err != nil {
		return nil, err
	}
	s := newSnapshot(image, accel)
	if exists(s.dir) {
		return s, nil
	}
	err = s.freeze(ctx)
	if err != nil && accel == "kvm" && ctx.Err() == nil {
		// It brought a kernel up, but not a whole system.
		progress("KVM does not work after all, emulating instead: %v", err)
		if err := os.WriteFile(filepath.Join(cache, "accel-"+hostKey()), []byte("tcg\n"), 0o644); err != nil {
			return nil, err
		}
		s = newSnapshot(image, "tcg")
		err = s.freeze(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("boot the VM's image: %w", err)
	}
	prune(image, "frozen-*", filepath.Base(s.dir))
	return s, nil
}

// findSnapshot is what the cache would hold if everything was made already.
func findSnapshot(cache string) (*snapshot, error) {
	image, err := imageDir()
	if err != nil {
		return nil, err
	}
	accel, err := os.ReadFile(filepath.Join(cache, "accel-"+hostKey()))
	if err != nil {
		return nil, err
	}
	return newSnapshot(image, strings.TrimSpace(string(accel))), nil
}

// newSnapshot names the snapshot by everything that has to be the same on
// resume: QEMU, host kernel, devices and how it was frozen.
func newSnapshot(image, accel string) *snapshot {
	alike := machine{accel: accel}
	parts := []string{hostKey(), accel, strings.Join(alike.args(), " "), settle, "2"}
	if accel == "kvm" {
		parts = append(parts, hostCPU()) // the guest saw it
	}
	key := shortHash(parts...)
	return &snapshot{accel, image, filepath.Join(image, "frozen-"+key)}
}

// settle waits until the boot is over, and runs once what tests do often, so
// that a copy has it in memory.
//
// The last is for QEMU's emulation: where the kernel changes its own code while
// another processor runs it, that processor may trip over what is half changed,
// and the kernel panics. CRIU makes it do so with every task that it restores
// (a breakpoint is a performance event of a task, and the first and last of
// those switch code in the scheduler on and off), so here there always is one:
// PERF_COUNT_SW_DUMMY, by perf_event_open(2).
const settle = `systemctl is-system-running --wait; systemctl --failed --no-legend >&2
virsh --version >/dev/null; crun --version >/dev/null; systemctl list-jobs >/dev/null; ls -laR /srv/roots >/dev/null; sync
systemd-run -q --unit=perf-event -p Type=notify python3 -c '
import ctypes, os, signal, socket, struct
attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 9), 112)
assert ctypes.CDLL(None, use_errno=True).syscall(298, attributes, 0, -1, -1, 0) >= 0
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()' && systemctl is-active -q perf-event`

// freeze boots the image and stops it: memory goes to a file that QEMU maps, so
// copies map the same file privately, device state (a few MB) is migrated to
// another.
func (s *snapshot) freeze(ctx context.Context) (err error) {
	start := time.Now()
	progress("booting the image, once")
	defer during(func() string { return "booting" })()
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()

	partial := s.dir + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return err
	}
	if err := overlay(partial, "../root.raw", "raw", "root"); err != nil {
		return err
	}
	if err := overlay(partial, "../data.raw", "raw", "data"); err != nil {
		return err
	}
	m := machine{accel: s.accel, image: s.image, dir: partial, memory: filepath.Join(partial, "memory"), share: true}
	v, err := bring(ctx, "frozen", m)
	if err != nil {
		return err
	}
	defer os.RemoveAll(v.sockets)
	defer v.qemu.kill()
	progress("machine is up after %s, waiting until it is quiet", since(start))
	if out, err := v.Run(ctx, settle); err != nil || strings.TrimSpace(out) != "running" {
		return fmt.Errorf("the machine came up %q: %w", strings.TrimSpace(out), errors.Join(err, errors.New("its console says: "+v.consoleTail())))
	}
	v.disconnect() // a connection of the frozen machine would be a dead one in every copy

	qmp := v.qemu.monitor
	// The memory is in its file already: leave it out of the state.
	caps := []map[string]any{{"capability": "x-ignore-shared", "state": true}}
	if err := qmp.do("migrate-set-capabilities", map[string]any{"capabilities": caps}, nil); err != nil {
		return err
	}
	if err := qmp.do("stop", nil, nil); err != nil {
		return err
	}
	if err := qmp.do("migrate", map[string]any{"uri": "exec:cat >state"}, nil); err != nil {
		return err
	}
	if err := qmp.waitStatus(ctx, "query-migrate", "completed", "failed"); err != nil {
		return err
	}
	// On quit QEMU writes the disks' caches.
	if err := qmp.do("quit", nil, nil); err != nil {
		return err
	}
	select {
	case <-v.qemu.exited:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	os.Remove(filepath.Join(partial, "vm.json"))
	if err := os.Rename(partial, s.dir); err != nil {
		return err
	}
	progress("booted and frozen in %s", since(start))
	return nil
}

// overlay makes DIR/NAME.qcow2, which holds the differences from a disk.
func overlay(dir, base, format, name string) error {
	cmd := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", base, name+".qcow2")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img: %w %s", err, out)
	}
	return nil
}

// Freeze makes everything that Start needs, so that Start takes seconds.
func Freeze(ctx context.Context) error {
	_, err := frozen(ctx)
	return err
}
