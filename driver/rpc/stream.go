package rpc

import (
	"errors"
	"io"
	"sync"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Stream carries bytes in both directions beside the calls. The server's
// side reads and writes it like a pipe and ends it with Finish or Abort, which
// must not be called, nor Write, before the call's handler has returned: no
// data may pass the reply.
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
//
// Both directions hold the sender back. What the server writes waits in the
// client's queue up to a bound shared by all its streams. What the client
// sends waits until it is read; when much of it waits, nothing more is read
// from that client, not even its calls (so it is in libvirt's server too).
type Stream struct {
	conn    *Conn
	header  protocol.MessageHeader
	started chan struct{} // closed when the call's reply is queued
	done    chan struct{} // closed when it is over
	refused bool          // the client has too many

	mu       sync.Mutex
	changed  sync.Cond
	in       [][]byte
	inSize   int
	eof      bool  // the client sends no more
	finished bool  // the client said OK
	sentEOF  bool  // we send no more
	err      error // why the stream ended early
	over     bool  // nothing more passes in either direction
}

type streamKey struct {
	program   uint32
	procedure int32
	serial    uint32
}

// streamBuffer is how much of a client's data may wait to be read; then
// nothing more is read from the client.
const streamBuffer = 256 << 10

// maxStreams bounds the open streams of one client.
const maxStreams = 256

// OpenStream makes the stream of this call; at most one for each. A client
// that has too many gets an error for its call, and this stream ends at once.
func (c *Call) OpenStream() *Stream {
	h := c.Header
	h.Type, h.Status = protocol.Stream, protocol.StatusContinue
	s := &Stream{conn: c.Conn, header: h, started: make(chan struct{}), done: make(chan struct{})}
	s.changed.L = &s.mu
	c.stream = s
	conn := c.Conn
	conn.mu.Lock()
	defer conn.mu.Unlock()
	s.refused = !conn.mayStream(s.key())
	if s.refused || conn.ctx.Err() != nil {
		s.err, s.over = io.ErrClosedPipe, true
		close(s.done)
		return s
	}
	conn.streams[s.key()] = s
	return s
}

// endpoint is the server's side of a stream: a Stream or a Tunnel.
type endpoint interface {
	packet(h protocol.MessageHeader, data []byte) error // from the client; data is valid only now
	stop(err error)                                     // the client is gone
}

// mayStream tells whether the client has room for a stream of this key; c.mu
// is held.
func (c *Conn) mayStream(key streamKey) bool {
	if c.streams == nil {
		c.streams = map[streamKey]endpoint{}
	}
	_, taken := c.streams[key]
	return !taken && len(c.streams) < maxStreams
}

func errTooManyStreams() error {
	return Errorf("the client has %d streams open: finish some before opening more", maxStreams)
}

func (s *Stream) key() streamKey { return keyOf(s.header) }

func keyOf(h protocol.MessageHeader) streamKey { return streamKey{h.Prog, h.Proc, h.Serial} }

// Done is closed when nothing more passes in either direction.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Read gives the client's data, then io.EOF.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
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

// Write sends data, waiting for a client that reads slowly. It ends when the
// stream or the client does.
func (s *Stream) Write(p []byte) (n int, err error) {
	select {
	case <-s.started:
	case <-s.conn.Done():
		return 0, io.ErrClosedPipe
	}
	ended := func() bool { return s.writable() != nil }
	for len(p) > 0 {
		chunk := p[:min(len(p), MaxStreamData)]
		if err := s.writable(); err != nil {
			return n, err
		}
		if s.conn.out.addData(packet{kind: kindData, frame: encodeData(s.header, chunk)}, ended) != nil {
			if err := s.writable(); err != nil {
				return n, err
			}
			return n, io.ErrClosedPipe
		}
		s.conn.out.flush(s.conn)
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
// client sent was used. What it sends from here on is dropped.
func (s *Stream) Finish() {
	s.awaitStart()
	s.mu.Lock()
	if s.over || s.sentEOF {
		s.mu.Unlock()
		return
	}
	s.sentEOF, s.eof = true, true
	s.in, s.inSize = nil, 0
	finished := s.finished
	s.changed.Broadcast()
	s.mu.Unlock()
	if finished {
		s.end(protocol.StatusOK, nil)
		return
	}
	s.send(protocol.StatusContinue, nil)
}

// Abort ends the stream with an error for the client.
func (s *Stream) Abort(err error) {
	s.awaitStart()
	s.stop(err)
	s.end(protocol.StatusError, s.conn.server.wireError(err))
}

func (s *Stream) awaitStart() {
	select {
	case <-s.started:
	case <-s.conn.Done():
	}
}

// end sends the last packet and forgets the stream.
func (s *Stream) end(status protocol.MessageStatus, body xdr.Marshaler) {
	if s.forget() {
		s.send(status, body)
	}
}

// forget makes the stream's further packets late ones. Only the first time
// is true.
func (s *Stream) forget() bool {
	s.mu.Lock()
	was := s.over
	s.over = true
	s.mu.Unlock()
	if was {
		return false
	}
	s.conn.mu.Lock()
	delete(s.conn.streams, s.key())
	s.conn.mu.Unlock()
	close(s.done)
	s.conn.out.wake()
	return true
}

// send queues a packet that says something about the stream.
func (s *Stream) send(status protocol.MessageStatus, body xdr.Marshaler) {
	h := s.header
	h.Status = status
	frame, err := encodeFrame(h, body)
	if err == nil && s.conn.out.add(packet{kind: kindEnd, frame: frame}) == nil {
		s.conn.out.flush(s.conn)
	}
}

// stop makes readers and writers of the stream end with err.
func (s *Stream) stop(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.in, s.inSize = nil, 0
	s.changed.Broadcast()
	s.mu.Unlock()
	s.conn.out.wake()
	if s.conn.ctx.Err() != nil {
		s.forget()
	}
}

// drop forgets the stream of a call that failed.
func (s *Stream) drop(err error) {
	s.stop(err)
	s.forget()
}

var errAborted = errors.New("the client aborted the stream")

// streamPacket handles what a client sends on a stream. Packets of a stream
// that is over are late and mean nothing (virNetServerProgramDispatch).
func (c *Conn) streamPacket(h protocol.MessageHeader, data []byte) error {
	c.mu.Lock()
	s := c.streams[keyOf(h)]
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.packet(h, data)
}

func (s *Stream) packet(h protocol.MessageHeader, data []byte) error {
	switch {
	case h.Type == protocol.StreamHole:
		return errors.New("Unexpected stream hole") // no stream of ours is sparse; libvirt closes as well
	case h.Status == protocol.StatusContinue:
		s.received(data)
	case h.Status == protocol.StatusOK:
		s.clientFinished()
	case h.Status == protocol.StatusError:
		s.stop(errAborted)
		s.end(protocol.StatusOK, nil)
	default:
		err := Errorf("stream aborted with unexpected status %d", h.Status)
		s.stop(err)
		s.end(protocol.StatusError, s.conn.server.wireError(err))
	}
	return nil
}

// received queues data; when too much waits the client is not read further.
func (s *Stream) received(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(data) == 0 {
		s.eof = true
		s.changed.Broadcast()
		return
	}
	if s.full() {
		resume := s.conn.stall()
		for s.full() {
			s.changed.Wait()
		}
		resume()
	}
	if s.err == nil && !s.eof {
		s.in = append(s.in, append([]byte(nil), data...))
		s.inSize += len(data)
		s.changed.Broadcast()
	}
}

func (s *Stream) full() bool {
	return s.inSize >= streamBuffer && s.err == nil && s.conn.ctx.Err() == nil
}

func (s *Stream) clientFinished() {
	s.mu.Lock()
	s.eof, s.finished = true, true
	both := s.sentEOF && !s.over
	s.changed.Broadcast()
	s.mu.Unlock()
	s.conn.out.wake()
	if both {
		s.end(protocol.StatusOK, nil)
	}
}
