package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// loadManifest reads what a checkpoint says of itself.
func loadManifest(dir string) (*manifest, error) {
	body, err := readBounded(filepath.Join(dir, manifestName), 16<<20)
	if err != nil {
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestName, err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("the checkpoint has version %d, and this daemon knows version 1: use a newer daemon", m.Version)
	}
	return m, nil
}

// ofCheckpoint is an environment as it has to be started from a checkpoint.
func (m *manifest) ofCheckpoint(env *xml.Environment) *xml.Environment {
	e := *env
	e.IDMap = m.IDMap
	return &e
}

// restoreCommand is what the stub becomes to start from a checkpoint.
func (r *Runtime) restoreCommand(id, dir, socket, checkpoint string) []string {
	return []string{r.host.OCI, "--root", r.ociRoot(), "--cgroup-manager=disabled", "restore", "--detach",
		"--bundle", dir, "--console-socket", socket, "--pid-file", filepath.Join(dir, "pid"),
		"--image-path=" + filepath.Join(checkpoint, "images"), "--work-path=" + filepath.Join(checkpoint, "work"),
		"--manage-cgroups-mode=soft", "--tcp-established", "--file-locks", "--ext-unix-sk", id}
}

// actionName is what our binary is called, by a link in the checkpoint's
// directory, when CRIU runs it while it restores.
const actionName = "virtvzd-criu-action"

// atRestore is what is to be done there, by the file of that name: the cgroups
// are made when the namespaces are and there are no other processes yet. Before
// that init has to be alone in the scope's own cgroup, and from then on none may
// be.
type atRestore struct {
	Scope      string // directory of its cgroup
	Out        string // of the cgroup for those who restore
	Cgroups    []savedCgroup
	UIDs, GIDs []idRange
	Hold       bool // no process may run an instruction
}

const atRestoreName = "restore.json"

// runAction is called in such a process.
func runAction(dir string) error {
	action := os.Getenv("CRTOOLS_SCRIPT_ACTION")
	if action != "post-setup-namespaces" && action != "pre-resume" {
		return nil
	}
	body, err := readBounded(filepath.Join(dir, atRestoreName), 16<<20)
	if err != nil {
		return err
	}
	var a atRestore
	if err := json.Unmarshal(body, &a); err != nil {
		return err
	}
	if action == "post-setup-namespaces" {
		init, err := strconv.Atoi(os.Getenv("CRTOOLS_INIT_PID"))
		if err != nil {
			return fmt.Errorf("CRTOOLS_INIT_PID: %w", err)
		}
		return restoreCgroups(a.Scope, a.Out, init, a.Cgroups, a.UIDs, a.GIDs)
	}
	if !a.Hold {
		return nil
	}
	// All are traced, and stop here as soon as they are not.
	return os.WriteFile(filepath.Join(a.Scope, "cgroup.freeze"), []byte("1"), 0)
}

// held tells whether it is to be frozen before its first instruction, and stays so.
func (s *starter) held() bool { return s.options.Paused || s.options.Arrival != nil }

// led tells whether it is frozen there, and goes on by init.
func (s *starter) led() bool { return !s.held() && s.rec.Kind == Systemd }

// prepareRestore makes what CRIU expects to find.
func (s *starter) prepareRestore(ctx context.Context) error {
	dir, root := s.options.Checkpoint, s.plan.Root
	// CRIU reads most of its files with no rights on the host, those of earlier
	// rounds by way of dir. Who they are not for is kept out by the directory above.
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(filepath.Join(dir, "images"), 0o755), os.MkdirAll(filepath.Join(dir, "work"), 0o700)); err != nil {
		return err
	}
	own, err := systemd.OwnControlGroup()
	if err != nil {
		return err
	}
	s.rec.Restoring = filepath.Join(own, "virtvzd-restore-"+s.rec.UUID)
	if err := s.rec.save(s.res.Dir); err != nil {
		return err
	}
	body, err := json.Marshal(atRestore{
		Scope: filepath.Join(cgroupRoot, s.rec.Cgroup), Out: filepath.Join(cgroupRoot, s.rec.Restoring),
		Cgroups: s.manifest.Cgroups, UIDs: root.UIDs, GIDs: root.GIDs, Hold: s.held() || s.led(),
	})
	if err != nil {
		return err
	}
	lines, err := s.restoreLinks(ctx)
	if err != nil {
		return err
	}
	lines = append(lines, externalLines(s.manifest.Mounts, true)...)
	if a := s.options.Arrival; a != nil && a.lazy {
		lines = append(lines, "lazy-pages")
	}
	action := filepath.Join(dir, actionName)
	config := criuConfig(append(lines, "action-script "+action)...)
	return errors.Join(
		os.Symlink(fmt.Sprintf("/proc/%d/exe", os.Getpid()), action), // also when the binary was replaced by an upgrade
		os.WriteFile(filepath.Join(dir, atRestoreName), body, 0o600),
		os.WriteFile(filepath.Join(dir, "criu.conf"), []byte(config), 0o600))
}

