package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstDescriptor = 3 // SD_LISTEN_FDS_START
	// What systemd could have passed at most; more in LISTEN_FDS is not from systemd.
	maxDescriptors = 1 << 16
	// A notification is one datagram to PID 1, whose queue can be full for a moment.
	notifyTimeout = 5 * time.Second
)

// Service is the daemon's own side of being a systemd service. Without a service manager every method works and
// does nothing, so that the daemon can be started by hand.
type Service struct {
	socket   string // NOTIFY_SOCKET
	watchdog time.Duration
	sockets  []NamedFile
	stored   []NamedFile
}

// NamedFile is an inherited descriptor and its name. It is the caller's to close.
type NamedFile struct {
	Name string
	*os.File
}

// Inherit takes over what the service manager passed in descriptors and environment. Call it once, early in main:
// the descriptors become close-on-exec, and the variables are removed from the environment because children
// must not see them (crun, for one, would send its own notifications to NOTIFY_SOCKET).
func Inherit() (*Service, error) {
	env := map[string]string{}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		env[name] = os.Getenv(name)
		os.Unsetenv(name)
	}
	s := &Service{socket: env["NOTIFY_SOCKET"]}
	self := strconv.Itoa(os.Getpid())
	if pid := env["WATCHDOG_PID"]; pid == "" || pid == self {
		usec, err := strconv.ParseUint(env["WATCHDOG_USEC"], 10, 53)
		if err == nil {
			s.watchdog = time.Duration(usec) * time.Microsecond
		}
	}
	if env["LISTEN_PID"] != self {
		return s, nil // meant for somebody else, or nothing was passed
	}
	n, err := strconv.Atoi(env["LISTEN_FDS"])
	if err != nil || n < 0 || n > maxDescriptors {
		return s, fmt.Errorf("LISTEN_FDS=%q is no number of descriptors", env["LISTEN_FDS"])
	}
	return s, s.adopt(n, strings.Split(env["LISTEN_FDNAMES"], ":"))
}

func (s *Service) adopt(n int, names []string) error {
	for i := range n {
		fd := firstDescriptor + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return fmt.Errorf("descriptor %d of the %d that the service manager announced: %w", fd, n, err)
		}
		name := ""
		if i < len(names) {
			name = names[i]
		}
		f := NamedFile{name, os.NewFile(uintptr(fd), name)}
		// A listening socket comes from a socket unit; nothing else does here, and we store no listening ones.
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && v == 1 {
			s.sockets = append(s.sockets, f)
		} else {
			s.stored = append(s.stored, f)
		}
	}
	return nil
}

// Sockets are the listening sockets passed by socket units, named by FileDescriptorName= (by default the unit's name).
func (s *Service) Sockets() []NamedFile { return s.sockets }

// Stored are the descriptors that an earlier run of the service kept with Store, in no particular order.
func (s *Service) Stored() []NamedFile { return s.stored }

// Managed tells whether a service manager listens, so that Store really stores.
func (s *Service) Managed() bool { return s.socket != "" }

// Watchdog is how long systemd waits for a sign of life (WatchdogSec=), 0 for ever. Call Alive twice in that time.
func (s *Service) Watchdog() time.Duration { return s.watchdog }

// Ready tells systemd that the service accepts clients, or is done with reloading.
func (s *Service) Ready() error { return s.Notify("READY=1") }

// Stopping tells systemd that the end is intended.
func (s *Service) Stopping() error { return s.Notify("STOPPING=1") }

// Reloading begins a reload; Ready ends it. The time stamp is what Type=notify-reload insists on, to tell this
// reload from an earlier one.
func (s *Service) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("monotonic clock: %w", err)
	}
	return s.Notify("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Status sets the line that systemctl status shows.
func (s *Service) Status(text string) error {
	return s.Notify("STATUS=" + strings.ReplaceAll(text, "\n", " "))
}

// Alive answers the watchdog.
func (s *Service) Alive() error { return s.Notify("WATCHDOG=1") }

// Notify sends assignments such as "STATUS=3 environments" in one message; sd_notify(3) lists them.
func (s *Service) Notify(states ...string) error { return s.notify(nil, states...) }

func (s *Service) notify(f *os.File, states ...string) error {
	if s.socket == "" {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("notification %q to the service manager: %w", states[0], err) }
	// net.Dial takes "@name" for an abstract socket, as NOTIFY_SOCKET writes it.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	conn.SetWriteDeadline(time.Now().Add(notifyTimeout))
	message := []byte(strings.Join(states, "\n"))
	if f == nil {
		if _, err := conn.Write(message); err != nil {
			return fail(err)
		}
		return nil
	}
	file, err := f.SyscallConn() // and not f.Fd(), which would make the descriptor blocking
	if err != nil {
		return fail(err)
	}
	socket, err := conn.SyscallConn() // WriteMsgUnix refuses a connected datagram socket
	if err != nil {
		return fail(err)
	}
	var sent error
	use := file.Control(func(fd uintptr) {
		err = socket.Write(func(to uintptr) bool {
			sent = unix.Sendmsg(int(to), message, unix.UnixRights(int(fd)), nil, unix.MSG_NOSIGNAL)
			return sent != unix.EAGAIN
		})
	})
	if err := errors.Join(use, err, sent); err != nil {
		return fail(err)
	}
	return nil
}
