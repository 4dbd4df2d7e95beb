package agent

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
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

// process is a program of guest-exec. Without a stream it outlives the daemon, as
// it does where an agent inside is its parent.
type process struct {
	stream *stream // or nil

	began  chan struct{} // see runtime.Command
	done   chan struct{}
	ended  syscall.WaitStatus
	failed error
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
	p := &process{began: make(chan struct{})}
	c := runtime.Command{Args: append([]string{args.Path}, args.Args...), Env: args.Env}
	if len(args.Input) > 0 {
		c.Stdin = bytes.NewReader(args.Input)
	}
	k := runtime.Kept{Limit: maxOutput}
	switch args.Capture {
	case nil, false, "none":
	case true, "separated":
		k.Out, k.Err = true, true
	case "merged":
		k.Out, k.Merged = true, true
	case "stdout":
		k.Out = true
	case "stderr":
		k.Err = true
	default:
		return nil, errors.New("capture-output is none of true, false, none, stdout, stderr, separated and merged")
	}
	if args.Stream && (len(args.Input) > 0 || k.Out || k.Err) {
		return nil, errors.New("input-data and capture-output are not for a program with " + streamMember + ", which has both as they come")
	}
	n, err := a.launch(ctx, p, c, k, args.Stream)
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
			a.forget(n)
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

func (a *Agent) launch(ctx context.Context, p *process, c runtime.Command, k runtime.Kept, streams bool) (n int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.processes) >= maxProcesses {
		a.forgetEnded()
	}
	if n, err = a.handle(len(a.processes), maxProcesses, "programs of guest-exec run"); err != nil {
		return 0, err
	}
	c.Began = func() { close(p.began) }
	if !streams {
		k.Number = n
		a.run(n, p, func() (syscall.WaitStatus, error) { return a.guest.ExecKept(a.ctx, c, k) })
		return n, nil
	}
	run, cancel := a.streamContext(ctx)
	p.stream = newStream(run)
	c.Stdin, c.Stdout, c.Stderr = p.stream, &outlet{p.stream, "out"}, &outlet{p.stream, "err"}
	a.run(n, p, func() (syscall.WaitStatus, error) {
		defer cancel() // nobody waits for its input any more
		return a.guest.Exec(run, c)
	})
	return n, nil
}

// run has a program run until it ends. a.mu is held, or nobody else has the agent.
func (a *Agent) run(n int, p *process, program func() (syscall.WaitStatus, error)) {
	p.done = make(chan struct{})
	a.processes[n] = p
	go func() {
		p.ended, p.failed = program()
		close(p.done)
	}()
}

// forgetEnded makes room where there is something that has ended. a.mu is held.
func (a *Agent) forgetEnded() {
	for _, n := range slices.Sorted(maps.Keys(a.processes)) {
		if a.processes[n].over() {
			a.forget(n)
			return
		}
	}
}

// forget is for one that has ended. a.mu is held.
func (a *Agent) forget(n int) {
	if p := a.processes[n]; p != nil && p.stream == nil {
		a.guest.ForgetKept(n) // what is left goes with the environment
	}
	delete(a.processes, n)
}

func (p *process) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end tells how it has ended. Where that is not known, it has neither exit status
// nor signal, as the schema allows.
func (p *process) end() (map[string]any, error) {
	if errors.Is(p.failed, runtime.ErrEndUnknown) {
		return map[string]any{"exited": true}, nil
	}
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
	defer a.forget(args.PID)
	answer, err := p.end()
	if err != nil {
		return nil, err
	}
	for output, name := range map[int]string{1: "out", 2: "err"} {
		body, more, err := a.guest.KeptOutput(args.PID, output)
		if err != nil {
			return nil, err
		}
		if len(body) > 0 {
			answer[name+"-data"] = body
		}
		if more {
			answer[name+"-truncated"] = true
		}
	}
	return answer, nil
}

// output is where a program of ours writes: the first bytes are kept.
type output struct{ buf bytes.Buffer }

func (o *output) Write(p []byte) (int, error) {
	o.buf.Write(p[:min(len(p), maxOutput-o.buf.Len())])
	return len(p), nil
}
