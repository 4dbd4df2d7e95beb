package rpctest

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// SendWithFile writes bytes with a descriptor beside them, which libvirt's
// clients do only for the single bytes of SendFiles.
func (c *Client) SendWithFile(frame []byte, f *os.File) {
	c.t.Helper()
	c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	raw, err := f.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { _, _, err = c.WriteMsgUnix(frame, unix.UnixRights(int(fd)), nil) })
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// SendFiles sends the descriptors of a message, which go behind it.
func (c *Client) SendFiles(files ...*os.File) {
	c.t.Helper()
	for _, f := range files {
		c.SendWithFile([]byte{0}, f)
	}
}

// ReceiveFiles reads the n descriptors behind a message.
func (c *Client) ReceiveFiles(n int) (files []*os.File) {
	c.t.Helper()
	for range n {
		var one [1]byte
		oob := make([]byte, unix.CmsgSpace(4))
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, oobn, _, _, err := c.ReadMsgUnix(one[:], oob)
		if err != nil {
			c.t.Fatal(err)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			c.t.Fatalf("a byte came with %d control messages: %v", len(messages), err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			c.t.Fatalf("a byte came with %d descriptors: %v", len(fds), err)
		}
		files = append(files, os.NewFile(uintptr(fds[0]), "received"))
	}
	return files
}

// Flags gives a file's status flags, as fcntl does.
func Flags(t testing.TB, f *os.File) (flags int) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return flags
}
