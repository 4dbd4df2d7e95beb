package runtime

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// buildMemory is what a build may take in a scope.
const buildMemory = 4 << 30

// builder is the command's side of a builder.
type builder struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  io.ReadCloser
	disk *buildDisk
	said chan struct{} // closed when all was passed on to say
	say  func(line string)
	undo func() bool
}

// startBuilder makes the disk and the process that builds on it. With a lower
// generation it builds on a layer over that.
func startBuilder(ctx context.Context, dir, name string, size int64, lower *Generation, plan *buildPlan, o BuildOptions) (_ *builder, err error) {
	b := &builder{say: oneAtATime(o.Progress)}
	q := buildRequest{Dir: filepath.Join(dir, "view"), Files: plan.Files, Binds: plan.Binds, Lower: lower != nil, Out: plan.Out}
	if q.UIDs, err = buildRange(o.StateDir); err != nil {
		return nil, err
	}
	q.GIDs = q.UIDs
	if err := os.Mkdir(q.Dir, 0o700); err != nil {
		return nil, err
	}
	space, err := openUserNamespace(q.UIDs, q.GIDs)
	if err != nil {
		return nil, err
	}
	defer space.Close()
	if b.disk, err = makeDisk(ctx, dir, size, space); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	files := []*os.File{b.disk.mapped}
	if lower != nil {
		tree, err := openTree(unix.AT_FDCWD, lower.Path, space, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID, false)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(tree), "lower")
		defer f.Close()
		files = append(files, f)
	}
	if err := b.fork(ctx, files); err != nil {
		return nil, err
	}
	if o.Scopes != nil {
		if err := o.Scopes.StartScope(ctx, buildScope(name, b.cmd.Process.Pid)); err != nil {
			return nil, err
		}
	}
	if err := writeMessage(b.in, q); err != nil {
		return nil, err
	}
	_, err = b.answer()
	return b, err
}

// oneAtATime lets what is said and what is done be told from two goroutines.
func oneAtATime(tell func(line string)) func(line string) {
	var mu sync.Mutex
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		if tell != nil {
			tell(line)
		}
	}
}

// buildRange is a range of ids that nobody has.
func buildRange(stateDir string) ([]idRange, error) {
	var at [16]byte
	rand.Read(at[:])
	base, err := pickRange(at, append(foreignSpans("/etc"), recordedSpans(stateDir)...))
	return []idRange{{0, base, rangeSize}}, err
}

// recordedSpans are the ids of environments that run.
func recordedSpans(stateDir string) (list []span) {
	files, _ := filepath.Glob(filepath.Join(stateDir, "*", recordName))
	for _, file := range files {
		rec, err := loadRecord(filepath.Dir(file))
		if err != nil || rec == nil {
			continue
		}
		for _, r := range append(rec.IDMap.UIDs, rec.IDMap.GIDs...) {
			list = append(list, span{r.Host, r.Count})
		}
	}
	return list
}

func buildScope(name string, pid int) systemd.Scope {
	return systemd.Scope{
		Name: "virtvzd-build-" + systemd.Escape(name) + fmt.Sprintf("-%d.scope", pid), Description: "Build of the template " + name,
		PIDs: []uint32{uint32(pid)},
		Properties: []systemd.Property{
			systemd.MemoryMax(buildMemory), systemd.TasksMax(maxBuildTasks), systemd.DevicePolicy(systemd.DeviceClosed),
			systemd.CollectMode("inactive-or-failed"),
		},
	}
}

// fork starts the builder. It dies with ctx and with us.
func (b *builder) fork(ctx context.Context, files []*os.File) (err error) {
	b.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{builderName}, Env: builderEnv(), ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{
			Unshareflags: syscall.CLONE_NEWNS, // package syscall makes it private, too
			Cloneflags:   syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
			Setsid:       true, // ^C is for us
		},
	}
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return err
	}
	if b.out, err = b.cmd.StdoutPipe(); err != nil {
		return err
	}
	text, err := b.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := b.cmd.Start(); err != nil {
		return fmt.Errorf("start the builder: %w", err)
	}
	b.undo = context.AfterFunc(ctx, func() { b.cmd.Process.Kill() })
	b.said = make(chan struct{})
	go func() {
		defer close(b.said)
		b.pass(text)
	}()
	return nil
}

// pass hands on what is said, as text that a terminal can be given.
func (b *builder) pass(text io.Reader) {
	lines := bufio.NewReaderSize(text, 4096)
	for {
		line, err := lines.ReadSlice('\n') // a long line comes in parts
		if plain := printable(strings.ReplaceAll(string(line), "\t", " "), len(line)); plain != "" {
			b.say(plain)
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

// do runs one step to its end.
func (b *builder) do(step buildStep) (string, error) {
	b.say("==> " + step.Title)
	if err := writeMessage(b.in, step); err != nil {
		return "", err
	}
	answer, err := b.answer()
	if err != nil {
		return "", fmt.Errorf("%s: %w", step.Title, err)
	}
	return answer, nil
}

func (b *builder) answer() (string, error) {
	var r stepResult
	if err := readMessage(b.out, &r); err != nil {
		return "", errors.New("the builder ended early")
	}
	if r.Error != "" {
		return "", errors.New(r.Error)
	}
	return r.Output, nil
}

// close ends the builder, and with it all that it mounted and started.
func (b *builder) close() {
	if b.cmd != nil && b.cmd.Process != nil {
		b.undo()
		b.in.Close()
		b.cmd.Process.Kill()
		<-b.said
		b.cmd.Wait()
	}
	b.disk.close()
}
