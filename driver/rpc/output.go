package rpc

import (
	"errors"
	"net"
	"os"
	"sync"
)

// output is what waits to be sent to a client. Anybody may add to it; one
// goroutine at a time writes it out, holding no lock meanwhile.
type output struct {
	mu      sync.Mutex
	room    sync.Cond // the queue became shorter, or closed
	queue   []outgoing
	size    int // bytes queued or being written
	limit   int
	writing bool
	closed  bool
	last    bool // close when the queue is written
}

// outgoing is a frame and the descriptors that follow it.
type outgoing struct {
	frame []byte
	files []*os.File
}

var errSlowClient = errors.New("the client does not read what it is sent")

func (o *output) init(limit int) { o.limit, o.room.L = limit, &o.mu }

// add queues without waiting.
func (o *output) add(out outgoing) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return net.ErrClosed
	case o.size > 0 && o.size+len(out.frame) > o.limit:
		return errSlowClient
	}
	o.queue = append(o.queue, out)
	o.size += len(out.frame)
	return nil
}

// streamShare is how much of a stream may wait in the queue: the sender of a
// stream can wait for a slow client, that of an event cannot.
const streamShare = 1 << 20

// addWaiting queues when there is room, and waits for it.
func (o *output) addWaiting(out outgoing) error {
	o.mu.Lock()
	for !o.closed && o.size > min(streamShare, o.limit/2) {
		o.room.Wait()
	}
	o.mu.Unlock()
	return o.add(out)
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, out := range o.queue {
		closeFiles(out.files)
	}
	o.queue = nil
	o.room.Broadcast()
}

func (o *output) closeWhenEmpty() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = true
}

// flushHere writes the queue on the caller's goroutine, which must be one
// that only this client makes wait: its reader.
func (o *output) flushHere(c *Conn) {
	if o.begin() {
		o.flush(c)
	}
}

// flushElsewhere writes the queue without making the caller wait.
func (o *output) flushElsewhere(c *Conn) {
	if o.begin() {
		go o.flush(c)
	}
}

// begin makes the caller the one who writes, if nobody does.
func (o *output) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.writing || o.closed || len(o.queue) == 0 {
		return false
	}
	o.writing = true
	return true
}

func (o *output) flush(c *Conn) {
	var batch []outgoing
	for {
		o.mu.Lock()
		for _, out := range batch {
			o.size -= len(out.frame)
		}
		o.room.Broadcast()
		batch, o.queue = o.queue, nil
		if len(batch) == 0 || o.closed {
			last := o.last
			o.writing = false
			o.mu.Unlock()
			if last {
				c.Close("the client closed the connection")
			}
			return
		}
		o.mu.Unlock()
		if err := writeAll(c.sock, batch); err != nil {
			c.Close(err.Error())
		}
	}
}

// writeAll writes frames, several in one system call where it can.
func writeAll(sock *net.UnixConn, batch []outgoing) error {
	var frames net.Buffers
	var err error
	for _, out := range batch {
		frames = append(frames, out.frame)
		if len(out.files) == 0 {
			continue
		}
		if err == nil {
			_, err = frames.WriteTo(sock)
			frames = nil
		}
		for _, f := range out.files {
			if err == nil {
				err = sendFile(sock, f)
			}
			f.Close()
		}
	}
	if err != nil || len(frames) == 0 {
		return err
	}
	if len(frames) == 1 {
		_, err = sock.Write(frames[0])
		return err
	}
	_, err = frames.WriteTo(sock)
	return err
}
