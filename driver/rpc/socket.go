package rpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Peer is the process that connected, as the kernel says.
type Peer struct {
	PID, UID, GID uint32
	StartTime     uint64 // of PID, in clock ticks since boot; 0 when it is gone
}

// peerOf asks who is at the other end.
func peerOf(sock *net.UnixConn) (p Peer, err error) {
	rc, err := sock.SyscallConn()
	if err != nil {
		return p, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := rc.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return p, err
	}
	if sockErr != nil {
		return p, sockErr
	}
	return Peer{uint32(cred.Pid), cred.Uid, cred.Gid, startTime(int(cred.Pid))}, nil
}

// startTime is field 22 of /proc/PID/stat. The command name before it may
// contain anything, so counting begins after its closing bracket.
func startTime(pid int) uint64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(fields[19], 10, 64)
	return n
}

// oobSize holds the descriptors of one packet. libvirt sends them one by one.
var oobSize = unix.CmsgSpace(MaxFiles * 4)

// parseFiles takes the descriptors out of a control message. On an error
// all are closed.
func parseFiles(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials and the like
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// sendFile sends one descriptor with the byte that carries it.
func sendFile(sock *net.UnixConn, f *os.File) error {
	_, _, err := sock.WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil)
	return err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// isShortage tells errors of accept that pass.
func isShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNABORTED)
}

// listenUnix makes a socket with its final mode from the start: it is bound
// under another name and renamed when mode and group are set.
func listenUnix(path string, mode os.FileMode, gid int) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	temporary := path + ".new"
	os.Remove(temporary)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = errors.Join(os.Chown(temporary, -1, gid), os.Chmod(temporary, mode))
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temporary)
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return l, nil
}
