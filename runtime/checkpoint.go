package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"virtvzd/xml"
)

// Checkpoint is a directory with an environment's processes:
//
//	images/          CRIU's
//	manifest.json    what CRIU does not know
//	criu.conf, work/ how it was called, and what it said
type manifest struct {
	Version int // 1; fields are only ever added
	IDMap   xml.IDMap
	Cgroup  string // of the scope
	Cgroups []savedCgroup
	Mounts  []externalMount
	Links   []savedLink
	Saved   time.Time
}

const manifestName = "manifest.json"

// Checkpoint writes the environment's processes to dir, which must be empty;
// interfaces are its network interfaces. It is then frozen and cut off: either
// Kill ends it, or AbandonCheckpoint lets it go on. After an error it goes on
// as before.
//
// What Savable tells is told before anything is frozen; whole is as there.
func (i *Instance) Checkpoint(ctx context.Context, dir string, interfaces []xml.Interface, whole bool) (err error) {
	if err := i.Savable(ctx, whole); err != nil {
		return err
	}
	m := manifest{Version: 1, IDMap: i.rec.IDMap, Cgroup: i.rec.Cgroup, Saved: time.Now()}
	frozen, err := i.Frozen()
	if err != nil {
		return err
	}
	if err := i.noteCheckpoint(dir, frozen); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			err = errors.Join(err, i.AbandonCheckpoint(undo, interfaces))
		}
	}()
	if err := atStep("checkpoint freeze"); err != nil {
		return err
	}
	if err := i.standStill(ctx, &m, frozen, whole); err != nil {
		return err
	}
	if err := writeManifest(dir, &m); err != nil {
		return err
	}
	if err := atStep("checkpoint dump"); err != nil {
		return err
	}
	return i.dumpTo(ctx, dir, dumpOptions{images: "images", mounts: m.Mounts})
}

// standStill freezes the environment and cuts it off, and notes in m what CRIU
// has to be told. After an error some of that may be done.
func (i *Instance) standStill(ctx context.Context, m *manifest, frozen, whole bool) (err error) {
	if err := i.freezeSettled(ctx, frozen, whole); err != nil {
		return err
	}
	if err := i.survey(m, ""); err != nil { // what there is may have changed
		return err
	}
	if m.Cgroups, err = saveCgroups(i.CgroupPath(), ranges(m.IDMap.UIDs), ranges(m.IDMap.GIDs)); err != nil {
		return err
	}
	return i.unplugLinks()
}

func writeManifest(dir string, m *manifest) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), body, 0o600)
}

// Savable tells what keeps the environment from being checkpointed now, all of it
// at once, and what to do about it. With whole it is to go on from the checkpoint
// alone: what was started from outside, which no checkpoint has, has to end before.
func (i *Instance) Savable(ctx context.Context, whole bool) (err error) {
	if err := i.RefuseLeaving(); err != nil { // one of the two would be too many, and it has a checkpoint
		return err
	}
	if err := i.r.probeCRIU(); err != nil {
		return err
	}
	if !i.Started() {
		return fmt.Errorf("%s has not run yet, so there is nothing to save: resume it, or destroy it: %w", i.Name(), ErrUnsupported)
	}
	entered := ""
	if whole {
		if entered, err = i.awaitLeft(ctx); err != nil {
			return err
		}
	}
	return i.survey(&manifest{}, entered)
}

// survey looks for what CRIU has to be told, and for what it cannot save, besides
// an obstacle that is known.
func (i *Instance) survey(m *manifest, known string) error {
	var mounts, links []string
	var err error
	if m.Mounts, mounts, err = i.sortMounts(); err != nil {
		return err
	}
	if m.Links, links, err = i.saveLinks(); err != nil {
		return err
	}
	obstacles := append(mounts, links...)
	traced, err := anyIn(i.CgroupPath(), "cgroup.threads", isTraced)
	if err != nil {
		return err
	}
	if traced {
		obstacles = append(obstacles, "a process that is traced: end strace, gdb or what else does that")
	}
	if known != "" {
		obstacles = append(obstacles, known)
	}
	if i.recordedFrozen() {
		obstacles = append(obstacles, ErrFrozen.Error())
	}
	if len(obstacles) > 0 {
		return fmt.Errorf("%s has what cannot be saved: %s: %w", i.Name(), strings.Join(obstacles, "; "), ErrUnsupported)
	}
	return nil
}

