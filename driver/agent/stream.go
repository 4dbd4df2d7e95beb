package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// QEMU's agent takes input with guest-exec and gives output at the end, both
// whole. A program that guest-exec starts with the member streamMember has both
// as they come, by two verbs more, until it ends or its client leaves. Their
// names have the prefix that QAPI wants of what is not QEMU's.
const (
	streamMember = "__org.virtvzd_stream"
	streamWrite  = "__org.virtvzd_guest-exec-write"
	streamRead   = "__org.virtvzd_guest-exec-read"
)

const (
	// streamTurn is how long a call waits for something to happen.
	streamTurn = 10 * time.Second
	// streamChunk is what the runtime writes at most at once, see io.Copy.
	streamChunk = 32 << 10
)

// stream is the input and output of such a program. A client that does not read
// makes the program wait, as a full pipe does, and the other way round.
type stream struct {
	ctx    context.Context // of the program
	output chan chunk

	input chan []byte
	rest  []byte // of the input that was taken
	eof   chan struct{}
	close sync.Once // of eof
}

type chunk struct {
	of   string // "out" or "err"
	body []byte
}

func newStream(ctx context.Context) *stream {
	return &stream{ctx: ctx, output: make(chan chunk, maxOutput/streamChunk), input: make(chan []byte), eof: make(chan struct{})}
}

// Read is the program's input.
func (s *stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		select {
		case s.rest = <-s.input:
		case <-s.eof:
			return 0, io.EOF
		case <-s.ctx.Done():
			return 0, s.ctx.Err()
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// outlet is one of its two outputs.
type outlet struct {
	s  *stream
	of string
}

func (o *outlet) Write(p []byte) (int, error) {
	select {
	case o.s.output <- chunk{o.of, append([]byte(nil), p...)}:
		return len(p), nil
	case <-o.s.ctx.Done():
		return 0, o.s.ctx.Err()
	}
}

type clientKey struct{}

// WithClient tells a command of the client that gave it, which is there until
// gone is done.
func WithClient(ctx, gone context.Context) context.Context {
	return context.WithValue(ctx, clientKey{}, gone)
}

// streamContext ends with the environment, and with the client.
func (a *Agent) streamContext(ctx context.Context) (context.Context, context.CancelFunc) {
	program, cancel := context.WithCancel(a.ctx)
	if gone, ok := ctx.Value(clientKey{}).(context.Context); ok {
		stop := context.AfterFunc(gone, cancel)
		return program, func() { stop(); cancel() }
	}
	return program, cancel
}

func (a *Agent) streaming(pid int) (*process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.processes[pid]; p != nil && p.stream != nil {
		return p, nil
	}
	return nil, errors.New("PID lookup failed: it is none of guest-exec with " + streamMember + ", or its end has been told")
}

// execWrite gives a program input, all of it or nothing: count tells whether it
// was taken within a turn, and eof that nobody will read it. With end, this was
// the last.
func (a *Agent) execWrite(ctx context.Context, args struct {
	PID  int    `json:"pid"`
	Body []byte `json:"buf-b64"`
	End  bool   `json:"end"`
}) (any, error) {
	p, err := a.streaming(args.PID)
	if err != nil {
		return nil, err
	}
	turn := time.NewTimer(streamTurn)
	defer turn.Stop()
	answer := map[string]any{"count": 0, "eof": false}
	if len(args.Body) > 0 {
		select {
		case p.stream.input <- args.Body:
			answer["count"] = len(args.Body)
		case <-p.stream.eof:
			return nil, errors.New("its input has ended")
		case <-p.done:
			answer["eof"] = true
			return answer, nil
		case <-turn.C:
			return answer, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if args.End {
		p.stream.close.Do(func() { close(p.stream.eof) })
	}
	return answer, nil
}

// execRead gives what a program has written since, and its end as
// guest-exec-status does once there is no more.
func (a *Agent) execRead(ctx context.Context, args struct {
	PID int `json:"pid"`
}) (any, error) {
	p, err := a.streaming(args.PID)
	if err != nil {
		return nil, err
	}
	turn := time.NewTimer(streamTurn)
	defer turn.Stop()
	data := map[string][]byte{}
	size := 0
	add := func(c chunk) {
		data[c.of] = append(data[c.of], c.body...)
		size += len(c.body)
	}
	select {
	case c := <-p.stream.output:
		add(c)
	case <-p.done:
	case <-turn.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	over := p.over() // asked before looking for more: nothing comes afterwards
	for more := true; more && size < maxOutput; {
		select {
		case c := <-p.stream.output:
			add(c)
		default:
			more = false
		}
	}
	answer := map[string]any{"exited": false}
	if over && size == 0 {
		a.mu.Lock()
		a.forget(args.PID)
		a.mu.Unlock()
		if answer, err = p.end(); err != nil {
			return nil, err
		}
	}
	for of, body := range data {
		answer[of+"-data"] = body
	}
	return answer, nil
}
