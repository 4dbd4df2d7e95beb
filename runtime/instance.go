package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// Instance is an environment from its start until its Release.
type Instance struct {
	r     *Runtime
	uuid  [16]byte
	dir   string
	pidfd *os.File

	exited  chan struct{}
	oom     chan struct{}
	changed chan struct{} // see HostChanged
	waits   chan struct{} // see patiently

	sockstat sockstat
	deaf     atomic.Bool // see initFirst

	freezing sync.Mutex // held by who freezes, thaws or changes file systems

	mu         sync.Mutex
	rec        *record    // its Name and Phase change
	consoles   []*Console // without those that were lost, see takeConsole
	warnings   []string
	exit       Exit
	tornStates int       // how many of those that are noted Settle leaves, see torn
	guarded    bool      // see guardFrozen
	migration  *outgoing // sent, and not yet known what became of it
	kept       map[int]*adoptedProgram
}

func newInstance(r *Runtime, rec *record, pidfd *os.File) *Instance {
	uuid, _ := parseUUID(rec.UUID)
	return &Instance{r: r, uuid: uuid, dir: r.dir(uuid), pidfd: pidfd, rec: rec, exited: make(chan struct{}), oom: make(chan struct{}, 1), changed: make(chan struct{}, 1), waits: make(chan struct{}, maxFileWaits)}
}

// watch waits for the end of init in a goroutine.
func (i *Instance) watch() {
	if err := i.r.ooms.add(i); err != nil {
		i.warn(fmt.Sprintf("nobody will be told when %s runs out of memory: %v", i.Name(), err))
	}
	go func() {
		if !awaitExit(i.pidfd) {
			return // forgotten
		}
		exit := collect(i.pidfd)
		children.remove(i.rec.Init)
		i.mu.Lock()
		i.exit = exit.of(i.rec)
		i.mu.Unlock()
		for _, c := range i.Consoles() {
			c.finish()
		}
		close(i.exited)
	}()
}

// forget lets go of the descriptors without touching the environment.
func (i *Instance) forget() {
	children.remove(i.rec.Init)
	i.pidfd.Close()
	i.sockstat.close()
	for _, c := range i.Consoles() {
		c.master.Close()
	}
}

// Name is the domain's name at its start, or as changed by SetName.
func (i *Instance) Name() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec.Name
}

// SetName changes the name that Recover reports; the scope keeps its own.
func (i *Instance) SetName(name string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Name = name
	return i.rec.save(i.dir)
}

// UUID identifies the environment.
func (i *Instance) UUID() [16]byte { return i.uuid }

// Init is the host's PID of init, which is the domain's id.
func (i *Instance) Init() int { return i.rec.Init }

// InitKind is the sort of init it runs.
func (i *Instance) InitKind() InitKind { return i.rec.Kind }

// Scope is the name of its systemd unit.
func (i *Instance) Scope() string { return i.rec.Scope }

// CgroupPath is the directory of its scope's cgroup.
func (i *Instance) CgroupPath() string { return filepath.Join(cgroupRoot, i.rec.Cgroup) }

// IDMap is the map in force: Explicit with its ranges, or Privileged.
func (i *Instance) IDMap() xml.IDMap { return i.rec.IDMap }

// Warnings are sentences about what went wrong without stopping the start. One
// may come shortly after Start has returned.
func (i *Instance) Warnings() []string {
	i.mu.Lock()
	list := slices.Clone(i.warnings)
	i.mu.Unlock()
	for _, id := range i.unfiltered() {
		list = append(list, fmt.Sprintf("nothing that is sent by network interface %s passes, because its filter cannot be bound: mend the filter (virsh nwfilter-list shows those there are), it is tried again every %v", id, retryTime))
	}
	return list
}

func (i *Instance) warn(sentence string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.warnings = append(i.warnings, sentence)
}

// register tells machined. A start that was too short to be registered, or a host
// without machined, is no reason for a warning.
func (i *Instance) register(ctx context.Context, m systemd.Machine) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := i.r.config.Scopes.RegisterMachine(ctx, m)
	if err == nil || errors.Is(err, systemd.ErrNoMachined) || processState(int(m.Leader)) == 0 {
		return
	}
	i.warn(fmt.Sprintf("machined does not know %s: %v", m.Name, err))
}

// Started is false for an environment started paused until its first Resume.
func (i *Instance) Started() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec.Phase == running
}

// Exited is closed when init is gone.
func (i *Instance) Exited() <-chan struct{} { return i.exited }

// Exit tells how init ended; it is the zero value before Exited is closed.
func (i *Instance) Exit() Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

// Resume lets a paused environment go on: for the first time, or thawed.
func (i *Instance) Resume(ctx context.Context) error {
	if i.Started() {
		return i.thaw(ctx)
	}
	if err := i.r.ociStart(ctx, i.rec.UUID); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Phase = running
	return i.rec.save(i.dir)
}

