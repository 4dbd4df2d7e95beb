package runtime

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// A channel is the connection on which an environment moves to another host,
// whatever carries it: TCP, TLS or a stream of libvirt's. Messages go both ways;
// the side that has the environment also sends data, such as a pass of a mirror.
//
// A frame is a byte that says what it is, a length of four bytes, and that many
// bytes. Both sides say something every few seconds even when they have nothing
// to say: who hears nothing for a while gives the other up.
type channel struct {
	link   io.ReadWriteCloser
	limit  *rate.Limiter // of what is sent, in bytes a second
	room   atomic.Uint32 // how long a frame may be that is received
	frames chan frame    // what was received, for whoever waits for it
	pages  chan frame    // the same of framePages
	done   chan struct{}

	writing sync.Mutex
	heard   atomic.Int64 // when something came last, or was handed over; unix nanoseconds

	mu   sync.Mutex
	over error // why it has ended
}

type frame struct {
	kind byte
	body []byte
}

const (
	framePing    = 'p'
	framePages   = 'g' // of memory that follows, and what is asked of it: see postcopy.go
	frameMessage = 'm' // JSON
	frameData    = 'd'
	frameEnd     = 'e' // of data
	frameFailure = 'x' // why the other side gives up
)

const (
	maxFrame        = 1 << 20
	maxFrameData    = 256 << 10
	maxStrange      = 4 << 10 // of a frame from whoever has not said yet which migration it means
	channelPulse    = 3 * time.Second
	channelPatience = 30 * time.Second // libvirt's keepalive gives up after 5 times 5 seconds
)

// errChannelSilent ends a channel on which the other host says nothing.
var errChannelSilent = fmt.Errorf("nothing was heard from the other host for %s", channelPatience)

// PeerError is why the other host gave up, in its words.
type PeerError struct{ text string }

func (e *PeerError) Error() string { return "the other host says: " + e.text }

// newChannel is for a connection that this side has made.
func newChannel(link io.ReadWriteCloser) *channel { return openChannel(link, maxFrame) }

// answerChannel is for one that anybody may have made. Little is taken from it
// until room is made.
func answerChannel(link io.ReadWriteCloser) *channel { return openChannel(link, maxStrange) }

func openChannel(link io.ReadWriteCloser, room uint32) *channel {
	c := &channel{link: link, limit: rate.NewLimiter(rate.Inf, maxFrameData), frames: make(chan frame), pages: make(chan frame, 16), done: make(chan struct{})}
	c.room.Store(room)
	c.hear()
	go c.read()
	go c.watch()
	return c
}

func (c *channel) hear() { c.heard.Store(time.Now().UnixNano()) }

// close ends the channel; err is what everybody is told who uses it.
func (c *channel) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		return
	}
	if c.over = err; err == nil {
		c.over = io.ErrClosedPipe
	}
	close(c.done)
	c.link.Close()
}

// ended is why the channel has ended, once it has.
func (c *channel) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

// fail tells the other side why this one gives up, and ends the channel.
func (c *channel) fail(err error) {
	text := err.Error()
	last := time.AfterFunc(channelPulse, func() { c.close(err) }) // it may not listen
	defer last.Stop()
	if c.write(frameFailure, []byte(text[:min(len(text), 8<<10)])) == nil {
		// What is on its way here must be taken, or TCP drops what is on its way there.
		for {
			select {
			case <-c.frames:
				continue
			case <-c.done:
			}
			break
		}
	}
	c.close(err)
}

func (c *channel) read() {
	for {
		var head [5]byte
		_, err := io.ReadFull(c.link, head[:])
		size := binary.BigEndian.Uint32(head[1:])
		if err == nil && size > c.room.Load() {
			err = fmt.Errorf("a frame of %d bytes is longer than any can be", size)
		}
		body := []byte(nil)
		if err == nil {
			body = make([]byte, size)
			_, err = io.ReadFull(c.link, body)
		}
		if err != nil {
			c.close(fmt.Errorf("the connection with the other host has ended: %w", noEOF(err)))
			return
		}
		c.hear()
		switch head[0] {
		case framePing:
		case framePages:
			if !c.hand(c.pages, frame{head[0], body}) {
				return
			}
		case frameFailure:
			c.close(&PeerError{printable(string(body), 2000)})
			return
		default:
			if !c.hand(c.frames, frame{head[0], body}) {
				return
			}
		}
	}
}

