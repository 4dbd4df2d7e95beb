package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// StartOptions change how an environment is started.
type StartOptions struct {
	Paused bool       // all is set up, but init has not run an instruction: Resume starts it
	Files  []*os.File // become descriptors 3, 4, … of init; the caller closes its own

	// Checkpoint is a directory of Instance.Checkpoint's, "" for a start from
	// the beginning. With Paused the environment runs for a moment before it is frozen.
	Checkpoint string

	// Arrival is for a checkpoint that is on its way from another host, by the
	// migration Session. It is held: it runs no instruction before FinishMigration.
	Arrival *arrival
	Session string
}

// Start runs an environment: all of it, or the error says why not and nothing
// is left.
func (r *Runtime) Start(ctx context.Context, env *xml.Environment, o StartOptions) (*Instance, error) {
	if err := r.releaseEnded(ctx, env.UUID); err != nil {
		return nil, err
	}
	if err := r.RefuseLeft(env.UUID); err != nil {
		return nil, err
	}
	var m *manifest
	if o.Checkpoint != "" {
		if err := r.probeCRIU(); err != nil {
			return nil, err
		}
		if o.Arrival != nil {
			m = &manifest{} // it comes later
		} else {
			var err error
			if m, err = loadManifest(o.Checkpoint); err != nil {
				return nil, err
			}
			env = m.ofCheckpoint(env)
		}
	}
	res, err := r.reserve(env, m != nil)
	if err != nil {
		return nil, err
	}
	s := &starter{r: r, env: env, res: res, options: o, manifest: m}
	i, err := s.start(ctx)
	if err == nil {
		return i, nil
	}
	// The caller may have given up; the undo has its own time.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	s.abandon()
	if s.rec != nil {
		err = errors.Join(err, r.cleanup(undo, s.rec))
	}
	if s.i != nil {
		collect(s.i.pidfd) // killed by the clean-up: no zombie stays
		s.i.forget()
	}
	r.unreserve(env.UUID)
	return nil, err
}

// starter is one start on its way. Each field is set by the step that makes the
// thing, and undone by abandon or, from the record, by cleanup.
type starter struct {
	r        *Runtime
	env      *xml.Environment
	res      Reserved
	options  StartOptions
	manifest *manifest // of the checkpoint, nil without one

	rec     *record
	tree    *os.File // the root's mount, when the stub does not make it
	stub    *stub
	scope   chan error
	plan    *Plan
	root    Root
	console *consoleSocket
	i       *Instance
}

// atStep is called before each step of a start and of a clean-up. Tests kill
// the process here, or make the step fail where its error is looked at; it does
// nothing otherwise (but see faults.go).
var atStep = func(step string) error { return nil }

// AtStep is atStep for the steps that the daemon makes around ours.
func AtStep(step string) error { return atStep(step) }

func (s *starter) start(ctx context.Context) (*Instance, error) {
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"record", s.writeRecord},
		{"layers", s.makeLayers},
		{"stub", s.forkStub},
		{"scope", s.beginScope},
		{"root", s.mountRoot},
		{"plan", s.makePlan},
		{"furnish", s.furnish},
		{"joined", s.awaitScope},
		{"delegate", s.delegate},
		{"create", s.create},
		{"adopt", s.adopt},
		{"equip", s.equip},
		{"store", s.store},
		{"run", s.run},
		{"done", s.finish},
	}
	for _, step := range steps {
		if err := atStep(step.name); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("start of %s given up: %w", s.env.Name, err)
		}
		if err := step.do(ctx); err != nil {
			return nil, err
		}
	}
	return s.i, nil
}

// abandon ends what only this process holds. The rest is in the record.
func (s *starter) abandon() {
	if s.stub != nil {
		s.stub.kill()
	}
	if s.tree != nil {
		s.tree.Close() // perhaps again
	}
	if s.scope != nil {
		<-s.scope // so that the clean-up sees the scope, if it came to be
	}
	if s.console != nil {
		s.console.close()
	}
}

func (s *starter) writeRecord(ctx context.Context) error {
	rec := &record{
		Version: 1, UUID: formatUUID(s.env.UUID), Name: s.env.Name, Phase: starting,
		Scope: systemd.ScopeName(s.env.Name), IDMap: planIDs(s.env, s.res), Session: s.options.Session,
	}
	rec.CPUs, _ = chooseCPUs(s.env.CPU, s.r.host, s.res.CPULoad, nil) // succeeded in reserve
	err := os.Mkdir(s.res.Dir, 0o711)
	if errors.Is(err, os.ErrExist) {
		// What an earlier clean-up could not finish, perhaps while D-Bus was away.
		if old, e := s.r.recordOf(s.env.UUID); e != nil {
			return e
		} else if e := s.r.cleanup(ctx, old); e != nil {
			return e
		}
		err = os.Mkdir(s.res.Dir, 0o711)
	}
	if err != nil {
		return fmt.Errorf("state directory of %s: %w", s.env.Name, err)
	}
	s.rec = rec
	s.r.openAccount(s.env.UUID)
	if err := os.Chmod(s.res.Dir, 0o711); err != nil {
		return err
	}
	return rec.save(s.res.Dir)
}

