package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// Config says where things are. The zero value of FDs means that consoles do not
// survive a restart of the daemon.
type Config struct {
	StateDir string // on a tmpfs, such as /run/libvirt/vz
	DataDir  string // on ext4, xfs or btrfs, such as /var/lib/libvirt/vz
	OCI      string // OCI runtime, name or path: crun
	HostRoot bool   // an environment may have the host's root
	Scopes   Scopes
	FDs      FDStore
	Networks Networks // libvirt's; nil: there are none
	Filters  Filters  // libvirt's; nil: there are none
	Volumes  Volumes  // libvirt's; nil: there are none
}

// Scopes is what is wanted from systemd; *systemd.Conn has it.
type Scopes interface {
	StartScope(ctx context.Context, s systemd.Scope) error
	StartService(ctx context.Context, name string, props ...systemd.Property) error
	Stop(ctx context.Context, unit string) error
	SetProperties(ctx context.Context, unit string, props ...systemd.Property) error
	ResetFailed(ctx context.Context, unit string) error
	Freeze(ctx context.Context, unit string) error
	Thaw(ctx context.Context, unit string) error
	RegisterMachine(ctx context.Context, m systemd.Machine) error
	ForgetMachine(ctx context.Context, unit string) error
}

// FDStore keeps descriptors over a restart of the daemon; *systemd.Service has it.
type FDStore interface {
	Store(name string, f *os.File) error
	Remove(name string) error
}

// ErrRunning is returned by Start for an environment that has not been released.
var ErrRunning = errors.New("the environment is running already")

// ErrUnsupported marks what an environment cannot do, whatever its state.
var ErrUnsupported = errors.New("not supported")

// Runtime runs the environments of one host.
type Runtime struct {
	config Config
	host   Host
	stop   chan struct{}
	ooms   *oomWatch

	projects projectNumbers
	binding  sync.Mutex // held while a filter is renewed or taken away

	faults    sync.Mutex // held while it is changed who may handle page faults
	restoring int        // how many restores need that, see allowFaults

	counting sync.Mutex // held while traffic is read and added to an account
	editing  sync.Mutex // held while what is remembered of a migration changes

	mu        sync.Mutex
	instances map[[16]byte]*Instance // nil while a start or a clean-up goes on
	claims    map[[16]byte]claim
	links     linkState
	incoming  map[string]*Incoming // by ID of the migration
	pulls     map[string]Outgoing  // disks that a destination may ask for, by ID of the migration
	asked     []string             // see Asked
}

// claim is what an environment holds of what there is only so much of.
type claim struct {
	ids   []span
	cpus  []int
	root  *rootNode
	disks []int // numbers of devices, see disk.go
}

// New looks at the host and makes the directories. The error of a host that
// cannot run environments says what to install or to change. The process becomes a
// subreaper.
func New(c Config) (*Runtime, error) {
	host, err := probeHost(c.OCI)
	if err != nil {
		return nil, err
	}
	r := &Runtime{
		config: c, host: host, stop: make(chan struct{}),
		instances: map[[16]byte]*Instance{}, claims: map[[16]byte]claim{}, links: newLinkState(), incoming: map[string]*Incoming{}, pulls: map[string]Outgoing{},
	}
	// The state directory must be searchable: the root below it is entered by
	// the environment's root, who is nobody here. What is in it is not readable.
	for dir, mode := range map[string]os.FileMode{
		c.StateDir: 0o711, r.ociRoot(): 0o700, filepath.Join(c.DataDir, "private"): 0o700,
	} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return nil, err
		}
	}
	if r.ooms, err = newOOMWatch(); err != nil {
		return nil, err
	}
	if err := becomeSubreaper(r.stop); err != nil {
		return nil, err
	}
	if r.links.host != nil {
		go r.watchHost()
		go r.tend()
	}
	return r, nil
}

// Close stops watching. The environments go on; a later Recover adopts them.
func (r *Runtime) Close() error {
	close(r.stop)
	r.ooms.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.instances {
		if i != nil {
			i.forget()
		}
	}
	r.links.close()
	return nil
}

// Host is what was found at the start.
func (r *Runtime) Host() Host { return r.host }

// Templates are the templates below the data directory.
func (r *Runtime) Templates() *Templates { return OpenTemplates(r.config.DataDir) }

