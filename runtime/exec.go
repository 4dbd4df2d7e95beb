package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	Args   []string // the program, looked for in PATH inside, and its arguments
	Env    []string // NAME=value, besides what init was given
	Stdin  io.Reader
	Stdout io.Writer // nil drops what is written, as Stderr
	Stderr io.Writer
}

// Exec runs a command and returns its exit status, which is 128 and the number
// of the signal if one ended it. When ctx is done the program is killed.
//
// The OCI runtime does the work, because it knows how to enter an environment
// that is hostile. It is put into the cgroup of init: in that of the scope
// there can be no processes once a systemd inside has made groups below.
func (i *Instance) Exec(ctx context.Context, c Command) (status int, err error) {
	if frozen, err := i.Frozen(); err != nil || frozen || !i.Started() {
		return 0, errors.Join(err, fmt.Errorf("%s is paused: resume it first", i.Name()))
	}
	dir, err := os.MkdirTemp(i.dir, "exec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := i.writeProcess(filepath.Join(dir, "process.json"), c); err != nil {
		return 0, err
	}
	cgroup, err := i.openInitCgroup()
	if err != nil {
		return 0, err
	}
	defer cgroup.Close()
	log, pidFile := filepath.Join(dir, "log"), filepath.Join(dir, "pid")
	cmd := exec.CommandContext(ctx, i.r.host.OCI, "--root", i.r.ociRoot(), "--cgroup-manager=disabled", "--log", log,
		"exec", "--process", filepath.Join(dir, "process.json"), "--pid-file", pidFile, i.rec.UUID)
	cmd.Env = []string{"PATH=" + runtimePath}
	// Never /dev/null, which is what nil means: root inside would be given it.
	cmd.Stdin, cmd.Stdout, cmd.Stderr = orEmpty(c.Stdin), orDiscard(c.Stdout), orDiscard(c.Stderr)
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	cmd.Cancel = func() error {
		i.killExecuted(pidFile)
		return cmd.Process.Kill()
	}
	cmd.WaitDelay = time.Second // a daemon it left may hold its output open
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("run %s in %s: %w", c.Args[0], i.Name(), err)
	}
	children.add(cmd.Process.Pid)
	err = cmd.Wait()
	children.remove(cmd.Process.Pid)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("run %s in %s: %w", c.Args[0], i.Name(), ctx.Err())
	}
	if said, _ := readProc(log); len(said) > 0 {
		return 0, fmt.Errorf("%s: %w: %s", c.Args[0], ErrNotExecuted, strings.TrimSpace(string(said[:min(len(said), 512)])))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) || errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), err
}

func orEmpty(r io.Reader) io.Reader {
	if r == nil {
		return &bytes.Buffer{}
	}
	return r
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return struct{ io.Writer }{io.Discard} // a pipe, where exec.Cmd would take /dev/null for io.Discard itself
	}
	return w
}

// writeProcess describes the command by what init was given: the same user,
// capabilities and limits of a process.
func (i *Instance) writeProcess(name string, c Command) error {
	body, err := os.ReadFile(filepath.Join(i.dir, "config.json"))
	if err != nil {
		return err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(body, spec); err != nil {
		return err
	}
	p := spec.Process
	p.Terminal, p.User, p.Cwd = false, specs.User{}, "/"
	p.Args, p.Env = c.Args, append(p.Env, c.Env...)
	if body, err = json.Marshal(p); err != nil {
		return err
	}
	return os.WriteFile(name, body, 0o600)
}

// openInitCgroup opens the cgroup that init is in now, which is the scope's or
// one below it.
func (i *Instance) openInitCgroup() (*os.File, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", i.rec.Init))
	if err != nil {
		return nil, fmt.Errorf("%s has ended: %w", i.Name(), err)
	}
	cgroup, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "0::"+i.rec.Cgroup)
	if !ok || cgroup != "" && cgroup[0] != '/' {
		return nil, fmt.Errorf("the init of %s is not in its scope", i.Name())
	}
	return os.OpenFile(filepath.Join(i.CgroupPath(), cgroup), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// killExecuted kills the program of a command that is given up, if it has come
// to be one: a process of this environment, whichever has its number.
func (i *Instance) killExecuted(pidFile string) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return
	}
	if cgroup, err := systemd.ControlGroupOf(pid, i.rec.Scope); err == nil && cgroup == i.rec.Cgroup {
		unix.Kill(pid, unix.SIGKILL)
	}
}
