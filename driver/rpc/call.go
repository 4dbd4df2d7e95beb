package rpc

import (
	"errors"
	"os"
	"sync/atomic"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Call is one request.
type Call struct {
	Conn    *Conn
	Header  protocol.MessageHeader
	Payload []byte     // the encoded arguments; an inline handler must not keep them
	Files   []*os.File // received with the call, closed after it unless taken

	replyFiles []*os.File
	stream     *Stream
	tunnel     *Tunnel
	answered   atomic.Bool
	large      int // what it counts as in the user's budget
}

// ErrLater is a handler's way to say that the call is answered by Answer, by
// whoever has the answer then. Until that the call takes its client's slot.
var ErrLater = errors.New("the answer comes later")

// Answer sends the reply; only the first one counts. It never waits.
func (c *Call) Answer(ret xdr.Marshaler, err error) { c.Conn.reply(c, ret, err) }

// TakeFiles makes the handler the owner of the received descriptors.
func (c *Call) TakeFiles() []*os.File {
	files := c.Files
	c.Files = nil
	return files
}

// ReplyFiles sends descriptors with the reply, at most MaxFiles in all. They
// are closed in any case.
func (c *Call) ReplyFiles(files ...*os.File) { c.replyFiles = append(c.replyFiles, files...) }

// dispatch handles one frame, which is valid only for the time of the call.
// What is neither a call nor part of a stream is dropped, as libvirt does
// (virNetServerProcessMsg): nobody waits for an answer to it.
func (c *Conn) dispatch(frame []byte) error {
	h, body := parseHeader(frame), frame[frameStart:]
	switch h.Type {
	case protocol.Call:
		return c.call(h, body, nil)
	case protocol.CallWithFds:
		n, body, err := fileCount(body)
		if err != nil {
			return err
		}
		body = append([]byte(nil), body...) // reading descriptors uses the buffer
		files, err := c.in.take(n)
		if err != nil {
			return err
		}
		return c.call(h, body, files)
	case protocol.Stream, protocol.StreamHole:
		return c.streamPacket(h, body)
	case protocol.Message:
		if h.Prog == protocol.KeepaliveProgram && h.Vers == protocol.KeepaliveVersion {
			c.keepalive.message(c, h)
		}
	}
	return nil
}

// call serves a request when one of the client's slots is free; until then
// nothing more is read from it.
func (c *Conn) call(h protocol.MessageHeader, body []byte, files []*os.File) error {
	if err := c.admit(); err != nil {
		closeFiles(files)
		return err
	}
	call := &Call{Conn: c, Header: h, Payload: body, Files: files}
	handler, mode, err := c.server.lookup(h)
	switch {
	case err != nil:
		c.reply(call, nil, err)
	case mode == Inline:
		c.answer(call, handler)
	default:
		if files == nil { // otherwise it is a copy already
			call.Payload = append([]byte(nil), body...)
		}
		if call.large, err = c.server.large.take(c.peer.UID, len(body)); err != nil {
			closeFiles(files)
			return err
		}
		if mode == Apart {
			c.server.pool.apart(func() { c.answer(call, handler) })
			return nil
		}
		c.server.pool.run(mode == PoolPriority, func() { c.answer(call, handler) })
	}
	return nil
}

// admit takes a slot. A client that is leaving, or whose server shuts down,
// gets none any more.
func (c *Conn) admit() error {
	select {
	case c.slots <- struct{}{}:
	default:
		resume := c.stall()
		defer resume()
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
	if c.leaving.Load() || c.server.draining.Load() {
		c.release()
		<-c.ctx.Done()
		return c.ctx.Err()
	}
	return nil
}

// answer runs the handler and sends what it returns.
func (c *Conn) answer(call *Call, handler Handler) {
	c.running.Add(1)
	ret, err := handler(c.ctx, call)
	c.running.Add(-1)
	if err != ErrLater {
		c.reply(call, ret, err)
	}
}

func (c *Conn) reply(call *Call, ret xdr.Marshaler, err error) {
	if !call.answered.CompareAndSwap(false, true) {
		return
	}
	closeFiles(call.Files)
	c.server.large.give(c.peer.UID, call.large)
	frame, err := c.encodeReply(call, ret, err)
	if err != nil {
		closeFiles(call.replyFiles)
		call.replyFiles = nil
		if call.stream != nil {
			call.stream.drop(err)
		}
		if call.tunnel != nil {
			call.tunnel.Close()
		}
	}
	if c.out.add(packet{kindReply, frame, call.replyFiles}) != nil {
		closeFiles(call.replyFiles)
		c.release() // the client is gone
	}
	if call.stream != nil {
		close(call.stream.started)
	}
	c.out.flush(c)
}

// encodeReply makes the reply's frame; with an error it is that of the error.
func (c *Conn) encodeReply(call *Call, ret xdr.Marshaler, err error) (*buffer, error) {
	h := call.Header
	h.Type, h.Status = protocol.Reply, protocol.StatusOK
	if err == nil && call.stream != nil && call.stream.refused {
		err = errTooManyStreams()
	}
	if n := len(call.replyFiles); err == nil && n > 0 {
		if n > MaxFiles {
			err = Errorf("the reply has %d descriptors, a message may carry %d", n, MaxFiles)
		}
		h.Type, ret = protocol.ReplyWithFds, withFiles{n, ret}
	}
	if err == nil {
		frame, encodeErr := encodeFrame(h, ret)
		if encodeErr == nil {
			return frame, nil
		}
		err = Errorf("Unable to encode message payload: %s", encodeErr)
	}
	h.Type, h.Status = protocol.Reply, protocol.StatusError
	frame, encodeErr := encodeFrame(h, c.server.wireError(err))
	if encodeErr != nil { // the text is too long for the wire
		frame, _ = encodeFrame(h, c.server.wireError(errors.New("the error cannot be told: "+encodeErr.Error())))
	}
	return frame, err
}