func (r *Runtime) dir(uuid [16]byte) string {
	return filepath.Join(r.config.StateDir, formatUUID(uuid))
}

// ociRoot is the OCI runtime's state directory. It is one for all, because crun
// keeps its compiled seccomp filters there.
func (r *Runtime) ociRoot() string { return filepath.Join(r.config.StateDir, "crun") }

func (r *Runtime) privateDir(uuid [16]byte) string {
	return filepath.Join(r.config.DataDir, "private", formatUUID(uuid))
}

// RemovePrivate deletes the environment's own layer, all its data.
func (r *Runtime) RemovePrivate(uuid [16]byte) error {
	r.mu.Lock()
	_, busy := r.instances[uuid]
	r.mu.Unlock()
	if busy {
		return ErrRunning
	}
	r.freeSpace(uuid)
	return removeTree(r.privateDir(uuid))
}

// releaseEnded does what the Release of an environment could not do when it
// ended.
func (r *Runtime) releaseEnded(ctx context.Context, uuid [16]byte) error {
	r.mu.Lock()
	i := r.instances[uuid]
	r.mu.Unlock()
	if i == nil {
		return nil
	}
	select {
	case <-i.exited:
		return i.Release(ctx)
	default:
		return nil // runs
	}
}

// reserve makes the UUID ours, so that two starts cannot meet, and claims ids
// and CPUs for it. restored is one whose ids were chosen when it was started
// first, unless they are not of those that are given to one environment only.
func (r *Runtime) reserve(env *xml.Environment, restored bool) (Reserved, error) {
	res := Reserved{Dir: r.dir(env.UUID), Layers: r.privateDir(env.UUID), CPULoad: map[int]int{}}
	foreign := foreignSpans("/etc")
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.instances[env.UUID]; ok {
		return res, fmt.Errorf("%s: %w", env.Name, ErrRunning)
	}
	taken := foreign
	for _, c := range r.claims {
		taken = append(taken, c.ids...)
		for _, cpu := range c.cpus {
			res.CPULoad[cpu]++
		}
	}
	if env.IDMap.Mode == xml.Auto {
		base, err := pickRange(env.UUID, taken)
		if err != nil {
			return res, err
		}
		res.Base = base
	}
	for _, ids := range spans(env.IDMap) {
		if restored && ids.First >= firstRange && !free(ids, taken) {
			return res, fmt.Errorf("%s was saved with the ids from %d on, which another environment or a user has now: stop that first", env.Name, ids.First)
		}
	}
	cpus, err := chooseCPUs(env.CPU, r.host, res.CPULoad, nil)
	if err != nil {
		return res, err
	}
	r.instances[env.UUID] = nil
	r.claims[env.UUID] = claim{ids: spans(planIDs(env, res)), cpus: cpus}
	return res, nil
}

func spans(ids xml.IDMap) []span {
	var out []span
	for _, r := range append(ranges(ids.UIDs), ranges(ids.GIDs)...) {
		out = append(out, span{r.Host, r.Count})
	}
	return out
}

func (r *Runtime) unreserve(uuid [16]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.instances, uuid)
	delete(r.claims, uuid)
}

func (r *Runtime) keep(i *Instance, c claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.instances[i.uuid] = i
	r.claims[i.uuid] = c
	if len(i.rec.Links) > 0 {
		i.tellChanged() // the host may have before anybody looked
	}
}

// storeFD hands a duplicate to the service manager. Taking the number out of
// an os.File makes the open file blocking, which it shares with the duplicate,
// so that is put right again.
func (r *Runtime) storeFD(name string, f *os.File) error {
	if r.config.FDs == nil || f == nil {
		return nil
	}
	dup, err := dupFile(f)
	if err != nil {
		return err
	}
	defer func() {
		dup.Close()
		setNonblock(f)
	}()
	return r.config.FDs.Store(name, dup)
}

func (r *Runtime) dropFD(name string) {
	if r.config.FDs != nil {
		r.config.FDs.Remove(name) // what is not stored need not be removed
	}
}

func initFDName(uuid string) string           { return "vz-init-" + uuid }
func consoleFDName(uuid string, n int) string { return fmt.Sprintf("vz-console-%s-%d", uuid, n) }
