package rpc

import (
	"errors"
	"io"
	"sync"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Stream carries bytes in both directions beside the calls. The server's
// side reads and writes it like a pipe and ends it with Finish or Abort.
//
//	client                          server
//	  call ------------------------->  OpenStream
//	  <------------------------- reply  data may flow from here on
//	  CONTINUE data <-------> CONTINUE data
//	  <----------- CONTINUE, no data  Finish: end of the server's data
//	  OK --------------------------->  Read gives io.EOF
//	  <---------------------------- OK  when both sides have finished
//
// An ERROR from either side ends it at once; the client's is answered by OK.
type Stream struct {
	conn    *Conn
	header  protocol.MessageHeader
	started chan struct{} // closed when the call's reply is queued

	mu       sync.Mutex
	changed  sync.Cond
	in       [][]byte
	inSize   int
	eof      bool  // the client sends no more
	finished bool  // the client said OK
	sentEOF  bool  // we send no more
	err      error // why the stream ended early
	over     bool
}

type streamKey struct {
	procedure int32
	serial    uint32
}

// streamBuffer is how much of a client's data may wait to be read; then
// nothing more is read from the client.
const streamBuffer = 256 << 10

// maxStreams bounds the open streams of one client.
const maxStreams = 256

// OpenStream makes the stream of this call.
func (c *Call) OpenStream() *Stream {
	h := c.Header
	h.Type, h.Status = protocol.Stream, protocol.StatusContinue
	s := &Stream{conn: c.Conn, header: h, started: make(chan struct{})}
	s.changed.L = &s.mu
	c.stream = s
	conn := c.Conn
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.streams == nil {
		conn.streams = map[streamKey]*Stream{}
	}
	if conn.ctx.Err() != nil || len(conn.streams) >= maxStreams {
		s.err, s.over = io.ErrClosedPipe, true
		return s
	}
	conn.streams[s.key()] = s
	return s
}

func (s *Stream) key() streamKey { return streamKey{s.header.Proc, s.header.Serial} }

// Read gives the client's data, then io.EOF.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.in) == 0 && !s.eof && s.err == nil {
		s.changed.Wait()
	}
	if len(s.in) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(p, s.in[0])
	if s.in[0] = s.in[0][n:]; len(s.in[0]) == 0 {
		s.in = s.in[1:]
	}
	s.inSize -= n
	s.changed.Broadcast()
	return n, nil
}

// Write sends data, waiting for a client that reads slowly.
func (s *Stream) Write(p []byte) (n int, err error) {
	select {
	case <-s.started:
	case <-s.conn.Done():
		return 0, io.ErrClosedPipe
	}
	for len(p) > 0 {
		if err := s.writable(); err != nil {
			return n, err
		}
		chunk := p[:min(len(p), MaxStreamData)]
		if err := s.conn.out.addWaiting(outgoing{frame: encodeData(s.header, chunk)}); err != nil {
			return n, err
		}
		s.conn.out.flushElsewhere(s.conn)
		n += len(chunk)
		p = p[len(chunk):]
	}
	return n, nil
}

func (s *Stream) writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.over || s.finished || s.sentEOF {
		return io.ErrClosedPipe
	}
	return nil
}

// Finish ends the server's side: no more data comes, and all that the
// client sent was used.
func (s *Stream) Finish() {
	<-s.started
	s.mu.Lock()
	if s.over || s.sentEOF {
		s.mu.Unlock()
		return
	}
	s.sentEOF = true
	finished := s.finished
	s.mu.Unlock()
	if finished {
		s.end(protocol.StatusOK, nil)
		return
	}
	s.send(protocol.StatusContinue, nil)
}

// Abort ends the stream with an error for the client.
func (s *Stream) Abort(err error) {
	<-s.started
	s.abortLocal(err)
	s.end(protocol.StatusError, s.conn.server.wireError(err))
}

// end sends the last packet and forgets the stream.
func (s *Stream) end(status protocol.MessageStatus, body xdr.Marshaler) {
	s.mu.Lock()
	was := s.over
	s.over = true
	s.mu.Unlock()
	if was {
		return
	}
	s.conn.mu.Lock()
	delete(s.conn.streams, s.key())
	s.conn.mu.Unlock()
	s.send(status, body)
}

func (s *Stream) send(status protocol.MessageStatus, body xdr.Marshaler) {
	h := s.header
	h.Status = status
	if frame, err := encodeFrame(h, body); err == nil && s.conn.out.add(outgoing{frame: frame}) == nil {
		s.conn.out.flushElsewhere(s.conn)
	}
}

// abortLocal makes readers and writers of the stream stop.
func (s *Stream) abortLocal(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.in, s.inSize = nil, 0
	s.changed.Broadcast()
}

// drop forgets the stream of a call that failed.
func (s *Stream) drop(err error) {
	s.abortLocal(err)
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	delete(s.conn.streams, s.key())
}

var errAborted = errors.New("the client aborted the stream")

// streamPacket handles what a client sends on a stream. Packets of a stream
// that is over are late and mean nothing.
func (c *Conn) streamPacket(h protocol.MessageHeader, data []byte) error {
	c.mu.Lock()
	s := c.streams[streamKey{h.Proc, h.Serial}]
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	switch h.Status {
	case protocol.StatusContinue:
		return s.received(data)
	case protocol.StatusOK:
		s.clientFinished()
	case protocol.StatusError:
		s.abortLocal(errAborted)
		s.end(protocol.StatusOK, nil)
	default:
		return Errorf("unknown status %d of a stream packet", h.Status)
	}
	return nil
}

// received queues data; when too much waits the client is not read further.
func (s *Stream) received(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(data) == 0 {
		s.eof = true
		s.changed.Broadcast()
		return nil
	}
	if s.inSize > streamBuffer {
		s.conn.keepalive.pause()
		for s.inSize > streamBuffer && s.err == nil && s.conn.ctx.Err() == nil {
			s.changed.Wait()
		}
		s.conn.keepalive.resume()
	}
	if s.err == nil && !s.eof {
		s.in = append(s.in, append([]byte(nil), data...))
		s.inSize += len(data)
		s.changed.Broadcast()
	}
	return nil
}

func (s *Stream) clientFinished() {
	s.mu.Lock()
	s.eof, s.finished = true, true
	both := s.sentEOF && !s.over
	s.changed.Broadcast()
	s.mu.Unlock()
	if both {
		s.end(protocol.StatusOK, nil)
	}
}
