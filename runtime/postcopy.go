package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// With post-copy the memory that was not sent in rounds follows when the
// environment runs at the destination: what it touches first, and the rest in the
// background. CRIU at the source keeps it and answers for it; CRIU at the
// destination asks, and fills pages as they are missed (userfaultfd(2)). Both
// talk through the migration's channel:
//
//	source                                        destination
//	criu (crun checkpoint, lazy-pages)            criu lazy-pages
//	  | loopback of the dump's own namespace        | a pair of sockets
//	daemon ---------- framePages ---------- daemon
//
// From the commit on, the environment is partly here and partly there: when the
// connection is lost, or the daemon of either side ends, it is lost. So it must be
// asked for. The destination kills it then, for what is missing would be zeros, and
// the source is told so (Lost) in place of Committed. Record.Follows has the next
// daemon do the same.

// lazyPort is where CRIU waits, in a network namespace that nobody else is in.
const lazyPort = 27000

var lazyOptions = []string{"lazy-pages", "address 127.0.0.1", fmt.Sprintf("port %d", lazyPort)}

// serveLazy connects CRIU, once it has written all but the memory, with the
// destination.
func (m *outgoing) serveLazy(ctx context.Context, dumped <-chan error) (net.Conn, error) {
	for {
		conn, err := m.i.r.dialDump(m.i.rec.UUID)
		if err == nil {
			return conn, nil
		}
		select {
		case err := <-dumped:
			if err == nil {
				err = errors.New("CRIU has ended before anybody asked for memory")
			}
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// dialDump connects to CRIU within the dump's network namespace.
func (r *Runtime) dialDump(uuid string) (net.Conn, error) {
	pids, err := processesOf(filepath.Join(cgroupRoot, "system.slice", dumpUnit(uuid)))
	if err != nil || len(pids) == 0 {
		return nil, errors.Join(err, os.ErrNotExist)
	}
	space, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pids[0]))
	if err != nil {
		return nil, err
	}
	defer space.Close()
	var conn net.Conn
	err = onOwnThread(func() error {
		if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: lazyPort, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			unix.Close(fd)
			return err
		}
		f := os.NewFile(uintptr(fd), "memory")
		defer f.Close()
		conn, err = net.FileConn(f)
		return err
	})
	return conn, err
}

// carryPages passes on what one side's CRIU says and what comes for it, until
// either ends.
func (c *channel) carryPages(criu io.ReadWriter) error {
	ended := make(chan error, 2)
	go func() {
		buf := make([]byte, maxFrameData)
		for {
			n, err := criu.Read(buf)
			if n > 0 {
				c.following.WaitN(context.Background(), n)
				if err := c.write(framePages, buf[:n]); err != nil {
					ended <- err
					return
				}
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	for {
		select {
		case f := <-c.pages:
			if _, err := criu.Write(f.body); err != nil {
				return err
			}
		case err := <-ended:
			if err == io.EOF {
				err = nil
			}
			return err
		case <-c.done:
			return c.ended()
		}
	}
}

// lazyPages is CRIU at the destination.
type lazyPages struct {
	cmd   *exec.Cmd
	sock  net.Conn
	said  tail
	ended chan struct{}
	err   error // once it has ended
}

// startLazy starts it for a checkpoint.
func startLazy(dir string) (*lazyPages, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	l := &lazyPages{sock: ours, said: tail{limit: 4 << 10}, ended: make(chan struct{})}
	program, err := findProgram(criuProgram)
	if err != nil {
		ours.Close()
		return nil, err
	}
	l.cmd = exec.Command(program, "lazy-pages", "--page-server", "--ps-socket", "3",
		"--images-dir", filepath.Join(dir, "images"), "--work-dir", filepath.Join(dir, "work"), "-o", "lazy.log", "-v2")
	l.cmd.Env = []string{"PATH=" + runtimePath}
	l.cmd.Stdin, l.cmd.Stdout, l.cmd.Stderr = &bytes.Buffer{}, &l.said, &l.said
	l.cmd.ExtraFiles = []*os.File{theirs}
	if err := l.cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	children.add(l.cmd.Process.Pid)
	go func() {
		l.err = l.cmd.Wait()
		children.remove(l.cmd.Process.Pid)
		close(l.ended)
	}()
	return l, l.await(filepath.Join(dir, "work", "lazy-pages.socket"))
}

// await waits until restored processes can register with it.
func (l *lazyPages) await(socket string) error {
	for range 1000 {
		if exists(socket) {
			return nil
		}
		select {
		case <-l.ended:
			return fmt.Errorf("criu lazy-pages: %w: %s", l.err, l.said.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	l.end()
	return errors.New("criu lazy-pages does not begin")
}

// end ends it, after the processes that miss pages.
func (l *lazyPages) end() {
	l.sock.Close()
	l.cmd.Process.Kill()
	<-l.ended
}

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "memory"), os.NewFile(uintptr(fds[1]), "memory")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
	}
	return conn, theirs, err
}

// findProgram looks where the OCI runtime would.
func findProgram(name string) (string, error) {
	for _, dir := range filepath.SplitList(runtimePath) {
		if path := filepath.Join(dir, name); exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing", name)
}

// faultsInside is the sysctl that says whether processes without rights on the
// host may have their page faults handled by another.
var faultsInside = "/proc/sys/vm/unprivileged_userfaultfd"

// faultsNote is a file with what that was before any restore, while there is one,
// for a later daemon. Like the sysctl it does not outlast the host.
func (r *Runtime) faultsNote() string {
	return filepath.Join(r.config.StateDir, filepath.Base(faultsInside))
}

// allowFaults is for the time of a restore: CRIU opens each userfaultfd as the
// environment's root, who has no rights on the host. What it returns undoes that,
// when the last of several restores has ended.
func (r *Runtime) allowFaults() (done func(), err error) {
	r.faults.Lock()
	defer r.faults.Unlock()
	if r.restoring == 0 {
		err = r.setFaults()
	}
	if err != nil {
		return nil, err
	}
	r.restoring++
	return func() {
		r.faults.Lock()
		defer r.faults.Unlock()
		if r.restoring--; r.restoring == 0 {
			r.resetFaults()
		}
	}, nil
}

func (r *Runtime) setFaults() error {
	was, err := os.ReadFile(faultsInside)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("this kernel cannot have memory follow (CONFIG_USERFAULTFD): migrate without --postcopy")
	}
	if err != nil || strings.TrimSpace(string(was)) == "1" {
		return err
	}
	if err := replaceFile(r.faultsNote(), was, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(faultsInside, []byte("1"), 0); err != nil {
		return errors.Join(err, os.Remove(r.faultsNote()))
	}
	return nil
}

// resetFaults undoes setFaults, also an earlier daemon's.
func (r *Runtime) resetFaults() error {
	was, err := os.ReadFile(r.faultsNote())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(faultsInside, was, 0)
	}
	if err == nil {
		err = os.Remove(r.faultsNote())
	}
	return err
}
