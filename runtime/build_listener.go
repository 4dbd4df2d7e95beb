package runtime

import (
	"errors"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stepSocket is the descriptor of a step by which the builder gets the socket
// that its proxy listens on.
const stepSocket = 3

func stepSockets() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "builder"), os.NewFile(uintptr(pair[1]), "step"), nil
}

// giveListener makes the socket in the step's network, where there is nothing yet,
// and gives it away.
func giveListener() error {
	defer unix.Close(stepSocket)
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: outPort}
	if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, maxOut)); err != nil {
		return err
	}
	return unix.Sendmsg(stepSocket, []byte{0}, unix.UnixRights(fd), nil, 0)
}

// takeListener takes what giveListener gives.
func takeListener(from *os.File) (net.Listener, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(from.Fd()), make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("the step gave no socket"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "listener")
	defer f.Close()
	return net.FileListener(f)
}