func (i *Instance) sortMounts() (external []externalMount, obstacles []string, err error) {
	text, err := readProc(fmt.Sprintf("/proc/%d/mountinfo", i.rec.Init))
	if err != nil || dead(i.pidfd) { // the PID may have been another process's by now
		return nil, nil, fmt.Errorf("mounts of %s: it has ended", i.Name())
	}
	external, obstacles = sortMounts(string(text), i.r.host.hostMounts())
	return external, obstacles, nil
}

// executor is what systemd runs between its fork and the service's program.
const executor = "/systemd-executor"

// freezeSettled freezes the environment at a moment when nothing inside is about
// to become another program, and systemd there has read what it was told; with
// whole, when there is nothing that was started from outside.
func (i *Instance) freezeSettled(ctx context.Context, frozen, whole bool) error {
	why := ""
	for range 100 {
		if err := i.Suspend(ctx); err != nil {
			return err
		}
		var err error
		if why, err = i.unsettled(whole); err != nil || why == "" {
			return err
		}
		if frozen {
			break
		}
		if err := i.thaw(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s cannot be saved while %s", i.Name(), why)
}

// unsettled tells what keeps a frozen environment from being dumped, if anything
// does. CRIU 4.1 dumps a process that is about to become a service, and fails to
// restore it. Who waits for a child of vfork(2), as posix_spawn(3) and shells have
// them, it waits for in vain, as long as it may: the child, whom it has stopped,
// would have to go on first.
func (i *Instance) unsettled(whole bool) (why string, err error) {
	waits, err := anyIn(i.CgroupPath(), "cgroup.threads", sleepsDeep)
	if err != nil || waits {
		return "a process inside has not started yet what it is about to: let it go on for a moment, and try again", err
	}
	busy, err := anyIn(i.CgroupPath(), "cgroup.procs", isExecutor)
	if err == nil && !busy {
		busy, err = i.unread()
	}
	if err != nil || busy {
		return "systemd inside starts services, or has not read what they tell it: try again when 'systemctl list-jobs' there is empty", err
	}
	if !whole {
		return "", nil
	}
	entered, err := i.entered()
	if entered != "" {
		why = "there is " + entered
	}
	return why, err
}

func isExecutor(pid string) bool {
	exe, _ := os.Readlink("/proc/" + pid + "/exe")
	return strings.HasSuffix(exe, executor)
}

// sleepsDeep tells whether a thread sleeps so that only what it waits for wakes
// it. Of those in a frozen cgroup only vfork(2) does that: the kernel counts it as
// frozen.
func sleepsDeep(tid string) bool {
	text, _ := os.ReadFile("/proc/" + tid + "/stat")
	_, state, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
	return strings.HasPrefix(state, "D")
}

// isTraced tells whether ptrace(2) is in use, of which there can be only one.
func isTraced(tid string) bool {
	text, _ := os.ReadFile("/proc/" + tid + "/status")
	_, tracer, _ := strings.Cut(string(text), "\nTracerPid:\t")
	return tracer != "" && !strings.HasPrefix(tracer, "0\n")
}

// anyIn tells whether any of those that a file of a cgroup, and of those below,
// names is so.
func anyIn(cgroup, file string, is func(id string) bool) (found bool, err error) {
	err = filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		text, _ := os.ReadFile(filepath.Join(path, file))
		for id := range strings.FieldsSeq(string(text)) {
			if is(id) {
				found = true
				return fs.SkipAll
			}
		}
		return nil
	})
	return found, err
}

// noteCheckpoint records what AbandonCheckpoint, also a later daemon's, has to do.
func (i *Instance) noteCheckpoint(dir string, wasFrozen bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Checkpoint = &recordedCheckpoint{Dir: dir, WasFrozen: wasFrozen}
	return i.rec.save(i.dir)
}