// Suspend freezes all its processes. It goes through systemd, so that systemctl
// shows it and a daemon-reload does not undo it.
func (i *Instance) Suspend(ctx context.Context) error {
	if !i.Started() {
		return nil // has not run yet
	}
	if err := i.refuseFrozen(); err != nil { // a process that waits for one cannot be frozen itself
		return err
	}
	err := i.r.config.Scopes.Freeze(ctx, i.rec.Scope)
	if errors.Is(err, systemd.ErrUnitBusy) {
		return i.freezeCgroup(ctx, true)
	}
	return err
}

// thaw undoes Suspend.
func (i *Instance) thaw(ctx context.Context) error { return i.initFirst(ctx, i.thawScope) }

func (i *Instance) thawScope(ctx context.Context) error {
	err := i.r.config.Scopes.Thaw(ctx, i.rec.Scope)
	if err == nil { // systemd leaves one alone that is still about to freeze, as a dump that ends may leave it
		state, _ := os.ReadFile(filepath.Join(i.CgroupPath(), "cgroup.freeze"))
		if string(state) != "1\n" {
			return nil
		}
	}
	if err == nil || errors.Is(err, systemd.ErrUnitBusy) {
		return i.freezeCgroup(ctx, false)
	}
	return err
}

// freezeCgroup is for a scope that systemd is about to stop, and so leaves alone:
// while the host shuts down, libvirt-guests may still save what runs.
func (i *Instance) freezeCgroup(ctx context.Context, frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	if err := i.writeCgroup("cgroup.freeze", value); err != nil {
		return err
	}
	for {
		is, err := i.Frozen()
		if err != nil || is == frozen {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kill ends all processes of the environment at once and returns when init
// is reaped and the cgroup is gone. It needs no D-Bus and no cooperation, and works
// on a frozen environment. What waits in the kernel ends when the kernel lets it:
// then Kill gives up after a while, and Exited is closed when it has.
func (i *Instance) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := i.noteKill(); err != nil {
		return err
	}
	if err := killCgroup(i.rec.Cgroup); err != nil {
		return fmt.Errorf("kill %s: %w", i.Name(), err)
	}
	_, err := i.ThawFilesystems(ctx, nil) // who waits for one ends only then
	select {
	case <-i.exited:
	case <-ctx.Done():
		return errors.Join(errNotEnded(i.Name(), i.rec.Cgroup, ctx.Err()), err)
	}
	return awaitCgroupGone(ctx, i.rec.Cgroup)
}

// noteKill records that what follows is no crash.
func (i *Instance) noteKill() error {
	select {
	case <-i.exited:
		return nil // by itself, and what is recorded may be gone
	default:
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Killed = true
	return i.rec.save(i.dir)
}

// notEndedError is about what was killed.
type notEndedError struct {
	text  string
	cause error
}

func (e *notEndedError) Error() string { return e.text }
func (e *notEndedError) Unwrap() error { return e.cause }

// errNotEnded tells of what was killed why it is still there.
func errNotEnded(what, cgroup string, cause error) error {
	why := "systemd has not removed its cgroup " + cgroup + ": try again later"
	processesBelow(cgroup, func(pid int) error {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		process := fmt.Sprintf("process %d (%q)", pid, strings.TrimSpace(string(name)))
		why = process + " is still ending: try again later"
		if processState(pid) != 'D' {
			return nil
		}
		why = process + " waits in the kernel, as a rule for storage or a server that does not answer: see to that, and it ends"
		return fs.SkipAll
	})
	return &notEndedError{fmt.Sprintf("%s was killed but has not ended yet: %s", what, why), cause}
}

// Release removes everything the environment left on the host, except its
// private layer. It is called after Exited, once or again after an error; until
// it succeeds the environment cannot be started again.
func (i *Instance) Release(ctx context.Context) error {
	select {
	case <-i.exited:
	default:
		return fmt.Errorf("%s still runs: it cannot be released", i.Name())
	}
	thaw, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if _, err := i.ThawFilesystems(thaw, nil); err != nil {
		return err
	}
	if err := i.r.cleanup(ctx, i.rec); err != nil {
		return err
	}
	i.forget()
	i.r.unreserve(i.uuid)
	return nil
}

// killCgroup kills everything in a cgroup and below, also what forks meanwhile.
// No cgroup means nothing to kill.
func killCgroup(cgroup string) error {
	if cgroup == "" || cgroup == "/" {
		return nil
	}
	err := os.WriteFile(filepath.Join(cgroupRoot, cgroup, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// awaitCgroupGone waits until systemd has removed an empty scope's cgroup. A
// scope of the same name cannot be made before.
func awaitCgroupGone(ctx context.Context, cgroup string) error {
	if cgroup == "" || cgroup == "/" {
		return nil
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 8*time.Millisecond) {
		if _, err := os.Stat(filepath.Join(cgroupRoot, cgroup)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errNotEnded(filepath.Base(cgroup), cgroup, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Frozen tells whether its processes are frozen, by whomever.
func (i *Instance) Frozen() (bool, error) {
	text, err := os.ReadFile(filepath.Join(i.CgroupPath(), "cgroup.events"))
	return strings.Contains(string(text), "frozen 1"), err
}
