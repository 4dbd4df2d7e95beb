package rpc

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// input cuts what a client sends into frames. Memory grows with the bytes
// that have arrived, never with what a length word promises, and a client
// that says nothing has no buffer at all.
type input struct {
	link    *link
	timeout time.Duration // for the rest of a frame once begun
	conn    *Conn         // whose limits hold; nil for a daemon of the host's
	large   int           // what the frame counts as in the user's budget

	buf        *buffer
	start, end int            // what of buf is unread
	want       int            // bytes the buffer must be able to hold from start
	total      uint64         // bytes received since the beginning
	files      []receivedFile // not yet claimed by a message
}

// receivedFile is a descriptor and the place in the client's bytes it came
// with: that before total was as large.
type receivedFile struct {
	file *os.File
	at   uint64
}

const (
	readBuffer          = 16 << 10
	defaultFrameTimeout = 60 * time.Second
	frameProgress       = 64 << 10 // bytes for which the time begins anew
)

// frame reads the next frame; it is valid until the next call.
func (in *input) frame() ([]byte, error) {
	in.dropStray()
	in.settle()
	if err := in.need(lengthSize); err != nil {
		return nil, err
	}
	n, err := frameLength(in.buf.b[in.start:in.end], in.longest())
	if err != nil {
		return nil, err
	}
	if in.conn != nil {
		if in.large, err = in.conn.server.large.take(in.conn.peer.UID, n); err != nil {
			return nil, err
		}
	}
	if err := in.need(n); err != nil {
		return nil, err
	}
	frame := in.buf.b[in.start : in.start+n]
	in.start += n
	return frame, nil
}

// longest is the most that the next frame may hold after its length word.
func (in *input) longest() int {
	if in.conn != nil && !in.conn.authenticated.Load() {
		return anonymousMessage
	}
	return MaxMessage
}

// settle gives back what the last frame counted as.
func (in *input) settle() {
	if in.large > 0 {
		in.conn.server.large.give(in.conn.peer.UID, in.large)
		in.large = 0
	}
}

// mayBringFiles tells who is to send descriptors: nobody who only reads, or is
// not known yet.
func (in *input) mayBringFiles() bool {
	return in.conn == nil || !in.conn.readOnly && in.conn.authenticated.Load()
}

// take claims the descriptors that follow a frame, one byte carrying each.
// The frame is not valid after it.
func (in *input) take(n int) ([]*os.File, error) {
	in.dropStray()
	if err := in.need(n); err != nil {
		return nil, err
	}
	in.start += n
	files := in.cut()
	if len(files) != n {
		closeFiles(files)
		return nil, fmt.Errorf("a message announced %d descriptors and brought %d", n, len(files))
	}
	return files, nil
}

// cut removes the descriptors that came with bytes already consumed.
func (in *input) cut() (files []*os.File) {
	consumed := in.total - uint64(in.end-in.start)
	for len(in.files) > 0 && in.files[0].at <= consumed {
		files = append(files, in.files[0].file)
		in.files = in.files[1:]
	}
	if len(in.files) == 0 {
		in.files = nil
	}
	return files
}

// dropStray closes descriptors that no message announced, or they would be
// taken for those of the next one.
func (in *input) dropStray() {
	if len(in.files) > 0 {
		closeFiles(in.cut())
	}
}

// need reads until n bytes are there.
func (in *input) need(n int) error {
	limited, since := false, in.total
	for in.end-in.start < n {
		in.want = n
		if in.end > in.start && (!limited || in.total-since >= frameProgress) {
			limited, since = true, in.total
			in.link.sock.SetReadDeadline(time.Now().Add(in.timeout))
		}
		if err := in.link.recv(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return errors.New("a part of a message came and then nothing")
			}
			return err
		}
	}
	if limited {
		in.link.sock.SetReadDeadline(time.Time{})
	}
	return nil
}

// room makes space behind the unread bytes, doubling towards what is wanted.
func (in *input) room() {
	if in.buf == nil {
		in.buf = getBuffer(readBuffer)
		in.start, in.end = 0, 0
		return
	}
	unread, size := in.end-in.start, len(in.buf.b)
	switch {
	case in.start+in.want <= size:
		return
	case in.want > size && unread > size/2:
		old := in.buf
		in.buf = getBuffer(min(in.want, 2*size))
		copy(in.buf.b, old.b[in.start:in.end])
		old.free()
	default:
		copy(in.buf.b, in.buf.b[in.start:in.end])
	}
	in.start, in.end = 0, unread
}

// rest gives the buffer back while there is nothing in it.
func (in *input) rest() {
	if in.start == in.end {
		in.free()
	}
}

func (in *input) free() {
	in.buf.free()
	in.buf = nil
	in.start, in.end = 0, 0
}

// close releases all when the client is gone.
func (in *input) close() {
	for _, f := range in.files {
		f.file.Close()
	}
	in.files = nil
	in.settle()
	in.free()
}
