package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stub is the daemon's side of a stub: a child with three pipes.
type stub struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	stderr *tail
	waited sync.Once
	err    error
}

// firstExtraFD is the number of a process's first descriptor after the standard
// ones (exec.Cmd's ExtraFiles).
const firstExtraFD = 3

// startStub forks our binary into a private mount namespace. files become the
// descriptors 3, 4, … of the environment's init.
func startStub(files []*os.File) (*stub, error) {
	s := &stub{stderr: &tail{limit: 8 << 10}}
	s.cmd = &exec.Cmd{
		Path: "/proc/self/exe", // also right after the binary was replaced by an upgrade
		Args: []string{stubName},
		// It does one thing after another; threads would only take time to start.
		Env:        []string{"PATH=" + runtimePath, "GOMAXPROCS=1"},
		Stderr:     s.stderr,
		ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{
			Unshareflags: syscall.CLONE_NEWNS, // package syscall makes it private, too
			Setsid:       true,                // no signal of our terminal reaches it
		},
		// crun's grandchildren hold standard error until init has the pty; nobody
		// waits longer than this for them.
		WaitDelay: 5 * time.Second,
	}
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if s.out, err = s.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the stub: %w", err)
	}
	children.add(s.cmd.Process.Pid)
	return s, nil
}

// runtimePath is where the OCI runtime may look for programs of its own.
const runtimePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (s *stub) pid() int { return s.cmd.Process.Pid }

// mount sends the root request and waits for what was found in the root.
func (s *stub) mount(q rootRequest) (Root, error) {
	var root Root
	if err := writeMessage(s.in, q); err != nil {
		return root, s.failure(err)
	}
	if err := readMessage(s.out, &root); err != nil {
		return root, s.failure(err)
	}
	return root, nil
}

// furnish sends the work request and waits until the root is complete.
func (s *stub) furnish(w workRequest) error {
	if err := writeMessage(s.in, w); err != nil {
		return s.failure(err)
	}
	var ready [1]byte
	if _, err := io.ReadFull(s.out, ready[:]); err != nil {
		return s.failure(err)
	}
	return nil
}

// run lets the stub become the OCI runtime and waits for that to end.
func (s *stub) run() error {
	if _, err := s.in.Write([]byte{'g'}); err != nil {
		return s.failure(err)
	}
	if err := s.wait(); err != nil {
		return s.failure(err)
	}
	return nil
}

// failure turns the end of a stub into what it said on standard error. The OCI
// runtime writes there as well.
func (s *stub) failure(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) {
		err = errors.New("the stub ended without a word")
	}
	s.kill()
	if text := s.stderr.String(); text != "" {
		return errors.New(text)
	}
	return err
}

func (s *stub) wait() error {
	s.waited.Do(func() {
		s.err = s.cmd.Wait()
		children.remove(s.cmd.Process.Pid)
		s.in.Close()
	})
	return s.err
}

// kill ends the stub wherever it is and reaps it. All it mounted goes with it.
func (s *stub) kill() {
	s.in.Close()
	s.cmd.Process.Kill()
	s.wait()
}

// tail keeps the last bytes written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if extra := t.buf.Len() - t.limit; extra > 0 {
		t.buf.Next(extra)
	}
	return len(p), nil
}

// text is what was written.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// String is what was written, as one line.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.FieldsFunc(t.buf.String(), func(r rune) bool { return r == '\n' || r == '\r' })
	for n := range lines {
		lines[n] = strings.TrimSpace(lines[n])
	}
	return strings.Join(lines, "; ")
}
