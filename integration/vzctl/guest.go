package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
)

// guest is an environment of vzctl fleet. What it answers may be anything.
type guest struct {
	name string // unique in this run
	uri  string
	row  *row
	host *host
	conn *libvirt.Connect // the host's that dom and ask are of
	dom  *libvirt.Domain
	ask  func(command string, arguments, answer any) error
}

// grace is how long a call may take that was on its way when the time ended,
// and how long what is ended inside has for that.
const grace = 10 * time.Second

// call asks the agent. One that does not answer is left behind once the time
// is over: a host may be gone.
func (g *guest) call(ctx context.Context, command string, arguments, answer any) error {
	done, ask := make(chan error, 1), g.ask
	go func() { done <- ask(command, arguments, answer) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(grace):
		return ctx.Err()
	}
}

// stopped is the error of a program whose time was over.
type stopped struct {
	cause error
	still bool // it could not be ended
}

func (s *stopped) Error() string { return s.cause.Error() }
func (s *stopped) Unwrap() error { return s.cause }

// mark is the variable by which all that a command has started is found again.
const mark = "VZCTL_FLEET="

var basicEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}

// shell runs a script with arguments as root inside. When the time is over it
// is killed with all it has started, and what it printed until then is given.
func (g *guest) shell(ctx context.Context, script string, args, env []string, input []byte) (*ended, error) {
	token := mark + rand.Text()
	p := program{Path: "/bin/sh", Arg: append([]string{"-c", script, "sh"}, args...), Input: input, Capture: true}
	p.Env = append(append(append(p.Env, basicEnv...), env...), token)
	var started struct{ Pid int }
	if err := g.call(ctx, "guest-exec", p, &started); err != nil {
		return nil, err
	}
	e, err := g.wait(ctx, started.Pid)
	if ctx.Err() == nil || err == nil {
		return e, err
	}
	e, still := g.kill(started.Pid, token)
	return e, &stopped{ctx.Err(), still}
}

// errEndUnknown is how a program ended while no daemon was its parent.
var errEndUnknown = errors.New("the daemon was restarted meanwhile: how it ended is not known")

// wait asks until the program has ended, also the daemon that comes after the one
// that started it. With errEndUnknown there is what it printed.
func (g *guest) wait(ctx context.Context, pid int) (*ended, error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		answer := &struct {
			ended
			ExitCode *int
		}{}
		err := g.call(ctx, "guest-exec-status", map[string]int{"pid": pid}, answer)
		if err != nil && ctx.Err() == nil && g.reconnect(ctx) {
			continue
		}
		if err != nil {
			return nil, err // a call that was left behind may still write to the answer
		}
		e := &answer.ended
		switch {
		case !e.Exited:
		case answer.ExitCode != nil:
			e.ExitCode = *answer.ExitCode
			return e, nil
		case e.Signal != 0:
			return e, nil
		default:
			e.Unknown = true
			return e, errEndUnknown
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// killScript asks all that have the mark to end, and kills them where they do
// not, again and again, for they may fork: a package manager that is asked
// leaves less to repair than one that is killed.
const killScript = `n=0
while [ $n -lt 9 ]; do
	found=$(grep -ls "$1" /proc/[0-9]*/environ)
	[ "$found" ] || exit 0
	how=KILL
	[ $n -ge 4 ] || how=TERM
	for e in $found; do
		p=${e#/proc/}
		kill -$how "${p%/environ}" 2>/dev/null
	done
	n=$((n+1))
	sleep 1
done
exit 1`

// kill ends a program, and tells what it had printed and whether it still runs.
func (g *guest) kill(pid int, token string) (e *ended, still bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*grace)
	defer cancel()
	var killer struct{ Pid int }
	p := program{Path: "/bin/sh", Arg: []string{"-c", killScript, "sh", token}, Env: basicEnv, Capture: true}
	if err := g.call(ctx, "guest-exec", p, &killer); err != nil {
		return nil, true
	}
	k, err := g.wait(ctx, killer.Pid)
	still = err != nil || !k.ok()
	short, done := context.WithTimeout(context.Background(), grace)
	defer done()
	e, err = g.wait(short, pid)
	return e, still || err != nil
}

// ok: it has ended, and well.
func (e *ended) ok() bool { return e.Exited && e.ExitCode == 0 && e.Signal == 0 && !e.Unknown }

func (e *ended) lines() (lines []string) {
	for line := range bytes.Lines(e.Out) {
		if text := strings.TrimSpace(string(line)); text != "" {
			lines = append(lines, text)
		}
	}
	return lines
}
