package vm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options of a machine; the zero value is what most tests want.
type Options struct {
	// Keep lets the machine run on when this process ends; Open finds it again
	// by its name, which nobody else may use then.
	Keep bool
	// OwnID gives the machine a machine id of its own. It costs a second, for
	// journald has to be restarted.
	OwnID bool
	// Wire joins two machines by a network card each, eth1, with the addresses
	// 10.99.0.1/24 and 10.99.0.2/24.
	Wire *WireEnd
	// Reboot makes a reboot inside one that ends in a running machine; without
	// it, as after a kernel panic, the machine is gone. All changes since the
	// resume are kept.
	Reboot bool
}

// WireEnd is one of the two ends of a wire: End is 1 or 2, and both have the
// same Dir, an existing directory with a short path (under 100 bytes).
type WireEnd struct {
	Dir string
	End int
}

// VM is a running machine. Its methods may be called at the same time.
type VM struct {
	Name string
	Dir  string // console.log, disks
	Port int    // of its ssh, on 127.0.0.1

	image   string
	qemu    *qemu // nil when another process started it
	pid     int
	started uint64 // of pid, see startTime
	kept    bool
	once    sync.Once
	master  func() // ends the shared ssh connection
	sockets string // directory with a short path
}

// state is what Open needs, in vm.json of a running machine's directory.
type state struct {
	Name, Image, Sockets string
	PID, Port            int
	Started              uint64
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// Start resumes a copy of the frozen machine and waits until commands can be
// run in it: 1 to 5 s. The first call ever makes and boots the image, which
// takes minutes; see Progress. Name becomes the host name.
func Start(ctx context.Context, name string, o Options) (*VM, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("%q cannot be a machine's name: use up to 32 of a-z, 0-9 and -", name)
	}
	s, err := frozen(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := runDir(name, o.Keep)
	if err != nil {
		return nil, err
	}
	v, err := s.resume(ctx, name, dir, o)
	if err != nil {
		keepConsole(name, dir)
		os.RemoveAll(dir)
		return nil, fmt.Errorf("start machine %s (if it repeats, remove %s to boot the image anew): %w", name, s.dir, err)
	}
	return v, nil
}

// runDir makes the directory of a running machine, and removes those of
// machines whose owner had no time to.
func runDir(name string, keep bool) (string, error) {
	run := filepath.Join(CacheDir(), "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return "", err
	}
	sweep(run)
	if !keep {
		return os.MkdirTemp(run, name+".")
	}
	dir := filepath.Join(run, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("machine %s runs already, or is being started: %w", name, err)
	}
	return dir, nil
}

// sweep removes directories of machines that are gone. Young ones without a
// record may belong to a machine that is being started.
func sweep(run string) {
	dirs, _ := filepath.Glob(filepath.Join(run, "*"))
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			continue
		}
		st, err := readState(dir)
		switch {
		case err == nil && startTime(st.PID) == st.Started:
		case err != nil && time.Since(info.ModTime()) < 10*time.Minute:
		default:
			keepConsole(filepath.Base(dir), dir)
			os.RemoveAll(st.Sockets)
			os.RemoveAll(dir)
		}
	}
}

