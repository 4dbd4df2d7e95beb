package rpc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// input cuts what a client sends into frames. Memory grows with the bytes
// that have arrived, never with what a length word promises.
type input struct {
	buf        []byte
	start, end int        // what of buf is unread
	files      []*os.File // received, not yet claimed by a frame
}

const (
	idleBuffer   = 2 << 10          // what an idle client costs
	frameTimeout = 60 * time.Second // for the rest of a frame once begun
)

// frame reads the next frame; it is valid until the next call.
func (in *input) frame(sock *net.UnixConn) ([]byte, error) {
	if in.start == in.end && cap(in.buf) > idleBuffer {
		in.buf = nil // do not keep what one large message needed
		in.start, in.end = 0, 0
	}
	if err := in.need(sock, lengthSize); err != nil {
		return nil, err
	}
	n, err := frameLength(in.buf[in.start:])
	if err != nil {
		return nil, err
	}
	if err := in.need(sock, n); err != nil {
		return nil, err
	}
	frame := in.buf[in.start : in.start+n]
	in.start += n
	return frame, nil
}

// take claims the descriptors that follow a frame, one byte carrying each.
func (in *input) take(sock *net.UnixConn, n int) ([]*os.File, error) {
	if err := in.need(sock, n); err != nil {
		return nil, err
	}
	in.start += n
	if len(in.files) < n {
		return nil, fmt.Errorf("a message announced %d descriptors and brought %d", n, len(in.files))
	}
	files := in.files[:n:n]
	in.files = in.files[n:]
	return files, nil
}

// need reads until n bytes are there.
func (in *input) need(sock *net.UnixConn, n int) error {
	for in.end-in.start < n {
		in.room(n)
		begun := in.end > in.start
		if begun {
			sock.SetReadDeadline(time.Now().Add(frameTimeout))
		}
		if err := in.fill(sock); err != nil {
			if begun && errors.Is(err, os.ErrDeadlineExceeded) {
				return errors.New("the client sent a part of a message and then nothing")
			}
			return err
		}
		if begun {
			sock.SetReadDeadline(time.Time{})
		}
	}
	return nil
}

// room makes space behind the unread bytes, doubling towards n.
func (in *input) room(n int) {
	if in.end < len(in.buf) && in.start+n <= len(in.buf) {
		return
	}
	unread := in.end - in.start
	size := max(idleBuffer, min(n, 2*unread))
	if len(in.buf) >= size && unread < len(in.buf) {
		copy(in.buf, in.buf[in.start:in.end])
	} else {
		next := make([]byte, size)
		copy(next, in.buf[in.start:in.end])
		in.buf = next
	}
	in.start, in.end = 0, unread
}

// fill reads once, with the descriptors that came along.
func (in *input) fill(sock *net.UnixConn) error {
	var oob [160]byte // CmsgSpace of MaxFiles descriptors
	n, oobn, flags, _, err := sock.ReadMsgUnix(in.buf[in.end:], oob[:oobSize])
	if oobn > 0 {
		files, parseErr := parseFiles(oob[:oobn])
		in.files = append(in.files, files...)
		if parseErr != nil {
			return parseErr
		}
	}
	switch {
	case err != nil:
		return err
	case flags&unix.MSG_CTRUNC != 0 || len(in.files) > MaxFiles:
		return fmt.Errorf("the client sent more than %d descriptors", MaxFiles)
	case n == 0:
		return io.EOF
	}
	in.end += n
	return nil
}
