package rpc

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"virtvzd/driver/protocol"
)

// Upstream is a connection to another daemon, on which we are the client. It
// passes frames; what they mean is its owner's business.
type Upstream struct {
	link    link
	in      input
	sending chan struct{} // holds an element while a frame is written
	done    chan struct{}
	once    sync.Once
}

// Frame is a message without its length.
type Frame struct {
	protocol.MessageHeader
	Body  []byte
	Files []*os.File
}

// Connect connects to a daemon's socket.
func Connect(ctx context.Context, path string) (*Upstream, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewUpstream(conn.(*net.UnixConn))
}

// NewUpstream makes one of a connected socket, which it then owns.
func NewUpstream(sock *net.UnixConn) (*Upstream, error) {
	u := &Upstream{sending: make(chan struct{}, 1), done: make(chan struct{})}
	u.in.link, u.in.timeout = &u.link, defaultFrameTimeout
	if err := u.link.init(sock, &u.in); err != nil {
		sock.Close()
		return nil, err
	}
	return u, nil
}

// Send writes a frame and closes its files. It waits for a daemon that does
// not read, until Close; any number of goroutines may call it. After an error
// the connection is of no use: a frame may be out in part.
func (u *Upstream) Send(f Frame) error {
	defer closeFiles(f.Files)
	buf, err := f.encode()
	if err != nil {
		return err
	}
	defer buf.free()
	select {
	case u.sending <- struct{}{}:
		defer func() { <-u.sending }()
	case <-u.done:
		return net.ErrClosed
	}
	for rest := buf.b; len(rest) > 0; {
		n, err := u.link.send([][]byte{rest}, nil, true)
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	for _, file := range f.Files {
		if err := u.link.sendFile(file, true); err != nil {
			return err
		}
	}
	return nil
}

func (f Frame) encode() (*buffer, error) {
	if len(f.Files) > MaxFiles || len(f.Body) > MaxMessage-headerSize-4 {
		return nil, fmt.Errorf("a message of %d bytes and %d descriptors is larger than the protocol allows", len(f.Body), len(f.Files))
	}
	if len(f.Files) > 0 {
		return encodeFrame(f.MessageHeader, withFiles{len(f.Files), Raw(f.Body)})
	}
	return encodeData(f.MessageHeader, f.Body), nil
}

// Receive waits for a frame, whose body is valid until the next call. The
// caller owns the files. One goroutine may receive at a time.
func (u *Upstream) Receive() (f Frame, err error) {
	frame, err := u.in.frame()
	if err != nil {
		return f, err
	}
	f.MessageHeader, f.Body = parseHeader(frame), frame[frameStart:]
	if f.Type == protocol.ReplyWithFds {
		n, body, err := fileCount(f.Body)
		if err != nil {
			return f, err
		}
		f.Body = append([]byte(nil), body...) // reading descriptors uses the buffer
		f.Files, err = u.in.take(n)
		return f, err
	}
	return f, nil
}

// Close ends the connection, and Send and Receive with it.
func (u *Upstream) Close() {
	u.once.Do(func() {
		close(u.done)
		u.link.sock.Close()
	})
}

// Release frees what was received and never taken. Only the goroutine that
// receives may call it, when it does so no more.
func (u *Upstream) Release() { u.in.close() }
