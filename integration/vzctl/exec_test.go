package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	qga "virtvzd/driver/agent"
	"virtvzd/runtime"
)

// local is an environment whose programs are this host's.
type local struct{ qga.Guest }

func (local) Exec(ctx context.Context, c runtime.Command) (syscall.WaitStatus, error) {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.WaitDelay = time.Second
	if cmd.Start() != nil {
		return 0, runtime.ErrNotExecuted
	}
	c.Began()
	cmd.Wait()
	return cmd.ProcessState.Sys().(syscall.WaitStatus), ctx.Err()
}

func (local) Kept() []runtime.Kept { return nil }

func (local) FrozenFilesystems(context.Context) ([]string, error) { return nil, nil }

// asker answers by the daemon's agent.
func asker(t *testing.T) func(string, any, any) error {
	a := qga.New(local{}, nil)
	t.Cleanup(a.Close)
	return func(command string, arguments, answer any) error {
		request, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
		if err != nil {
			return err
		}
		text, err := a.Do(t.Context(), string(request))
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(text), &struct{ Return any }{answer})
	}
}

func shellProgram(script string) program {
	return program{Path: "/bin/sh", Arg: []string{"-c", script}}
}

// TestRelay: input, both outputs and the end go through, whatever their length.
func TestRelay(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 5<<16) // 5 MiB
	for script, c := range map[string]struct {
		in, out, errs string
		code, signal  int
	}{
		"cat":                                  {in: long, out: long},
		"cat >&2; exit 7":                      {in: long, errs: long, code: 7},
		"wc -c":                                {out: "0\n"},
		"echo does not read":                   {in: long, out: "does not read\n"},
		"exec <&-; echo a; kill -9 $$":         {in: long, out: "a\n", signal: 9},
		"read a; echo $a; read b; echo $b >&2": {in: "x\ny\nz\n", out: "x\n", errs: "y\n"},
	} {
		var in io.Reader
		if c.in != "" {
			in = strings.NewReader(c.in)
		}
		var out, errs bytes.Buffer
		e, err := relay(asker(t), shellProgram(script), in, &out, &errs)
		if err != nil || e.ExitCode != c.code || e.Signal != c.signal || out.String() != c.out || errs.String() != c.errs {
			t.Errorf("%s: %v, %+v, %d and %d bytes: %.20q %.20q", script, err, e, out.Len(), errs.Len(), out.String(), errs.String())
		}
	}
}

// TestRelayTalks: what is written comes before the input ends.
func TestRelayTalks(t *testing.T) {
	ours, input := io.Pipe()
	output, theirs := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := relay(asker(t), shellProgram("while read n; do echo $((n+1)); done"), ours, theirs, io.Discard)
		done <- err
	}()
	buf := make([]byte, 8)
	for _, c := range [][2]string{{"1\n", "2\n"}, {"41\n", "42\n"}} {
		io.WriteString(input, c[0])
		if n, err := output.Read(buf); err != nil || string(buf[:n]) != c[1] {
			t.Errorf("to %q: %q, %v", c[0], buf[:n], err)
		}
	}
	input.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRelayFails with what is wrong, and does not wait for the program then.
func TestRelayFails(t *testing.T) {
	broken := errors.New("broken")
	if _, err := relay(asker(t), shellProgram("while :; do echo; sleep .1; done"), iotest.ErrReader(broken), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("input: %v", err)
	}
	_, full := io.Pipe()
	full.CloseWithError(broken)
	if _, err := relay(asker(t), shellProgram("yes"), nil, full, io.Discard); err == nil {
		t.Error("an output that is closed is written to")
	}
	if _, err := relay(asker(t), program{Path: "/no/such/program"}, nil, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "cannot be run") {
		t.Errorf("a program that is not there: %v", err)
	}
}

// TestRelayEndsAsking: what is asked while the program ends has its answer before
// the connection may be closed, and nothing is asked after that.
func TestRelayEndsAsking(t *testing.T) {
	feeding, answer := make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	in, more := io.Pipe()
	defer more.Close()
	result := make(chan error)
	go func() {
		_, err := relay(func(command string, arguments, into any) error {
			if ended.Load() {
				t.Errorf("%s was asked after the end", command)
			}
			switch command {
			case "__org.virtvzd_guest-exec-write":
				close(feeding)
				<-answer
				return json.Unmarshal([]byte(`{"count":1}`), into)
			case "__org.virtvzd_guest-exec-read":
				<-feeding
				return json.Unmarshal([]byte(`{"exited":true}`), into)
			}
			return nil
		}, program{}, in, io.Discard, io.Discard)
		result <- err
	}()
	more.Write([]byte("x"))
	select {
	case err := <-result:
		t.Fatalf("it has ended while something was asked: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	close(answer)
	if err := <-result; err != nil {
		t.Error(err)
	}
	ended.Store(true)
	more.Write([]byte("y"))
}
