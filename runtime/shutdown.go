package runtime

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// ShutdownMode is how an environment is asked to stop, as in
// virDomainShutdownFlags.
type ShutdownMode int

const (
	ShutdownDefault  ShutdownMode = iota // what its init understands
	ShutdownInitctl                      // a run level, through /run/initctl
	ShutdownSignal                       // a signal to init
	ShutdownParavirt                     // ErrUnsupported
)

// request is how one sort of init is told.
type request struct {
	poweroff, reboot syscall.Signal
	initctl          bool // preferred over the signal
}

// rtmin is SIGRTMIN as systemd counts: the first two real-time signals are the
// C library's.
const rtmin = 34

// requests by init:
//   - systemd(1) documents SIGRTMIN+4 and +5; SIGPWR would only start
//     sigpwr.target
//   - sysvinit has a run level over initctl; SIGINT is ctrlaltdel, which its
//     inittab usually makes a reboot, SIGPWR is powerfail
//   - busybox init: SIGUSR2 powers off, SIGTERM reboots
//   - openrc-init: SIGTERM powers off, SIGINT reboots
//   - any other program is asked like any process
var requests = map[InitKind]request{
	Systemd:   {poweroff: rtmin + 4, reboot: rtmin + 5},
	Sysvinit:  {poweroff: syscall.SIGPWR, reboot: syscall.SIGINT, initctl: true},
	Busybox:   {poweroff: syscall.SIGUSR2, reboot: syscall.SIGTERM},
	OpenRC:    {poweroff: syscall.SIGTERM, reboot: syscall.SIGINT},
	OtherInit: {poweroff: syscall.SIGTERM},
}

// Shutdown asks the environment to stop or to reboot, and returns when it was
// asked. Exited tells when it did; it need not.
func (i *Instance) Shutdown(ctx context.Context, mode ShutdownMode, reboot bool) error {
	if !i.Started() {
		return fmt.Errorf("%s has not been started yet: resume or destroy it", i.Name())
	}
	how := requests[i.rec.Kind]
	if mode != ShutdownParavirt {
		if _, err := i.ThawFilesystems(ctx, nil); err != nil {
			return err
		}
	}
	switch mode {
	case ShutdownParavirt:
		return fmt.Errorf("an environment has no paravirtual shutdown: %w", ErrUnsupported)
	case ShutdownInitctl:
		return i.initctl(reboot)
	case ShutdownDefault:
		if how.initctl {
			if err := i.initctl(reboot); err == nil {
				return nil
			} // no fifo yet, so early in its boot: the signal is left
		}
	}
	signal := how.poweroff
	if reboot {
		signal = how.reboot
	}
	if signal == 0 {
		return fmt.Errorf("the init of %s cannot be asked to reboot: %w", i.Name(), ErrUnsupported)
	}
	return i.signal(signal)
}

func (i *Instance) signal(s syscall.Signal) error {
	err := error(unix.ESRCH)
	withFd(i.pidfd, func(fd int) { err = unix.PidfdSendSignal(fd, s, nil, 0) })
	if err != nil {
		return fmt.Errorf("signal the init of %s: %w", i.Name(), err)
	}
	return nil
}

// initctl writes the request of sysvinit's initreq.h into its fifo.
func (i *Instance) initctl(reboot bool) error {
	level := byte('0')
	if reboot {
		level = '6'
	}
	message := make([]byte, 384)
	binary.NativeEndian.PutUint32(message[0:], 0x03091969) // INIT_MAGIC
	binary.NativeEndian.PutUint32(message[4:], 1)          // INIT_CMD_RUNLVL
	binary.NativeEndian.PutUint32(message[8:], uint32(level))
	_, err := inTree(context.Background(), i, Owner{}, "/run/initctl", func(t *tree) (none struct{}, err error) {
		for _, name := range []string{"/run/initctl", "/dev/initctl", "/etc/.initctl"} {
			if err := writeFifo(t, name, message); err == nil {
				return none, nil
			}
		}
		return none, fmt.Errorf("its init does not take run levels: %w", ErrUnsupported)
	})
	return err
}

// writeFifo writes to a fifo inside and to nothing else, whatever root inside
// puts at its place, and never waits for a reader.
func writeFifo(t *tree, name string, message []byte) error {
	fd, err := t.open(name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return unix.ENXIO
	}
	_, err = unix.Write(fd, message)
	return err
}
