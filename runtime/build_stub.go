package runtime

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A build is three processes, each with less than the one before:
//
//	virtvzd template build       builder                            step
//	  | fork(NEWNS|NEWPID|…) ---> PID 1 of its own
//	  | buildRequest -----------> | the view of the host, the root in it
//	  | buildStep --------------> | fork(NEWUSER|NEWNS|NEWPID|…) --> | gives up what it needs not
//	  |                           |                                  | exec mmdebstrap, dnf, a hook, …
//	  | <----------- stepResult   | <------------------------ status
//	  | copies the root when all is done
//
// The builder is root of the host, but runs nothing that is not ours; a step is
// root of a user namespace. End of file in place of the next message means that
// the command died; then the builder ends, and as it is PID 1 the kernel ends
// everything below it.
const (
	builderName = "virtvzd-builder"
	stepName    = "virtvzd-build-step"
)

// buildRequest is the first message to the builder. Its descriptor 3 is the
// mount to build on; 4, if Lower is set, a mount to stack that on.
type buildRequest struct {
	Dir        string // empty directory that the view is mounted on
	UIDs, GIDs []idRange
	Files      []viewFile
	Binds      []string
	Lower      bool
	Out        wayOut
}

// stepResult is the answer to a step.
type stepResult struct {
	Output string // standard output, if it was to be captured
	Error  string
}

// stepRequest is what a step's process is told.
type stepRequest struct {
	buildStep
	Env   []string
	Binds []string // shown to a step inside the root as well
}

// Processes that a build may have.
const maxBuildTasks = 2048

func runBuilder() error {
	goruntime.LockOSThread()
	in, out := os.Stdin, os.Stdout
	var q buildRequest
	if err := readMessage(in, &q); err != nil {
		return errOrphaned
	}
	unix.Umask(0o022)
	unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: maxBuildTasks, Max: maxBuildTasks})
	unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	unix.KeyctlJoinSessionKeyring("") // not that of whoever builds
	err := makeView(q.Dir, q)
	if err == nil {
		err = mountTarget(q)
	}
	if err != nil {
		writeMessage(out, stepResult{Error: err.Error()})
		return err
	}
	steps := make(chan buildStep)
	go func() {
		for {
			var step buildStep
			if err := readMessage(in, &step); err != nil {
				os.Exit(1) // and with PID 1 all that runs here
			}
			steps <- step
		}
	}()
	if err := writeMessage(out, stepResult{}); err != nil {
		return errOrphaned
	}
	for step := range steps {
		if err := writeMessage(out, runStep(q, step)); err != nil {
			return errOrphaned
		}
	}
	return nil
}

// mountTarget puts the root into the view: the disk itself, or a layer on it
// over what there is.
func mountTarget(q buildRequest) error {
	if !q.Lower {
		return attach(3, viewTarget)
	}
	for fd, at := range map[int]string{3: "/layers", 4: "/lower"} {
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := attach(fd, at); err != nil {
			return err
		}
	}
	if err := becomeOwner(hostID(q.UIDs, 0), hostID(q.GIDs, 0)); err != nil {
		return err
	}
	defer becomeOwner(0, 0)
	for _, name := range []string{"/layers/upper", "/layers/work"} {
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", viewTarget, "overlay", unix.MS_NODEV|unix.MS_NOSUID, "lowerdir=/lower,upperdir=/layers/upper,workdir=/layers/work"); err != nil {
		return fmt.Errorf("mount a layer over the template: %w", err)
	}
	return nil
}

func attach(fd int, at string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the root at %s: %w", at, err)
	}
	return nil
}

// maxStepOutput is what is kept of the answer of a step.
const maxStepOutput = maxMessage / 8

func runStep(q buildRequest, step buildStep) stepResult {
	env := buildEnv
	if step.Network {
		env = append(slices.Clip(env), outEnv()...)
	}
	body, err := json.Marshal(stepRequest{step, env, append([]string{"/run/build"}, q.Binds...)})
	if err != nil {
		return stepResult{Error: err.Error()}
	}
	const flags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS |
		syscall.CLONE_NEWCGROUP | syscall.CLONE_NEWNET
	said := &tail{limit: 400}
	cmd := exec.Cmd{
		Path: "/proc/self/exe", Args: []string{stepName, string(body)}, Env: []string{"GOMAXPROCS=1"},
		// What it says goes to the command that started us, and its end into
		// the error.
		Stdout: io.MultiWriter(os.Stderr, said), Stderr: io.MultiWriter(os.Stderr, said),
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: flags, UidMappings: procMappings(q.UIDs), GidMappings: procMappings(q.GIDs), GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{}, Setsid: true, Pdeathsig: syscall.SIGKILL,
		},
	}
	answer := &tail{limit: maxStepOutput}
	if step.Capture {
		cmd.Stdout = answer
	}
	if err := runWithOut(&cmd, step.Network, q.Out); err != nil {
		return stepResult{Error: strings.TrimSuffix(fmt.Sprintf("%s: %s", err, printable(said.String(), 400)), ": ")}
	}
	return stepResult{Output: answer.text()}
}

// runWithOut runs a step, with a way out of its network if it is to have one.
func runWithOut(cmd *exec.Cmd, out bool, way wayOut) error {
	if !out {
		return cmd.Run()
	}
	ours, theirs, err := stepSockets()
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	if listener, err := takeListener(ours); err == nil { // or it has ended already, and Wait tells why
		proxy := &http.Server{Handler: newOutProxy(way), ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
		go proxy.Serve(listener)
		defer proxy.Close()
	}
	return cmd.Wait()
}

func procMappings(ids []idRange) (list []syscall.SysProcIDMap) {
	for _, r := range ids {
		list = append(list, syscall.SysProcIDMap{ContainerID: int(r.Inside), HostID: int(r.Host), Size: int(r.Count)})
	}
	return list
}

// buildVariables are passed on from whoever builds to the builder: without them
// an archive may not be reached.
var buildVariables = []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}

// buildEnv is the environment of a step.
var buildEnv = []string{"PATH=" + runtimePath, "HOME=/root", "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "TERM=dumb", "DEBIAN_FRONTEND=noninteractive"}

// builderEnv is that of the builder.
func builderEnv() []string {
	env := []string{"PATH=" + runtimePath, "GOMAXPROCS=2"}
	for _, name := range buildVariables {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}
