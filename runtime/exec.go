package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// ErrNotExecuted is returned by Exec for a program that did not come to run:
// it is not there, or is no program.
var ErrNotExecuted = errors.New("the program cannot be run")

// Command is a program to run inside as root there, with what its init may do
// and under the environment's limits.
type Command struct {
	Args   []string  // the program, looked for in PATH inside, and its arguments
	Env    []string  // NAME=value, besides what init was given
	Stdin  io.Reader // nil is empty
	Stdout io.Writer // nil drops what is written, as Stderr
	Stderr io.Writer
	Began  func() // is called, or nil, when it is there and about to run
}

// Exec runs a command and returns how it ended. When ctx is done the program is
// killed with what it has started, but for what has become a daemon.
//
// The OCI runtime does the work, because it knows how to enter an environment
// that is hostile. It is put into the cgroup of init: in that of the scope
// there can be no processes once a systemd inside has made groups below. It
// leaves the program to us, and so the difference between a signal and an exit
// status, which it would give as one number.
func (i *Instance) Exec(ctx context.Context, c Command) (ended syscall.WaitStatus, err error) {
	if err := i.executes(); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(i.dir, "exec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	uid, gid := i.rootIDs()
	s, err := openStreams(c, uid, gid)
	if err != nil {
		return 0, err
	}
	return i.exec(ctx, dir, c, s, func(*os.File) error { return nil })
}

func (i *Instance) executes() error {
	frozen, err := i.Frozen()
	if err != nil || frozen || !i.Started() {
		return errors.Join(err, fmt.Errorf("%s is paused: resume it first", i.Name()))
	}
	return nil
}

// exec runs a command that is described in dir, and closes s. started is called
// with the process as soon as there is one.
func (i *Instance) exec(ctx context.Context, dir string, c Command, s *streams, started func(pidfd *os.File) error) (syscall.WaitStatus, error) {
	defer s.close()
	if err := i.writeProcess(filepath.Join(dir, "process.json"), c, false); err != nil {
		return 0, err
	}
	failed := func(err error) error { return fmt.Errorf("run %s in %s: %w", c.Args[0], i.Name(), err) }
	pid, err := i.execute(ctx, dir, s)
	s.begin()
	if err != nil {
		return 0, failed(err)
	}
	children.add(pid)
	defer children.remove(pid)
	pidfd, err := openPidfd(pid, 0)
	if err != nil {
		return 0, err
	}
	defer pidfd.Close()
	if err := started(pidfd); err != nil {
		return 0, failed(err)
	}
	if c.Began != nil {
		c.Began()
	}
	ws, err := i.awaitProgram(ctx, dir, pid, pidfd, s)
	if err != nil {
		err = failed(err)
	}
	return ws, err
}

// awaitProgram waits for the end of a program and of what it has written.
func (i *Instance) awaitProgram(ctx context.Context, dir string, pid int, pidfd *os.File, s *streams) (syscall.WaitStatus, error) {
	if err := awaitOrKill(ctx, pid, pidfd, i.rec.Cgroup); err != nil {
		return 0, err
	}
	s.end()
	if err := said(dir); err != nil { // by what was to become the program
		return 0, err
	}
	return waitStatus(pidfd)
}

// ociLog is where the OCI runtime says why a program did not come to run.
const ociLog = "log"

func said(dir string) error {
	text, _ := readProc(filepath.Join(dir, ociLog))
	if len(text) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNotExecuted, strings.TrimSpace(string(text[:min(len(text), 512)])))
}

