package runtime

import (
	"os"

	"golang.org/x/sys/unix"
)

// dupFD duplicates the descriptor of f without taking it out of the poller.
func dupFD(f *os.File) (fd int, err error) {
	fd = -1
	if !withFd(f, func(n int) { fd, err = unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 3) }) {
		return -1, os.ErrClosed
	}
	return fd, err
}

func dupFile(f *os.File) (*os.File, error) {
	fd, err := dupFD(f)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func setNonblock(f *os.File) {
	withFd(f, func(fd int) { unix.SetNonblock(fd, true) })
}