// hand gives a frame to whoever waits for it, as long as that takes.
func (c *channel) hand(to chan<- frame, f frame) bool {
	for {
		select {
		case to <- f:
			c.hear()
			return true
		case <-c.done:
			return false
		case <-time.After(channelPulse):
			c.hear() // it is this side that is busy
		}
	}
}

func (c *channel) watch() {
	pulse := time.NewTicker(channelPulse)
	defer pulse.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-pulse.C:
		}
		if time.Since(time.Unix(0, c.heard.Load())) > channelPatience {
			c.close(errChannelSilent)
			return
		}
		go func() { // it may have to wait for the other side
			if c.writing.TryLock() { // who writes says as much as a ping
				c.writeFrame(framePing)
				c.writing.Unlock()
			}
		}()
	}
}

func (c *channel) write(kind byte, body []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.writeFrame(kind, body)
}

func (c *channel) writeFrame(kind byte, parts ...[]byte) error {
	if err := c.ended(); err != nil {
		return err
	}
	err := writeRecord(c.link, kind, parts...)
	if err == nil {
		return nil
	}
	// The other side may have said why before it closed.
	select {
	case <-c.done:
	case <-time.After(time.Second):
		c.close(fmt.Errorf("the connection with the other host has ended: %w", err))
	}
	return c.ended()
}

// send sends a message.
func (c *channel) send(message any) error {
	body, err := json.Marshal(message)
	if err == nil && len(body) > maxFrame {
		err = errors.New("a message to the other host is too long")
	}
	if err != nil {
		return err
	}
	return c.write(frameMessage, body)
}

// receive waits for the next message.
func (c *channel) receive(ctx context.Context, message any) error {
	f, err := c.next(ctx)
	if err != nil {
		return err
	}
	if f.kind != frameMessage {
		return fmt.Errorf("the other host sent a frame of the kind %q where a message was due", f.kind)
	}
	return json.Unmarshal(f.body, message)
}

func (c *channel) next(ctx context.Context) (frame, error) {
	select {
	case f := <-c.frames:
		return f, nil
	case <-c.done:
		return frame{}, c.ended()
	case <-ctx.Done():
		return frame{}, ctx.Err()
	}
}

// sendData lets do write data, which the other side gets with receiveData. sent
// is told of what went over the wire.
func (c *channel) sendData(ctx context.Context, sent func(bytes int), do func(io.Writer) error) error {
	if err := do(&dataWriter{c, ctx, sent}); err != nil {
		c.fail(err) // the other side waits for more of it
		return err
	}
	return c.write(frameEnd, nil)
}

type dataWriter struct {
	c    *channel
	ctx  context.Context
	sent func(int)
}

func (w *dataWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		part := p[n:min(len(p), n+maxFrameData)]
		if err := w.c.limit.WaitN(w.ctx, len(part)); err != nil {
			return n, err
		}
		if err := w.c.write(frameData, part); err != nil {
			return n, err
		}
		n += len(part)
		w.sent(len(part))
	}
	return n, nil
}

// receiveData lets do read what the other side sends until it says that this is
// all. What do leaves is dropped.
func (c *channel) receiveData(ctx context.Context, do func(io.Reader) error) error {
	r := &dataReader{c: c, ctx: ctx}
	if err := do(r); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r)
	return err
}

type dataReader struct {
	c    *channel
	ctx  context.Context
	rest []byte
	end  bool
}

func (r *dataReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.end {
			return 0, io.EOF
		}
		f, err := r.c.next(r.ctx)
		if err != nil {
			return 0, err
		}
		switch f.kind {
		case frameData:
			r.rest = f.body
		case frameEnd:
			r.end = true
		default:
			return 0, fmt.Errorf("the other host sent a frame of the kind %q among data", f.kind)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