// AbandonCheckpoint lets an environment go on that was checkpointed, or begun to be.
func (i *Instance) AbandonCheckpoint(ctx context.Context, interfaces []xml.Interface) error {
	i.mu.Lock()
	c := i.rec.Checkpoint
	i.mu.Unlock()
	if c == nil {
		return nil
	}
	err := i.r.endDump(ctx, i.rec.UUID)
	if _, e := RestoreCgroupOptions(); e != nil {
		err = errors.Join(err, e)
	}
	err = errors.Join(err, i.r.tellRuntime(i.rec.UUID, ""), i.unlockNetwork(ctx), i.replugLinks(interfaces))
	if !c.WasFrozen {
		err = errors.Join(err, i.thaw(ctx))
	}
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Checkpoint = nil
	return i.rec.save(i.dir)
}

// dumpOptions say what CRIU is to write.
type dumpOptions struct {
	images string // directory for it, below the checkpoint's
	parent string // that of the dump before, of which only what has changed since is not wanted
	before bool   // memory only, while all goes on
	lazy   bool   // memory stays where it is until it is asked for, see postcopy.go
	mounts []externalMount
}

// dumpTo has CRIU write the environment's processes to a directory.
func (i *Instance) dumpTo(ctx context.Context, dir string, o dumpOptions) error {
	if err := i.r.tellRuntime(i.rec.UUID, i.rec.Cgroup); err != nil {
		return err
	}
	images, work := filepath.Join(dir, o.images), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(images, 0o700), os.MkdirAll(work, 0o700)); err != nil {
		return err
	}
	lines := externalLines(o.mounts, false)
	argv := []string{i.r.host.OCI, "--root", i.r.ociRoot(), "checkpoint", "--image-path=" + images, "--work-path=" + work}
	if o.parent != "" {
		argv = append(argv, "--parent-path=../"+o.parent)
	}
	if o.before {
		// Without it CRIU stops one process after another, and misses some that are made meanwhile.
		lines = append(lines, "freeze-cgroup "+i.CgroupPath())
		argv = append(argv, "--pre-dump")
	} else {
		argv = append(argv, "--leave-running", "--manage-cgroups-mode=soft", "--ext-unix-sk")
	}
	if o.lazy {
		lines = append(lines, lazyOptions...)
	}
	argv = append(argv, "--tcp-established", "--file-locks", i.rec.UUID)
	config := filepath.Join(dir, "criu.conf")
	if err := os.WriteFile(config, []byte(criuConfig(lines...)), 0o600); err != nil {
		return err
	}
	err := i.r.runDump(ctx, i.rec.UUID, config, argv, o.lazy)
	if _, e := RestoreCgroupOptions(); e != nil {
		err = errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("%s cannot be saved: %w", i.Name(), i.r.criuSays(filepath.Join(work, "dump.log"), err))
	}
	if o.before {
		return nil
	}
	return i.checkRemaps(filepath.Join(images, "files.img"))
}

// checkRemaps refuses what CRIU would not find again: it gives a file that is
// open under a name that is gone, and has others, a name for the restore, and
// takes that away because the environment goes on until it is killed.
func (i *Instance) checkRemaps(files string) error {
	f, err := os.Open(files)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<20))
	if err == nil && bytes.Contains(text, []byte("/link_remap.")) {
		err = fmt.Errorf("%s cannot be saved: a file is open that was deleted and has another hard link: restart what has it open, 'lsof +L1' inside tells", i.Name())
	}
	return err
}

// tellRuntime writes the scope's cgroup to the OCI runtime's own record, so
// that CRIU is told what to freeze. Otherwise it is to be "", because cgroups
// are none of the runtime's business: when it runs a program inside it would
// make some.
func (r *Runtime) tellRuntime(uuid, cgroup string) error {
	name := filepath.Join(r.ociRoot(), uuid, "status")
	body, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var status map[string]any
	if err := json.Unmarshal(body, &status); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	status["cgroup-path"] = cgroup
	if body, err = json.Marshal(status); err != nil {
		return err
	}
	return replaceFile(name, body, 0o700)
}
