package rpc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// link is a socket whose system calls are made directly: package net cannot
// try a write without waiting, and holds a buffer while it waits for a read.
// One goroutine reads and one writes at a time; the fields carry arguments
// and results to functions that are made only once.
type link struct {
	sock *net.UnixConn
	raw  syscall.RawConn

	recvOnce func(fd uintptr) bool
	in       *input
	recvErr  error
	waited   bool // for data to come

	sendOnce func(fd uintptr) bool
	frames   [][]byte
	rights   []byte // control message to send with the frames
	wait     bool
	sent     int
	sendErr  error
}

func (l *link) init(sock *net.UnixConn, in *input) (err error) {
	l.sock, l.in = sock, in
	l.raw, err = sock.SyscallConn()
	l.recvOnce, l.sendOnce = l.tryRecv, l.trySend
	return err
}

// recv waits for data and reads what is there into the input. A client whose
// next request is there already comes after those who wait: without that two
// clients could keep two CPUs for as long as the scheduler lets them.
func (l *link) recv() error {
	l.waited = false
	if err := l.raw.Read(l.recvOnce); err != nil {
		return err
	}
	if !l.waited {
		runtime.Gosched()
	}
	return l.recvErr
}

// oobSize has room for the descriptors of one packet. libvirt sends them one
// by one.
const oobSize = unix.SizeofCmsghdr + MaxFiles*4

func (l *link) tryRecv(fd uintptr) bool {
	in := l.in
	in.room()
	var oob [oobSize]byte
	for {
		n, oobn, flags, _, err := unix.Recvmsg(int(fd), in.buf.b[in.end:], oob[:], unix.MSG_CMSG_CLOEXEC)
		switch err {
		case nil:
			l.recvErr = in.received(n, oob[:oobn], flags&unix.MSG_CTRUNC != 0)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			in.rest()
			l.waited = true
			return false
		default:
			l.recvErr = os.NewSyscallError("recvmsg", err)
		}
		return true
	}
}

// send writes frames, as many bytes as the socket takes; with wait at least
// one. Without it the error is EAGAIN when the socket takes nothing.
func (l *link) send(frames [][]byte, rights []byte, wait bool) (int, error) {
	l.frames, l.rights, l.wait = frames, rights, wait
	l.sent, l.sendErr = 0, nil
	if err := l.raw.Write(l.sendOnce); err != nil {
		return 0, err
	}
	return l.sent, l.sendErr
}

func (l *link) trySend(fd uintptr) bool {
	for {
		var n int
		var err error
		switch {
		case len(l.rights) > 0:
			n, err = unix.SendmsgN(int(fd), l.frames[0], l.rights, nil, unix.MSG_NOSIGNAL)
		case len(l.frames) == 1:
			n, err = unix.Write(int(fd), l.frames[0])
		default:
			n, err = unix.Writev(int(fd), l.frames)
		}
		switch err {
		case nil:
			l.sent = n
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			l.sendErr = unix.EAGAIN
			if l.wait {
				l.sendErr = nil
				return false
			}
		default:
			l.sendErr = os.NewSyscallError("write", err)
		}
		return true
	}
}

// sendFile sends one descriptor with the byte that carries it. The
// descriptor is not taken by Fd, which would make it blocking for everybody
// who shares it.
func (l *link) sendFile(f *os.File, wait bool) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	controlErr := raw.Control(func(fd uintptr) {
		_, err = l.send([][]byte{{0}}, unix.UnixRights(int(fd)), wait)
	})
	return errors.Join(controlErr, err)
}

// hungUp tells whether the client has closed its socket, when data that we
// do not want yet hides the end of file.
func (l *link) hungUp() (gone bool) {
	err := l.raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(poll, 0)
		gone = err == nil && n == 1 && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}

// received accounts for what one read brought.
func (in *input) received(n int, oob []byte, truncated bool) error {
	in.total += uint64(n)
	in.end += n
	if len(oob) > 0 {
		files, err := parseFiles(oob)
		for _, f := range files {
			in.files = append(in.files, receivedFile{f, in.total})
		}
		if err != nil {
			return err
		}
	}
	if len(in.files) > 0 && !in.mayBringFiles() {
		return errors.New("descriptors came from a client that may not send any")
	}
	if truncated || len(in.files) > MaxFiles {
		return fmt.Errorf("more than %d descriptors came at once", MaxFiles)
	}
	if n == 0 {
		return io.EOF
	}
	return nil
}

// parseFiles takes the descriptors out of a control message.
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
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Peer is the process that connected, as the kernel says.
type Peer struct {
	PID, UID, GID uint32
	StartTime     uint64 // of PID, in clock ticks since boot; 0 when it is gone
}

// peerOf asks who is at the other end.
func peerOf(raw syscall.RawConn) (p Peer, err error) {
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return p, err
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

// isShortage tells errors of accept that pass.
func isShortage(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) ||
		errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNABORTED)
}