func (s *starter) forkStub(context.Context) (err error) {
	files := s.options.Files
	if s.tree != nil {
		files = append(slices.Clip(files), s.tree)
		defer s.tree.Close()
	}
	s.stub, err = startStub(files)
	return err
}

// beginScope asks systemd for the scope while the stub mounts: both take about as
// long.
func (s *starter) beginScope(ctx context.Context) error {
	scope, err := planScope(s.env, s.r.host, s.res)
	if err != nil {
		return err
	}
	scope.PIDs = []uint32{uint32(s.stub.pid())}
	s.scope = make(chan error, 1)
	go func() {
		// What machined cannot forget now is for the registration to tell.
		s.r.config.Scopes.ForgetMachine(ctx, scope.Name)
		s.scope <- s.r.config.Scopes.StartScope(ctx, scope)
		close(s.scope)
	}()
	return nil
}

func (s *starter) makePlan(context.Context) error {
	plan, err := NewPlan(s.env, s.r.host, s.root, s.res)
	if err != nil {
		return err
	}
	s.plan = plan
	s.rec.Kind = s.root.Kind
	if s.manifest != nil {
		// crun would make files to mount on where CRIU mounts what they are below.
		plan.Spec.Mounts = slices.DeleteFunc(plan.Spec.Mounts, func(m specs.Mount) bool { return m.Type == "bind" })
	}
	body, err := json.Marshal(plan.Spec)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(s.res.Dir, "config.json"), body, 0o600)
}

func (s *starter) furnish(ctx context.Context) (err error) {
	socket := filepath.Join(s.res.Dir, "console.sock")
	if s.console, err = listenConsole(socket); err != nil {
		return err
	}
	work := s.plan.Work
	work.Env = []string{"PATH=" + runtimePath}
	work.Argv = s.r.createCommand(s.rec.UUID, s.res.Dir, socket, len(s.options.Files))
	if s.manifest != nil { // CRIU has what is mounted below the root, and all in it
		work.Mounts, work.Files, work.Names = nil, nil, ""
		work.Env = append(work.Env, "CRIU_CONFIG_FILE="+filepath.Join(s.options.Checkpoint, "criu.conf"))
		work.Argv = s.r.restoreCommand(s.rec.UUID, s.res.Dir, socket, s.options.Checkpoint)
	}
	defer context.AfterFunc(ctx, s.stub.kill)()
	return s.stub.furnish(work)
}

func (r *Runtime) createCommand(id, dir, socket string, files int) []string {
	argv := []string{r.host.OCI, "--root", r.ociRoot(), "--cgroup-manager=disabled", "create",
		"--bundle", dir, "--console-socket", socket, "--pid-file", filepath.Join(dir, "pid")}
	if files > 0 {
		argv = append(argv, "--preserve-fds", strconv.Itoa(files))
	}
	return append(argv, id)
}

func (s *starter) awaitScope(context.Context) error {
	if err := <-s.scope; err != nil {
		return fmt.Errorf("scope of %s: %w", s.env.Name, err)
	}
	cgroup, err := systemd.ControlGroupOf(s.stub.pid(), s.rec.Scope)
	if err != nil {
		return err
	}
	s.rec.Cgroup = cgroup
	return s.rec.save(s.res.Dir)
}

// delegate gives the scope's cgroup to the environment's root: a systemd inside
// makes its own groups there. The files with the limits stay the host's.
//
// Without nsdelegate even that would not hold, so it is looked at every time:
// whoever mounts cgroup2 anywhere without the option takes it from all.
func (s *starter) delegate(context.Context) error {
	if _, err := RestoreCgroupOptions(); err != nil {
		return err
	}
	if s.plan.IDMap.Mode == xml.Privileged {
		return nil
	}
	uid, gid := int(hostID(s.plan.Root.UIDs, 0)), int(hostID(s.plan.Root.GIDs, 0))
	dir := filepath.Join(cgroupRoot, s.rec.Cgroup)
	for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
		if err := os.Lchown(filepath.Join(dir, name), uid, gid); err != nil {
			return fmt.Errorf("give the scope to the environment: %w", err)
		}
	}
	return nil
}

// create lets the stub become "crun create".
func (s *starter) create(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.stub.kill)()
	if s.manifest != nil {
		if err := s.awaitProcesses(ctx); err != nil {
			return err
		}
		if err := s.prepareRestore(ctx); err != nil {
			return err
		}
		if err := s.restored(s.stub.run()); err != nil {
			return fmt.Errorf("restore %s: %w", s.env.Name, err)
		}
		return nil
	}
	if err := s.stub.run(); err != nil {
		return fmt.Errorf("create %s: %w", s.env.Name, err)
	}
	return nil
}

