package rpc

import (
	"errors"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// output is what waits to be sent to a client. Anybody may add to it; one
// goroutine at a time writes it out, holding no lock meanwhile. Each kind of
// packet has its own bound:
//
//	reply    the call's slot is taken until it is written, and while all
//	         slots are taken nothing more is read from the client
//	event    a client whose events exceed the limit is disconnected
//	data     the sender of the stream waits
//	end      of a stream: each stream, which took a call, has two at most
//	control  a pong too many is not sent
type output struct {
	mu      sync.Mutex
	room    sync.Cond // less waits than before, or it is closed
	queue   []packet
	waiting [kinds]int // bytes not yet written
	limit   int        // of events, in bytes
	writing bool
	closed  bool

	writer writer
}

type kind int

const (
	kindReply kind = iota
	kindEvent
	kindData
	kindEnd
	kindControl
	kinds
)

// packet is a frame and the descriptors that follow it.
type packet struct {
	kind  kind
	frame *buffer
	files []*os.File
}

const (
	// streamShare is how many bytes of streams may wait for a client.
	streamShare = 1 << 20
	// controlShare bounds what clients can cause without a call.
	controlShare = 64 << 10
)

var errSlowClient = errors.New("the client does not read what it is sent")

func (o *output) init(limit int) { o.limit, o.room.L = limit, &o.mu }

// add queues without waiting.
func (o *output) add(p packet) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	size := len(p.frame.b)
	switch {
	case o.closed:
		return net.ErrClosed
	case p.kind == kindEvent && o.waiting[kindEvent] > 0 && o.waiting[kindEvent]+size > o.limit,
		p.kind == kindControl && o.waiting[kindControl] > controlShare:
		return errSlowClient
	}
	o.push(p, size)
	return nil
}

func (o *output) push(p packet, size int) {
	o.queue = append(o.queue, p)
	o.waiting[p.kind] += size
}

// addData queues a packet of a stream when there is room, and waits for it
// unless the stream ends.
func (o *output) addData(p packet, ended func() bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.waiting[kindData] >= streamShare && !o.closed && !ended() {
		o.room.Wait()
	}
	if o.closed || ended() {
		p.frame.free()
		return net.ErrClosed
	}
	o.push(p, len(p.frame.b))
	return nil
}

// wake lets senders of streams see that their stream has ended.
func (o *output) wake() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.room.Broadcast()
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, p := range o.queue {
		closeFiles(p.files)
	}
	o.queue = nil
	o.room.Broadcast()
}

// flush writes the queue. It takes the caller's time only as long as the
// socket takes the bytes at once; the rest is written by a goroutine.
func (o *output) flush(c *Conn) {
	o.mu.Lock()
	if o.writing || o.closed || len(o.queue) == 0 {
		o.mu.Unlock()
		return
	}
	o.writing = true
	o.mu.Unlock()
	if !o.drain(c, false) {
		go o.drain(c, true)
	}
}

// drain writes until the queue is empty. Without wait it gives up early when
// the socket is full, or when a second helping is there: it was not queued
// by the caller.
func (o *output) drain(c *Conn, wait bool) (done bool) {
	w := &o.writer
	for round := 0; ; round++ {
		if len(w.batch) == 0 && !o.fetch() {
			return true
		}
		if !wait && round > 1 {
			return false
		}
		switch err := w.write(c, wait); {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			c.Close(writeReason(err))
			w.drop()
		}
	}
}

func writeReason(err error) string {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return "the client disconnected"
	}
	return err.Error()
}

// fetch gives the writer what is queued; false ends the writing.
func (o *output) fetch() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) == 0 {
		o.writing = false
		return false
	}
	o.writer.batch, o.queue = o.queue, o.writer.spare[:0]
	o.writer.spare = nil
	return true
}

// written accounts for a packet that is out.
func (o *output) written(p packet, size int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting[p.kind] -= size
	if p.kind == kindData {
		o.room.Broadcast()
	}
}

// writer is the state of the goroutine that writes.
type writer struct {
	batch  []packet
	spare  []packet // memory for the next batch
	first  int      // packets of the batch already out
	offset int      // bytes of the first one already out
	files  int      // descriptors of it already out
	frames [][]byte
	alone  [1][]byte
}

// write sends the batch, or as much of it as goes without waiting.
func (w *writer) write(c *Conn, wait bool) error {
	for w.first < len(w.batch) {
		p := &w.batch[w.first]
		if w.offset < len(p.frame.b) {
			n, err := c.link.send(w.gather(), nil, wait)
			if err != nil {
				return err
			}
			w.offset += n
		} else if w.files < len(p.files) {
			f := p.files[w.files]
			if err := c.link.sendFile(f, wait); err != nil {
				return err
			}
			f.Close()
			w.files++
		}
		w.advance(c)
	}
	if cap(w.batch) <= 64 {
		w.spare = w.batch
	}
	w.batch, w.first, w.frames = nil, 0, nil
	return nil
}

// gather lists the frames that can go out with one system call.
func (w *writer) gather() [][]byte {
	p := w.batch[w.first]
	w.alone[0] = p.frame.b[w.offset:]
	if len(p.files) > 0 || w.first+1 == len(w.batch) {
		return w.alone[:]
	}
	w.frames = append(w.frames[:0], w.alone[0])
	for _, p := range w.batch[w.first+1:] {
		if w.frames = append(w.frames, p.frame.b); len(p.files) > 0 || len(w.frames) == 64 {
			break
		}
	}
	return w.frames
}

// advance counts off what is out completely.
func (w *writer) advance(c *Conn) {
	for w.first < len(w.batch) {
		p := w.batch[w.first]
		size := len(p.frame.b)
		if w.offset < size || w.files < len(p.files) {
			return
		}
		w.offset -= size
		w.files = 0
		w.batch[w.first] = packet{}
		w.first++
		c.out.written(p, size)
		p.frame.free()
		if p.kind == kindReply {
			c.release()
		}
	}
}

// drop forgets what cannot be written any more.
func (w *writer) drop() {
	for _, p := range w.batch[w.first:] {
		closeFiles(p.files) // those already sent are closed, which does no harm
	}
	w.batch, w.first, w.offset, w.files = nil, 0, 0, 0
}
