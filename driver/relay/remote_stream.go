package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// ownStream is the client's side of a stream, for the daemon's own use.
type ownStream struct {
	out chan rpc.StreamPacket

	mu      sync.Mutex
	changed sync.Cond
	in      [][]byte
	size    int
	end     error // why nothing more comes
	over    chan struct{}
	once    sync.Once
}

// ownStreamBuffer is how much may wait to be read; then the connection waits.
const ownStreamBuffer = 1 << 20

func newOwnStream() *ownStream {
	s := &ownStream{out: make(chan rpc.StreamPacket), over: make(chan struct{})}
	s.changed.L = &s.mu
	return s
}

// Send takes a packet of the other daemon's.
func (s *ownStream) Send(p rpc.StreamPacket) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p.Status == protocol.StatusError:
		var e protocol.Error
		err := errors.New("the other daemon ended the stream")
		if xdr.Unmarshal(p.Body, &e) == nil && e.Message != nil {
			err = fmt.Errorf("the other daemon ended the stream: %s", *e.Message)
		}
		s.stop(err)
	case p.Status == protocol.StatusOK || len(p.Body) == 0:
		s.stop(io.EOF)
	default:
		for s.size >= ownStreamBuffer && s.end == nil {
			s.changed.Wait()
		}
		if s.end == nil {
			s.in = append(s.in, bytes.Clone(p.Body))
			s.size += len(p.Body)
			s.changed.Broadcast()
		}
	}
	return nil
}

// stop ends what is read, and with an error what is written; s.mu is held.
func (s *ownStream) stop(err error) {
	if s.end == nil {
		s.end = err
	}
	if err != io.EOF {
		s.once.Do(func() { close(s.over) })
	}
	s.changed.Broadcast()
}

// Receive gives what is to be sent to the other daemon.
func (s *ownStream) Receive() (rpc.StreamPacket, error) {
	select {
	case p := <-s.out:
		return p, nil
	case <-s.over:
		return rpc.StreamPacket{}, io.ErrClosedPipe
	}
}

// Abort is for a connection that broke.
func (s *ownStream) Abort(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop(err)
}

func (s *ownStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.in) == 0 && s.end == nil {
		s.changed.Wait()
	}
	if len(s.in) == 0 {
		return 0, s.end
	}
	n := copy(p, s.in[0])
	if s.in[0] = s.in[0][n:]; len(s.in[0]) == 0 {
		s.in = s.in[1:]
	}
	s.size -= n
	s.changed.Broadcast()
	return n, nil
}

func (s *ownStream) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+rpc.MaxStreamData)]
		if err := s.give(rpc.StreamPacket{Type: protocol.Stream, Status: protocol.StatusContinue, Body: bytes.Clone(part)}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

func (s *ownStream) give(p rpc.StreamPacket) error {
	select {
	case s.out <- p:
		return nil
	case <-s.over:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.end != nil && s.end != io.EOF {
			return s.end
		}
		return io.ErrClosedPipe
	}
}

// Close finishes the stream: the other daemon gets all that was written.
func (s *ownStream) Close() error {
	err := s.give(rpc.StreamPacket{Type: protocol.Stream, Status: protocol.StatusOK})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop(io.ErrClosedPipe)
	return err
}
