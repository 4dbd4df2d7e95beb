package rpc

import (
	"bytes"
	"io"
	"sync"

	"virtvzd/driver/protocol"
)

// Tunnel is a stream whose packets another daemon answers: they pass as they
// are, data, holes, ends and errors alike.
//
//	client                    tunnel                  other daemon
//	  call ------------------> OpenTunnel ------------> call
//	  <-------- Call.Answer <--------------------------- reply
//	  packets ---------------> Receive ---------------->
//	  <------------------ Send <------------------------ packets
//	  <------------------ Send: OK or ERROR ends it <---
//
// Both directions hold the sender back, as in a Stream.
type Tunnel struct {
	conn   *Conn
	header protocol.MessageHeader

	mu      sync.Mutex
	changed sync.Cond
	in      []StreamPacket
	inSize  int // bytes, with what the packets themselves take
	over    bool
}

// StreamPacket is one packet of a stream.
type StreamPacket struct {
	Type   protocol.MessageType // Stream or StreamHole
	Status protocol.MessageStatus
	Body   []byte
}

// packetCost is what a waiting packet counts beside its body, so that a
// client cannot queue empty ones without end.
const packetCost = 64

// OpenTunnel makes the stream of this call a tunnel. It takes what the client
// sends from here on; the client itself begins when it has the reply. A call
// that is answered with an error closes its tunnel.
func (c *Call) OpenTunnel() (*Tunnel, error) {
	t := &Tunnel{conn: c.Conn, header: c.Header}
	t.changed.L = &t.mu
	conn := c.Conn
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if conn.ctx.Err() != nil {
		return nil, io.ErrClosedPipe
	}
	if !conn.mayStream(keyOf(t.header)) {
		return nil, errTooManyStreams()
	}
	conn.streams[keyOf(t.header)] = t
	c.tunnel = t
	return t, nil
}

// Tunnel is what OpenTunnel made, nil before.
func (c *Call) Tunnel() *Tunnel { return c.tunnel }

// Receive waits for the client's next packet. It fails once the tunnel is
// closed; what the client sent until then and nobody received is dropped.
func (t *Tunnel) Receive() (StreamPacket, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.in) == 0 && !t.over {
		t.changed.Wait()
	}
	if t.over {
		return StreamPacket{}, io.ErrClosedPipe
	}
	p := t.in[0]
	t.in = t.in[1:]
	t.inSize -= len(p.Body) + packetCost
	t.changed.Broadcast()
	return p, nil
}

// Send passes a packet to the client, waiting for one that reads slowly. OK
// and ERROR are the last packet and close the tunnel.
func (t *Tunnel) Send(p StreamPacket) error {
	h := t.header
	h.Type, h.Status = p.Type, p.Status
	if p.Status != protocol.StatusContinue {
		return t.last(encodeData(h, p.Body))
	}
	if err := t.conn.out.addData(packet{kind: kindData, frame: encodeData(h, p.Body)}, t.ended); err != nil {
		return err
	}
	t.conn.out.flush(t.conn)
	return nil
}

// Abort ends the tunnel with an error for the client. It never waits.
func (t *Tunnel) Abort(err error) {
	h := t.header
	h.Type, h.Status = protocol.Stream, protocol.StatusError
	if frame, err := encodeFrame(h, t.conn.server.wireError(err)); err == nil {
		t.last(frame)
	}
}

func (t *Tunnel) last(frame *buffer) error {
	if !t.close() {
		frame.free()
		return io.ErrClosedPipe
	}
	err := t.conn.out.add(packet{kind: kindEnd, frame: frame})
	t.conn.out.flush(t.conn)
	return err
}

// Close forgets the tunnel without a word to the client, whose further
// packets are late ones.
func (t *Tunnel) Close() { t.close() }

// close is true the first time.
func (t *Tunnel) close() bool {
	t.mu.Lock()
	was := t.over
	t.over, t.in, t.inSize = true, nil, 0
	t.changed.Broadcast()
	t.mu.Unlock()
	if was {
		return false
	}
	t.conn.mu.Lock()
	delete(t.conn.streams, keyOf(t.header))
	t.conn.mu.Unlock()
	t.conn.out.wake()
	return true
}

func (t *Tunnel) ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

func (t *Tunnel) stop(error) { t.close() }

// packet queues what the client sent; when too much waits, the client is not
// read further.
func (t *Tunnel) packet(h protocol.MessageHeader, data []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.full() {
		resume := t.conn.stall()
		for t.full() {
			t.changed.Wait()
		}
		resume()
	}
	if !t.over {
		t.in = append(t.in, StreamPacket{h.Type, h.Status, bytes.Clone(data)})
		t.inSize += len(data) + packetCost
		t.changed.Broadcast()
	}
	return nil
}

func (t *Tunnel) full() bool { return t.inSize >= streamBuffer && !t.over }
