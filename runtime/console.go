package runtime

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is returned by Console.Attach when somebody is attached already.
var ErrBusy = errors.New("the console is in use")

// ErrNoConsole is returned for a console the environment does not have, or that
// was lost because the daemon died without a service manager to keep it.
var ErrNoConsole = errors.New("the environment has no such console")

// Console is a pty of an environment, of which the daemon holds the master
// side. What is printed is always read, kept in a ring and written to the log;
// whoever attaches gets it from the ring. So nobody who stops reading can block
// the environment, and what was printed before is not lost.
type Console struct {
	id     string // xml.Console's
	number int    // of its descriptor with the service manager
	path   string // of the slave, inside
	master *os.File

	// draining is held while reading: of two non-blocking reads of a tty at once
	// the second gives EAGAIN though there is something to read.
	draining sync.Mutex

	mu       sync.Mutex
	log      *consoleLog
	changed  *sync.Cond // ring, attached or ended
	ring     ring
	seen     uint64 // everything before it was delivered to somebody
	attached *attachment
	ended    bool
}

// newConsole takes over the master, which must be non-blocking, and starts
// reading.
func newConsole(master *os.File, rec recordedConsole, log *consoleLog) *Console {
	c := &Console{id: rec.ID, number: rec.Number, path: rec.Path, master: master, log: log, ring: ring{limit: ringLimit}}
	c.changed = sync.NewCond(&c.mu)
	go c.read()
	return c
}

// ID is the console's in the definition, see xml.ConsoleID.
func (c *Console) ID() string { return c.id }

// Path is the slave as seen inside, such as /dev/pts/1.
func (c *Console) Path() string { return c.path }

// setLog has what is printed from now on written to another log.
func (c *Console) setLog(log *consoleLog) {
	c.mu.Lock()
	old := c.log
	c.log = log
	c.mu.Unlock()
	old.close()
}

var consoleBuffers = sync.Pool{New: func() any { b := make([]byte, 8<<10); return &b }}

// read drains the master until it is closed. While no process inside has the
// slave open a read gives EIO; that is no end: the next process that opens it
// and prints makes the master readable again, which wakes the poller.
// (systemd opens and closes its console many times.)
func (c *Console) read() {
	conn, err := c.master.SyscallConn()
	if err == nil {
		conn.Read(func(fd uintptr) bool { c.drain(int(fd)); return false })
	}
	c.mu.Lock()
	c.ended = true
	c.log.close()
	c.mu.Unlock()
	c.changed.Broadcast()
}

// drain reads what is there. The buffer is borrowed: a thousand idle consoles
// have none.
func (c *Console) drain(fd int) {
	buf := consoleBuffers.Get().(*[]byte)
	defer consoleBuffers.Put(buf)
	c.draining.Lock()
	defer c.draining.Unlock()
	for {
		n, err := unix.Read(fd, *buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		c.mu.Lock()
		c.ring.Write((*buf)[:n])
		log := c.log
		c.mu.Unlock()
		c.changed.Broadcast()
		log.write((*buf)[:n])
	}
}

// finish ends the console when its environment has: what is still in the pty is
// read, then attached readers get the end of file.
func (c *Console) finish() {
	withFd(c.master, func(fd int) { c.drain(fd) })
	c.master.Close()
}

// Attach connects to the console. Reads give first what was printed and not yet
// delivered to anybody (at most 64 KiB; always the current line, that a prompt
// is seen again), then what comes. They return io.EOF after Close, when the
// environment ends, and when another Attach with force takes over. Writes are
// typed input. A reader that does not keep up loses the oldest output.
func (c *Console) Attach(force bool) (io.ReadWriteCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attached != nil {
		if !force {
			return nil, ErrBusy
		}
		c.attached.detach()
	}
	a := &attachment{c: c, pos: min(max(c.seen, c.ring.start()), c.ring.lineStart())}
	c.attached = a
	c.master.SetWriteDeadline(time.Time{})
	return a, nil
}

type attachment struct {
	c    *Console
	pos  uint64 // guarded by c.mu, as gone
	gone bool
}

func (a *attachment) Read(p []byte) (int, error) {
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if a.gone {
			return 0, io.EOF
		}
		if n, next := c.ring.readAt(p, a.pos); n > 0 {
			a.pos, c.seen = next, next
			return n, nil
		}
		if c.ended {
			return 0, io.EOF
		}
		c.changed.Wait()
	}
}

// Write types p. It blocks while the terminal's input is full, until Close.
func (a *attachment) Write(p []byte) (int, error) {
	a.c.mu.Lock()
	gone := a.gone
	a.c.mu.Unlock()
	if gone {
		return 0, io.ErrClosedPipe
	}
	n, err := a.c.master.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.ErrClosedPipe
	}
	if errors.Is(err, syscall.EIO) { // nobody listens: a terminal without a reader forgets what is typed
		return len(p), nil
	}
	return n, err
}

func (a *attachment) Close() error {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	a.detach()
	return nil
}

// detach is called with c.mu held.
func (a *attachment) detach() {
	if a.gone {
		return
	}
	a.gone = true
	if a.c.attached == a {
		a.c.attached = nil
	}
	a.c.master.SetWriteDeadline(time.Unix(1, 0)) // a blocked Write returns
	a.c.changed.Broadcast()
}

// consoleSocket waits for the pty master that the OCI runtime sends over the
// socket named by --console-socket.
type consoleSocket struct {
	listener *net.UnixListener
	got      chan struct{}
	master   *os.File
	name     string
	err      error
}

func listenConsole(path string) (*consoleSocket, error) {
	os.Remove(path)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the console: %w", err)
	}
	s := &consoleSocket{listener: l, got: make(chan struct{})}
	go s.accept()
	return s, nil
}

func (s *consoleSocket) accept() {
	defer close(s.got)
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		s.err = err
		return
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	s.master, s.name, s.err = receiveMaster(conn)
}

// receiveMaster reads one message: the slave's name as text, the master as a
// descriptor.
func receiveMaster(conn *net.UnixConn) (*os.File, string, error) {
	text, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, "", err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, "", err
	}
	var fds []int
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	for n, fd := range fds {
		unix.CloseOnExec(fd)
		if n > 0 {
			unix.Close(fd)
		}
	}
	if len(fds) == 0 {
		return nil, "", errors.New("the OCI runtime sent no console")
	}
	return masterFile(fds[0]), string(text[:n]), nil
}

// masterFile makes the descriptor one that the poller can wait on.
func masterFile(fd int) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "console")
}

// take returns the master once the runtime has ended: it was sent by then or
// never will be.
func (s *consoleSocket) take() (*os.File, error) {
	s.listener.SetDeadline(time.Now().Add(time.Second))
	<-s.got
	s.listener.Close()
	return s.master, s.err
}

// close is for the failed start: a master that arrived is dropped.
func (s *consoleSocket) close() {
	s.listener.Close()
	<-s.got
	if s.master != nil {
		s.master.Close()
	}
}
