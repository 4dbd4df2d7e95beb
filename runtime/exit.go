package runtime

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ExitCause is why an environment ended.
type ExitCause int

const (
	ExitUnknown  ExitCause = iota // it ended while no daemon was its parent
	ExitPoweroff                  // halted from inside, or its init returned 0
	ExitReboot                    // asked for a reboot from inside
	ExitCrash                     // init was killed by a signal or returned an error
	ExitKilled                    // by Instance.Kill
)

func (c ExitCause) String() string {
	return [...]string{"unknown", "poweroff", "reboot", "crash", "killed"}[c]
}

// Exit is how init ended. Status is its exit status when Signal is 0.
type Exit struct {
	Cause  ExitCause
	Status int
	Signal syscall.Signal
}

func (e Exit) String() string {
	switch {
	case e.Signal != 0:
		return fmt.Sprintf("%s (init got signal %d, %s)", e.Cause, e.Signal, e.Signal)
	case e.Cause == ExitCrash:
		return fmt.Sprintf("crash (init returned %d)", e.Status)
	}
	return e.Cause.String()
}

// exitOf reads a wait status. reboot(2) in a PID namespace kills its init, with
// SIGHUP for a restart and SIGINT for halt and power off (kernel/pid_namespace.c,
// reboot_pid_ns).
func exitOf(ws syscall.WaitStatus) Exit {
	if !ws.Signaled() {
		e := Exit{Cause: ExitPoweroff, Status: ws.ExitStatus()}
		if e.Status != 0 {
			e.Cause = ExitCrash
		}
		return e
	}
	e := Exit{Cause: ExitCrash, Signal: ws.Signal()}
	switch e.Signal {
	case syscall.SIGHUP:
		e.Cause = ExitReboot
	case syscall.SIGINT:
		e.Cause = ExitPoweroff
	}
	return e
}

// of tells the end that Kill made from one that looks alike.
func (e Exit) of(rec *record) Exit {
	if rec.Killed && e.Cause != ExitPoweroff && e.Cause != ExitReboot {
		e.Cause = ExitKilled
	}
	return e
}

// openPidfd returns a descriptor that the Go runtime's poller can wait on, so a
// waiting goroutine costs no thread. The process must still have the given
// start time, or the PID has been used again.
func openPidfd(pid int, start uint64) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	if start != 0 && startTime(pid) != start {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), nil
}

// dead tells whether the process behind a pidfd has ended.
func dead(pidfd *os.File) bool {
	gone := true
	withFd(pidfd, func(fd int) { gone = polled(fd) })
	return gone
}

func polled(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

// withFd runs f with the descriptor and tells whether the file was open.
func withFd(file *os.File, f func(fd int)) bool {
	conn, err := file.SyscallConn()
	if err != nil {
		return false
	}
	return conn.Control(func(fd uintptr) { f(int(fd)) }) == nil
}

// awaitExit blocks until the process has ended, parked in the poller. It returns
// false when the file was closed before.
func awaitExit(pidfd *os.File) bool {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return false
	}
	return conn.Read(func(fd uintptr) bool { return polled(int(fd)) }) == nil
}

// collect returns how an init that has ended did so.
func collect(pidfd *os.File) Exit {
	ws, err := waitStatus(pidfd)
	if err != nil {
		return Exit{}
	}
	return exitOf(ws)
}

// waitStatus is that of a process that has ended: by reaping it when it is our
// child, else from the pidfd (Linux 6.15).
func waitStatus(pidfd *os.File) (ws syscall.WaitStatus, err error) {
	if !withFd(pidfd, func(fd int) {
		if ws, err = reap(fd); errors.Is(err, unix.ECHILD) {
			ws, err = exitInfo(fd)
		}
	}) {
		err = os.ErrClosed
	}
	return ws, err
}

// tracerPatience is how long a tracer may take to let go of a process that has
// ended, as CRIU may be that dumps it: until then its parent is told nothing.
const tracerPatience = 10 * time.Second

// reap waits for a child by pidfd, so never for another process of the same PID.
func reap(fd int) (syscall.WaitStatus, error) {
	// siginfo_t of SIGCHLD on 64-bit Linux; package unix leaves it opaque.
	var info struct {
		Signo, Errno, Code, _ int32
		PID, UID, Status      int32
		_                     [100]byte
	}
	for end := time.Now().Add(tracerPatience); info.PID == 0; {
		err := unix.Waitid(unix.P_PIDFD, fd, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case info.PID == 0 && time.Now().After(end):
			return 0, unix.ENODATA
		case info.PID == 0:
			time.Sleep(10 * time.Millisecond)
		}
	}
	const exited = 1 // CLD_EXITED; the others are a signal, perhaps with 0x80 for a core
	if info.Code == exited {
		return syscall.WaitStatus(info.Status & 0xff << 8), nil
	}
	return syscall.WaitStatus(info.Status & 0x7f), nil
}

// exitInfo asks the kernel for the exit status of a process that is not our
// child. It is known only after its parent has reaped it, which for an init
// adopted by systemd is at once.
func exitInfo(fd int) (syscall.WaitStatus, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(fd, &info)
		if err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return syscall.WaitStatus(info.Exit_code), nil
		}
		if err != nil && err != unix.ESRCH || wait > 500*time.Millisecond {
			return 0, unix.ENODATA
		}
		time.Sleep(wait)
	}
}