// restored is what is to be done once CRIU has made the processes.
func (s *starter) restored(err error) error {
	if _, e := RestoreCgroupOptions(); e != nil {
		err = errors.Join(err, e)
	}
	if err != nil {
		return s.r.criuSays(filepath.Join(s.options.Checkpoint, "work", "restore.log"), err)
	}
	return nil
}

// settle is the last of a restore.
func (s *starter) settle(ctx context.Context) error {
	err := leaveLeaf(filepath.Join(cgroupRoot, s.rec.Cgroup), filepath.Join(cgroupRoot, s.rec.Restoring))
	if err = errors.Join(err, s.r.tellRuntime(s.rec.UUID, "")); err != nil {
		return err
	}
	s.rec.Restoring = ""
	if err := s.i.renewManagers(); err != nil {
		return err
	}
	if s.held() { // they are frozen, and systemd has to know it
		if err := s.r.config.Scopes.Freeze(ctx, s.rec.Scope); err != nil {
			return err
		}
	}
	if s.options.Arrival != nil { // its addresses are in use elsewhere until it is decided
		return nil
	}
	if err := interfaceError(s.i.replugLinks(s.env.Interfaces)); err != nil || !s.led() {
		return err
	}
	return s.i.initFirst(ctx, func(ctx context.Context) error { return s.i.freezeCgroup(ctx, false) })
}

// renewManagers has each systemd inside write down its state and read it again, as
// 'systemctl daemon-reload' does: SIGHUP in systemd(1). From version 256 on it
// knows a process by its number and the inode of a pidfd (pidref_equal in
// src/basic/pidref.c), which no restore can give back. It would take what a
// service tells it for another's, and kill at its time those with a watchdog, of
// which journald and logind are two. It is frozen, and takes the signal by
// initFirst; those of users, or of containers inside, when they go on.
func (i *Instance) renewManagers() error {
	if i.rec.Kind == Systemd {
		if err := i.signal(syscall.SIGHUP); err != nil {
			return err
		}
	}
	return i.processes(func(host int) error {
		if host == i.rec.Init || !isManager(host) {
			return nil
		}
		err := unix.Kill(host, syscall.SIGHUP) // frozen, so that it keeps its number
		if errors.Is(err, unix.ESRCH) {
			err = nil // killed all the same
		}
		return err
	})
}

// isManager tells a systemd by its name and by the cgroup that each makes for itself.
func isManager(pid int) bool {
	name, _ := readProc(fmt.Sprintf("/proc/%d/comm", pid))
	cgroup, _ := readProc(fmt.Sprintf("/proc/%d/cgroup", pid))
	return string(name) == "systemd\n" && strings.HasSuffix(string(cgroup), "/init.scope\n")
}

// replaceConsole gives a restored environment a console in place of one that
// nobody inside had open when it was saved: CRIU leaves that out.
func (i *Instance) replaceConsole() (*os.File, error) {
	master, number, err := i.openTerminal("")
	if err != nil {
		return nil, err
	}
	err = i.inside("console", []string{"mnt"}, func() error {
		t, err := openTreeRoot("/")
		if err != nil {
			return err
		}
		defer t.Close()
		slave, err := t.open(fmt.Sprintf("dev/pts/%d", number), unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer unix.Close(slave)
		mount, err := unix.OpenTree(slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(mount)
		err = unix.Unmount("/dev/console", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) { // it was no mount
			return err
		}
		target, err := t.open("dev/console", unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer unix.Close(target)
		return unix.MoveMount(mount, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	})
	if err != nil {
		master.Close()
		return nil, fmt.Errorf("a new console: %w", err)
	}
	return master, nil
}
