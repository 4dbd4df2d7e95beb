package agent

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"virtvzd/runtime"
)

const (
	// maxProcesses bounds those that run, with those that have ended and were
	// not asked about: the oldest of these is forgotten for one more.
	maxProcesses = 16
	// maxOutput is kept of each stream: twice that in base64 fits an answer.
	maxOutput = 1 << 20
	// maxArguments bounds arguments and environment by number.
	maxArguments = 1024
)

// process is a program of guest-exec.
type process struct {
	out, err output
	capture  bool
	stream   *stream // or nil

	began  chan struct{} // see runtime.Command
	done   chan struct{}
	ended  syscall.WaitStatus
	failed error
}

// output keeps the first bytes of what is written and tells if there was
// more.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more bool
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	room := min(len(p), maxOutput-o.buf.Len())
	o.buf.Write(p[:room])
	o.more = o.more || room < len(p)
	return len(p), nil
}

// execArgs are those of guest-exec. capture-output is a bool, or since QEMU
// 8.0 one of "none", "stdout", "stderr", "separated" and "merged".
type execArgs struct {
	Path    string   `json:"path"`
	Args    []string `json:"arg"`
	Env     []string `json:"env"`
	Input   []byte   `json:"input-data"`
	Capture any      `json:"capture-output"`
	Stream  bool     `json:"__org.virtvzd_stream"` // see stream.go
}

func (a *Agent) exec(ctx context.Context, args execArgs) (any, error) {
	if args.Path == "" {
		return nil, errors.New("path is missing: the program to run")
	}
	if len(args.Args)+len(args.Env) > maxArguments {
		return nil, errors.New("too many arguments")
	}
	for _, word := range append(append([]string{args.Path}, args.Args...), args.Env...) {
		if strings.ContainsRune(word, 0) {
			return nil, errors.New("an argument has a NUL character")
		}
	}
	p := &process{began: make(chan struct{}), done: make(chan struct{})}
	c := runtime.Command{Args: append([]string{args.Path}, args.Args...), Env: args.Env, Stdin: bytes.NewReader(args.Input)}
	switch args.Capture {
	case nil, false, "none":
	case true, "separated":
		c.Stdout, c.Stderr = &p.out, &p.err
	case "merged":
		c.Stdout, c.Stderr = &p.out, &p.out
	case "stdout":
		c.Stdout = &p.out
	case "stderr":
		c.Stderr = &p.err
	default:
		return nil, errors.New("capture-output is none of true, false, none, stdout, stderr, separated and merged")
	}
	p.capture = c.Stdout != nil || c.Stderr != nil
	if args.Stream && (len(args.Input) > 0 || p.capture) {
		return nil, errors.New("input-data and capture-output are not for a program with " + streamMember + ", which has both as they come")
	}
	n, err := a.launch(ctx, p, c, args.Stream)
	if err != nil {
		return nil, err
	}
	patience := time.NewTimer(startPatience)
	defer patience.Stop()
	select {
	case <-p.began:
	case <-p.done:
		if p.failed != nil {
			a.mu.Lock()
			delete(a.processes, n)
			a.mu.Unlock()
			return nil, p.failed
		}
	case <-patience.C:
	case <-ctx.Done():
	}
	return map[string]int{"pid": n}, nil
}

// startPatience is how long guest-exec waits to tell of a program that cannot be
// run. After that, guest-exec-status does.
const startPatience = 10 * time.Second

func (a *Agent) launch(ctx context.Context, p *process, c runtime.Command, streams bool) (n int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.processes) >= maxProcesses {
		a.forgetEnded()
	}
	if n, err = a.handle(len(a.processes), maxProcesses, "programs of guest-exec run"); err != nil {
		return 0, err
	}
	c.Began = func() { close(p.began) }
	run, cancel := a.ctx, context.CancelFunc(func() {})
	if streams {
		run, cancel = a.streamContext(ctx)
		p.stream = newStream(run)
		c.Stdin, c.Stdout, c.Stderr = p.stream, &outlet{p.stream, "out"}, &outlet{p.stream, "err"}
	}
	a.processes[n] = p
	go func() {
		p.ended, p.failed = a.guest.Exec(run, c)
		cancel() // nobody waits for its input any more
		close(p.done)
	}()
	return n, nil
}

// forgetEnded makes room where there is something that has ended. a.mu is held.
func (a *Agent) forgetEnded() {
	for _, n := range slices.Sorted(maps.Keys(a.processes)) {
		if a.processes[n].over() {
			delete(a.processes, n)
			return
		}
	}
}

func (p *process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end tells how it has ended.
func (p *process) end() (map[string]any, error) {
	if p.failed != nil {
		return nil, p.failed
	}
	if p.ended.Signaled() {
		return map[string]any{"exited": true, "signal": int(p.ended.Signal())}, nil
	}
	return map[string]any{"exited": true, "exitcode": p.ended.ExitStatus()}, nil
}

// execStatus forgets a program that has ended once it has told so.
func (a *Agent) execStatus(_ context.Context, args struct {
	PID int `json:"pid"`
}) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.processes[args.PID]
	if p == nil {
		return nil, errors.New("PID lookup failed: it is none of guest-exec, or was asked about after its end")
	}
	if p.stream != nil {
		return nil, errors.New("it was started with " + streamMember + ": " + streamRead + " tells of it")
	}
	if !p.over() {
		return map[string]any{"exited": false}, nil
	}
	delete(a.processes, args.PID)
	answer, err := p.end()
	if err != nil {
		return nil, err
	}
	for name, o := range map[string]*output{"out": &p.out, "err": &p.err} {
		o.mu.Lock() // a daemon that the program left may still write
		if p.capture && o.buf.Len() > 0 {
			answer[name+"-data"] = bytes.Clone(o.buf.Bytes())
		}
		if o.more {
			answer[name+"-truncated"] = true
		}
		o.mu.Unlock()
	}
	return answer, nil
}