// awaitProcesses waits for a checkpoint that is on its way.
func (s *starter) awaitProcesses(ctx context.Context) error {
	a := s.options.Arrival
	if a == nil {
		return nil
	}
	if err := a.await(ctx, a.processes); err != nil {
		return err
	}
	var err error
	s.manifest, err = loadManifest(s.options.Checkpoint)
	return err
}

// adopt takes hold of what crun left: init, our child now, and its console.
func (s *starter) adopt(context.Context) error {
	text, err := os.ReadFile(filepath.Join(s.res.Dir, "pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("pid file of %s: %w", s.env.Name, err)
	}
	start := startTime(pid)
	pidfd, err := openPidfd(pid, start)
	if err != nil {
		return err
	}
	s.rec.Init, s.rec.InitStart = pid, start
	s.i = newInstance(s.r, s.rec, pidfd)
	children.add(pid)
	master, err := s.console.take()
	s.console = nil
	if s.manifest != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		master, err = s.i.replaceConsole()
	}
	if err != nil {
		return fmt.Errorf("console of %s: %w", s.env.Name, err)
	}
	entry := recordedConsole{Path: "/dev/console"}
	appendLog := true
	if len(s.env.Consoles) > 0 {
		first := s.env.Consoles[0]
		entry.ID, entry.Log, appendLog = first.ID, first.LogFile, first.LogAppend
	}
	log, err := openLog(entry.Log, appendLog)
	if err != nil {
		master.Close()
		return err
	}
	s.rec.Consoles = []recordedConsole{entry}
	s.i.consoles = []*Console{newConsole(master, entry, log)}
	if s.options.Paused && s.manifest == nil {
		s.rec.Phase = created
	}
	return s.rec.save(s.res.Dir)
}

// equip is for what can only be made in the environment's namespaces,
// and before init runs: filesystems, network interfaces, further consoles, and
// what neither systemd nor the OCI runtime limits.
func (s *starter) equip(ctx context.Context) error {
	for _, fs := range s.env.Filesystems[1:] {
		if err := s.i.attachFilesystem(ctx, fs); err != nil {
			return err
		}
	}
	added := slices.DeleteFunc(slices.Clone(s.env.Interfaces), func(n xml.Interface) bool {
		return s.i.link(n.ID()) != nil // a restore has made it, and CRIU has what is inside
	})
	if err := s.i.addInterfaces(ctx, added, s.env.Interfaces); err != nil {
		return err
	}
	for _, c := range s.env.Consoles[min(1, len(s.env.Consoles)):] {
		if err := s.i.addConsole(c); err != nil {
			return err
		}
	}
	if err := s.i.setRlimits(xml.NoCounts(), s.env.Counts); err != nil {
		return err
	}
	return s.i.setCounts(countsBefore(s.env.Counts), s.env.Counts)
}

// store hands the daemon's descriptors to the service manager.
func (s *starter) store(context.Context) error {
	return errors.Join(
		s.r.storeFD(initFDName(s.rec.UUID), s.i.pidfd),
		s.r.storeFD(consoleFDName(s.rec.UUID, 0), s.i.consoles[0].master))
}

// countsBefore are none but those that the environment was made with.
func countsBefore(c xml.CountLimits) xml.CountLimits {
	none := xml.NoCounts()
	none.Terminals = c.Terminals // an option of the mount
	return none
}

// run lets init run. machined is told meanwhile, and not waited for: systemd may
// have to start it first, and nothing here needs it. It forgets the machine by
// itself when init dies.
func (s *starter) run(ctx context.Context) error {
	if s.options.Arrival == nil {
		go s.i.register(context.WithoutCancel(ctx), s.i.machine())
	}
	if s.manifest != nil {
		return s.settle(ctx)
	}
	if s.options.Paused {
		return nil
	}
	return s.r.ociStart(ctx, s.rec.UUID)
}

// machine is what machined is told.
func (i *Instance) machine() systemd.Machine {
	return systemd.Machine{
		Name: systemd.MachineName(i.Name(), i.uuid), UUID: i.uuid,
		Service: "virtvzd", Class: "container", Leader: uint32(i.rec.Init),
	}
}

func (s *starter) finish(context.Context) error {
	switch {
	case s.options.Arrival != nil:
		s.rec.Phase = held
		if s.options.Arrival.lazy {
			s.rec.Follows = s.options.Session
		}
	case !s.options.Paused || s.manifest != nil:
		s.rec.Phase = running
	}
	if err := s.rec.save(s.res.Dir); err != nil {
		return err
	}
	if s.res.Cloned {
		if err := s.r.Layers().started(s.env.UUID); err != nil {
			return err
		}
	}
	s.i.watch()
	s.r.keep(s.i, s.rec.claim())
	return nil
}