func (s *snapshot) resume(ctx context.Context, name, dir string, o Options) (*VM, error) {
	for _, disk := range []string{"root", "data"} {
		if err := overlay(dir, filepath.Join(s.dir, disk+".qcow2"), "qcow2", disk); err != nil {
			return nil, err
		}
	}
	m := machine{
		accel: s.accel, image: s.image, dir: dir, memory: filepath.Join(s.dir, "memory"),
		incoming: filepath.Join(s.dir, "state"), reboot: o.Reboot, detached: o.Keep,
	}
	if w := o.Wire; w != nil {
		if w.End != 1 && w.End != 2 {
			return nil, fmt.Errorf("a wire has the ends 1 and 2, not %d", w.End)
		}
		end := func(n int) string { return comma(filepath.Join(w.Dir, fmt.Sprint(n))) }
		m.wire = fmt.Sprintf("dgram,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s", end(w.End), end(3-w.End))
	}
	os.Chtimes(s.dir, time.Time{}, time.Now())
	os.Chtimes(s.image, time.Time{}, time.Now())
	v, err := bring(ctx, name, m)
	if err != nil {
		return nil, err
	}
	if err := v.personalize(ctx, o); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

// bring launches a machine and waits until commands can be run in it.
func bring(ctx context.Context, name string, m machine) (*VM, error) {
	var v *VM
	for try := 1; ; try++ {
		var err error
		if m.port, err = freePort(); err != nil {
			return nil, err
		}
		q, err := m.launch(ctx)
		if err == nil {
			v = &VM{Name: name, Dir: m.dir, Port: m.port, image: m.image, qemu: q, pid: q.process.Pid, kept: m.detached}
			break
		}
		if try == 3 || !strings.Contains(err.Error(), "host forwarding") {
			return nil, err
		}
	}
	v.started = startTime(v.pid)
	fail := func(err error) (*VM, error) {
		v.Close()
		return nil, errors.Join(err, errors.New("its console says: "+v.consoleTail()))
	}
	if m.incoming != "" {
		qmp := v.qemu.monitor
		caps := []map[string]any{{"capability": "x-ignore-shared", "state": true}}
		if err := qmp.do("migrate-set-capabilities", map[string]any{"capabilities": caps}, nil); err != nil {
			return fail(err)
		}
		if err := qmp.do("migrate-incoming", map[string]any{"uri": "exec:cat '" + strings.ReplaceAll(m.incoming, "'", `'\''`) + "'"}, nil); err != nil {
			return fail(err)
		}
		if err := qmp.waitStatus(ctx, "query-status", "paused", "internal-error"); err != nil {
			return fail(err)
		}
		if err := qmp.do("cont", nil, nil); err != nil {
			return fail(err)
		}
	}
	var err error
	if v.sockets, err = os.MkdirTemp("", "vm-"); err != nil {
		return fail(err)
	}
	record, _ := json.Marshal(state{v.Name, v.image, v.sockets, v.pid, v.Port, v.started})
	if err := os.WriteFile(filepath.Join(v.Dir, "vm.json"), record, 0o644); err != nil {
		return fail(err)
	}
	if err := v.connect(ctx); err != nil {
		return fail(err)
	}
	return v, nil
}

// personalize makes a copy differ from its siblings, and tells it the time,
// which stood still while it was frozen.
func (v *VM) personalize(ctx context.Context, o Options) error {
	seed := make([]byte, 32)
	rand.Read(seed)
	script := []string{
		fmt.Sprintf("date -u -s @%.3f >/dev/null", float64(time.Now().UnixMilli())/1000),
		fmt.Sprintf("hostname %[1]s && echo %[1]s >/etc/hostname && echo 127.0.0.1 localhost %[1]s >/etc/hosts", v.Name),
		"echo " + hex.EncodeToString(seed) + " >/dev/urandom",
	}
	if o.OwnID {
		id := make([]byte, 16)
		rand.Read(id)
		script = append(script, "echo "+hex.EncodeToString(id)+" >/etc/machine-id", "systemctl restart systemd-journald")
	}
	if w := o.Wire; w != nil {
		script = append(script, fmt.Sprintf("ip link set eth1 address 52:54:00:00:01:%02d up && ip addr add 10.99.0.%d/24 dev eth1", w.End, w.End))
	}
	_, err := v.Run(ctx, strings.Join(script, " && "))
	return err
}

// Open finds a machine that was started with Keep.
func Open(name string) (*VM, error) {
	dir := filepath.Join(CacheDir(), "run", name)
	st, err := readState(dir)
	if err != nil || startTime(st.PID) != st.Started {
		return nil, fmt.Errorf("no machine %s runs", name)
	}
	return &VM{
		Name: name, Dir: dir, Port: st.Port, image: st.Image, pid: st.PID, started: st.Started,
		kept: true, sockets: st.Sockets,
	}, nil
}

// Running names the machines of this cache that run, whoever started them.
func Running() []string {
	var names []string
	dirs, _ := filepath.Glob(filepath.Join(CacheDir(), "run", "*"))
	for _, dir := range dirs {
		if st, err := readState(dir); err == nil && startTime(st.PID) == st.Started {
			names = append(names, filepath.Base(dir))
		}
	}
	return names
}

func readState(dir string) (st state, err error) {
	data, err := os.ReadFile(filepath.Join(dir, "vm.json"))
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	return st, err
}

// Close switches the machine off and removes all of it but its console's log.
func (v *VM) Close() error {
	v.once.Do(func() {
		v.disconnect()
		if v.qemu != nil {
			v.qemu.kill()
		} else if startTime(v.pid) == v.started {
			syscall.Kill(v.pid, syscall.SIGKILL)
			for startTime(v.pid) == v.started {
				time.Sleep(5 * time.Millisecond)
			}
		}
		keepConsole(v.Name, v.Dir)
		os.RemoveAll(v.sockets)
		if filepath.Base(filepath.Dir(v.Dir)) == "run" {
			os.RemoveAll(v.Dir)
		}
	})
	return nil
}

// keepConsole saves what a machine printed for whoever looks for the reason of
// a failure.
func keepConsole(name, dir string) {
	kept := filepath.Join(CacheDir(), "console")
	if os.MkdirAll(kept, 0o755) == nil {
		name, _, _ = strings.Cut(name, ".")
		os.Rename(filepath.Join(dir, "console.log"), filepath.Join(kept, name+".log"))
	}
}

func (v *VM) consoleTail() string {
	return lastWords(tail(filepath.Join(v.Dir, "console.log"), 64<<10))
}

// lastWords picks what matters from the end of a console's log: the beginning
// of a kernel's complaint if there is one, else the last lines.
func lastWords(log string) string {
	const enough = 1500
	begin := max(0, len(log)-enough)
	if at := complaint.FindStringIndex(log); at != nil {
		begin = strings.LastIndexByte(log[:at[0]], '\n') + 1
	}
	return log[begin:min(len(log), begin+enough)]
}

var complaint = regexp.MustCompile(`BUG: |Oops: |Kernel panic|traps: PANIC`)
