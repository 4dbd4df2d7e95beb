// Package rpctest is a small client for tests of servers: it can also break
// the protocol in ways a real client never would.
package rpctest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Client is one connection. It is for one goroutine.
type Client struct {
	*net.UnixConn
	t      testing.TB
	serial uint32
}

// Packet is a message from the server.
type Packet struct {
	protocol.MessageHeader
	Body []byte
}

// Dial connects to a socket and closes the connection with the test.
func Dial(t testing.TB, path string) *Client {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &Client{UnixConn: conn, t: t}
}

// DialAs is Dial as another user, for whom the socket and its two directories
// are opened. Where the test is not root's, it is as the test's user.
func DialAs(t testing.TB, path string, uid int) *Client {
	t.Helper()
	dir := filepath.Dir(path)
	for _, open := range []string{path, dir, filepath.Dir(dir)} {
		if err := os.Chmod(open, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	made := make(chan *net.UnixConn, 1)
	go func() {
		defer close(made)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // which ends with the goroutine: it alone is another user
			if _, _, err := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); err != 0 {
				t.Error(err)
				return
			}
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Error(err)
			return
		}
		made <- conn
	}()
	conn := <-made
	if conn == nil {
		t.FailNow()
	}
	t.Cleanup(func() { conn.Close() })
	return &Client{UnixConn: conn, t: t}
}

// Frame encodes a message.
func Frame(h protocol.MessageHeader, body []byte) []byte {
	e := xdr.NewEncoder(make([]byte, 4))
	h.EncodeXDR(e)
	frame := append(e.Bytes(), body...)
	binary.BigEndian.PutUint32(frame, uint32(len(frame)))
	return frame
}

// Send writes bytes as they are.
func (c *Client) Send(frame []byte) {
	c.t.Helper()
	c.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := c.Write(frame); err != nil {
		c.t.Fatal(err)
	}
}

// Start sends a call and gives its serial.
func (c *Client) Start(program, version, procedure uint32, body []byte) uint32 {
	c.t.Helper()
	c.serial++
	c.Send(Frame(protocol.MessageHeader{Prog: program, Vers: version, Proc: int32(procedure),
		Type: protocol.Call, Serial: c.serial}, body))
	return c.serial
}

// Next reads a message, or fails after a minute.
func (c *Client) Next() Packet {
	c.t.Helper()
	p, err := c.Read1()
	if err != nil {
		c.t.Fatalf("no message: %v", err)
	}
	return p
}

// Read1 reads a message or tells why there is none.
func (c *Client) Read1() (p Packet, err error) {
	c.SetReadDeadline(time.Now().Add(time.Minute))
	var word [4]byte
	if _, err := io.ReadFull(c, word[:]); err != nil {
		return p, err
	}
	n := binary.BigEndian.Uint32(word[:])
	if n < 28 || n > 64<<20 {
		return p, fmt.Errorf("the server sent the length %d", n)
	}
	rest := make([]byte, n-4)
	if _, err := io.ReadFull(c, rest); err != nil {
		return p, err
	}
	p.MessageHeader.DecodeXDR(xdr.NewDecoder(rest[:24]))
	p.Body = rest[24:]
	return p, nil
}

// Call sends a call and reads until its reply, dropping other messages.
func (c *Client) Call(program, version, procedure uint32, body []byte) Packet {
	c.t.Helper()
	serial := c.Start(program, version, procedure, body)
	for {
		if p := c.Next(); p.Serial == serial && p.Type == protocol.Reply {
			return p
		}
	}
}

// Closed waits until the server closes the connection.
func (c *Client) Closed() {
	c.t.Helper()
	for {
		if _, err := c.Read1(); err != nil {
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				c.t.Fatal("the server keeps the connection open")
			}
			return
		}
	}
}

// Error decodes a reply that must be an error.
func (p Packet) Error(t testing.TB) protocol.Error {
	t.Helper()
	if p.Status != protocol.StatusError {
		t.Fatalf("status %d, want an error", p.Status)
	}
	var e protocol.Error
	if err := xdr.Unmarshal(p.Body, &e); err != nil {
		t.Fatal(err)
	}
	return e
}