// execute has the OCI runtime start the program of dir/process.json, and gives
// its PID.
func (i *Instance) execute(ctx context.Context, dir string, s *streams) (pid int, err error) {
	cgroup, err := i.openInitCgroup()
	if err != nil {
		return 0, err
	}
	defer cgroup.Close()
	pidFile := filepath.Join(dir, pidName)
	cmd := inCgroup(ctx, cgroup, i.r.host.OCI, "--root", i.r.ociRoot(), "--cgroup-manager=disabled", "--log", filepath.Join(dir, ociLog),
		"exec", "--detach", "--process", filepath.Join(dir, "process.json"), "--pid-file", pidFile, i.rec.UUID)
	cmd.Env = []string{"PATH=" + runtimePath}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // see killSession
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.program[0], s.program[1], s.program[2]
	cmd.Cancel = func() error {
		i.killExecuted(pidFile)
		return cmd.Process.Kill()
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	children.add(cmd.Process.Pid)
	err = cmd.Wait()
	children.remove(cmd.Process.Pid)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err := cmp.Or(said(dir), err); err != nil {
		return 0, err
	}
	return readPID(pidFile)
}

// pidName is where the OCI runtime writes the PID of what it has started.
const pidName = "pid"

func readPID(name string) (pid int, err error) {
	text, err := os.ReadFile(name)
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err == nil && pid <= 1 {
		err = fmt.Errorf("%s has no PID: %q", name, text)
	}
	return pid, err
}

// killPatience is how long a program that is killed may take to end: one that
// waits for a file system does not end.
const killPatience = time.Second

// awaitOrKill waits for the end of a process in a cgroup, and kills it and its
// session when ctx is done.
func awaitOrKill(ctx context.Context, pid int, pidfd *os.File, cgroup string) error {
	ended := make(chan bool)
	go func() {
		defer close(ended)
		awaitExit(pidfd)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	patience, cancel := context.WithTimeout(context.Background(), killPatience)
	defer cancel()
	session := sessionOf(pid) // which is nobody else's while this process is not reaped
	withFd(pidfd, func(fd int) { unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	killSession(patience, cgroup, session)
	select {
	case <-ended:
	case <-patience.Done():
	}
	return ctx.Err()
}

// killSession kills what a program has started: it is in its session, unless it
// has made one of its own, as daemons do. It is looked for again, for there may
// have been a fork meanwhile, until there is no more.
func killSession(ctx context.Context, cgroup, session string) {
	for left := session != ""; left && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		left = false
		processesBelow(cgroup, func(pid int) error {
			pidfd, err := openPidfd(pid, 0)
			if err != nil {
				return nil
			}
			defer pidfd.Close()
			if sessionOf(pid) == session && !dead(pidfd) {
				withFd(pidfd, func(fd int) { unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
				left = true
			}
			return nil
		})
	}
}

// sessionOf a process is a number, or empty when it is gone.
func sessionOf(pid int) string {
	if f := statFields(pid); len(f) > 3 {
		return f[3]
	}
	return ""
}

// writeProcess describes the command by what init was given: the same user,
// capabilities and limits of a process.
func (i *Instance) writeProcess(name string, c Command, terminal bool) error {
	p, err := i.process()
	if err != nil {
		return err
	}
	p.Terminal, p.User, p.Cwd = terminal, specs.User{}, "/"
	p.Args, p.Env = c.Args, append(p.Env, c.Env...)
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(name, body, 0o600)
}

// process is what init was given.
func (i *Instance) process() (*specs.Process, error) {
	body, err := os.ReadFile(filepath.Join(i.dir, "config.json"))
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{}
	err = json.Unmarshal(body, spec)
	if err == nil && spec.Process == nil {
		err = errors.New("config.json describes no process")
	}
	return spec.Process, err
}

// initCgroup is the cgroup that init is in now, below the scope's: "/init.scope",
// or nothing if it is that.
func (i *Instance) initCgroup() (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", i.rec.Init))
	if err != nil {
		return "", fmt.Errorf("%s has ended: %w", i.Name(), err)
	}
	cgroup, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "0::"+i.rec.Cgroup)
	if !ok || cgroup != "" && cgroup[0] != '/' {
		return "", fmt.Errorf("the init of %s is not in its scope", i.Name())
	}
	return cgroup, nil
}

// openInitCgroup opens the cgroup that init is in now, which is the scope's or
// one below it.
func (i *Instance) openInitCgroup() (*os.File, error) {
	cgroup, err := i.initCgroup()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(i.CgroupPath(), cgroup), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := i.refuseFrozenCgroup(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// killExecuted kills the program of a command that is given up, if it has come
// to be one, and its session: a process of this environment, whichever has its
// number.
func (i *Instance) killExecuted(pidFile string) {
	pid, err := readPID(pidFile)
	if err != nil {
		return
	}
	if cgroup, err := systemd.ControlGroupOf(pid, i.rec.Scope); err == nil && cgroup == i.rec.Cgroup {
		patience, cancel := context.WithTimeout(context.Background(), killPatience)
		defer cancel()
		killSession(patience, cgroup, sessionOf(pid))
	}
}
