package agent

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"virtvzd/runtime"
)

func TestExec(t *testing.T) {
	gate := make(chan bool)
	a := newAgent(t, &guest{program: func(ctx context.Context, c runtime.Command) (syscall.WaitStatus, error) {
		switch c.Args[0] {
		case "missing":
			return 0, fmt.Errorf("missing: %w", runtime.ErrNotExecuted)
		case "killed":
			return 9, nil
		case "as if killed":
			return (128 + 9) << 8, nil
		case "endless":
			<-ctx.Done()
			return 0, ctx.Err()
		}
		<-gate
		body, _ := io.ReadAll(c.Stdin)
		fmt.Fprintf(c.Stdout, "%s %s %s", c.Args[1:], c.Env, body)
		io.WriteString(c.Stderr, strings.Repeat("e", maxOutput+1))
		return 3 << 8, nil
	}})
	pid := do(t, a, `{"execute":"guest-exec","arguments":{"path":"tool","arg":["a","b"],"env":["X=y"],"input-data":"aGVsbG8=","capture-output":true}}`)["pid"]
	status := fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%v}}`, pid)
	if got := do(t, a, status); got["exited"] != false {
		t.Errorf("while it runs: %v", got)
	}
	close(gate)
	got := ended(t, a, status)
	out, _ := base64.StdEncoding.DecodeString(got["out-data"].(string))
	if string(out) != "[a b] [X=y] hello" || got["exitcode"] != 3.0 || got["err-truncated"] != true || len(got["err-data"].(string)) < maxOutput {
		t.Errorf("%q, status %v, truncated %v", out, got["exitcode"], got["err-truncated"])
	}
	if _, err := a.Do(t.Context(), status); err == nil || !strings.Contains(err.Error(), "PID lookup failed") {
		t.Errorf("asked once more: %v", err)
	}
	for path, want := range map[string]string{"killed": `"signal":9`, "as if killed": `"exitcode":137`} {
		pid := do(t, a, `{"execute":"guest-exec","arguments":{"path":"`+path+`"}}`)["pid"]
		status := fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%v}}`, pid)
		var text string
		var err error
		for text, err = a.Do(t.Context(), status); err == nil && strings.Contains(text, "false"); text, err = a.Do(t.Context(), status) {
			time.Sleep(time.Millisecond)
		}
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%s: %s, %v", path, text, err)
		}
	}
	if text, err := a.Do(t.Context(), `{"execute":"guest-exec","arguments":{"path":"missing"}}`); err == nil || !strings.Contains(err.Error(), "cannot be run") || len(a.processes) > 0 {
		t.Errorf("missing: %s, %v; %d are kept", text, err, len(a.processes))
	}
	for range maxProcesses {
		do(t, a, `{"execute":"guest-exec","arguments":{"path":"endless"}}`)
	}
	if _, err := a.Do(t.Context(), `{"execute":"guest-exec","arguments":{"path":"endless"}}`); err == nil || !strings.Contains(err.Error(), "the limit is 16") {
		t.Errorf("one too many: %v", err)
	}
	for _, wrong := range []string{`{}`, `{"path":"a\u0000b"}`, `{"path":"a","capture-output":"all"}`} {
		if _, err := a.Do(t.Context(), `{"execute":"guest-exec","arguments":`+wrong+`}`); err == nil {
			t.Errorf("%s is accepted", wrong)
		}
	}
	a.Close() // ends the endless ones
	if _, err := a.Do(t.Context(), `{"execute":"guest-exec","arguments":{"path":"tool"}}`); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("after the end: %v", err)
	}
}

// TestExecEarlier: programs of an earlier daemon are told of, by the numbers they
// had, and no other gets one of these.
func TestExecEarlier(t *testing.T) {
	gate := make(chan error)
	g := &guest{earlier: []runtime.Kept{{Number: 7}}, program: func(_ context.Context, c runtime.Command) (syscall.WaitStatus, error) {
		if c.Args[0] != "earlier" {
			return 0, nil
		}
		io.WriteString(c.Stdout, "said")
		return 0, <-gate
	}}
	a := newAgent(t, g)
	const status = `{"execute":"guest-exec-status","arguments":{"pid":7}}`
	if got := do(t, a, status); got["exited"] != false {
		t.Errorf("while it runs: %v", got)
	}
	if pid := do(t, a, `{"execute":"guest-exec","arguments":{"path":"tool"}}`)["pid"]; pid != 8.0 {
		t.Errorf("the next is %v", pid)
	}
	gate <- runtime.ErrEndUnknown
	got := ended(t, a, status)
	if _, known := got["exitcode"]; known || got["exited"] != true || got["out-data"] != "c2FpZA==" {
		t.Errorf("at its end: %v", got)
	}
	if _, err := a.Do(t.Context(), status); err == nil || g.kept[7] != nil {
		t.Errorf("asked once more: %v, %v is kept", err, g.kept)
	}
}

// TestExecLate: a program that takes long to begin is asked about afterwards.
func TestExecLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, &guest{program: func(ctx context.Context, _ runtime.Command) (syscall.WaitStatus, error) {
			time.Sleep(time.Minute)
			return 0, runtime.ErrNotExecuted
		}})
		pid := do(t, a, `{"execute":"guest-exec","arguments":{"path":"missing"}}`)["pid"]
		status := fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%v}}`, pid)
		if got := do(t, a, status); got["exited"] != false {
			t.Errorf("before it has begun: %v", got)
		}
		time.Sleep(time.Minute)
		if _, err := a.Do(t.Context(), status); err == nil || !strings.Contains(err.Error(), "cannot be run") {
			t.Errorf("at its end: %v", err)
		}
	})
}

// TestExecForgotten: programs that nobody asks about leave room for others, the
// oldest first, and what runs keeps its own.
func TestExecForgotten(t *testing.T) {
	gate := make(chan bool)
	a := newAgent(t, &guest{program: func(ctx context.Context, c runtime.Command) (syscall.WaitStatus, error) {
		if c.Args[0] == "endless" {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		<-gate
		return 0, nil
	}})
	run := func(path string) string {
		pid := do(t, a, `{"execute":"guest-exec","arguments":{"path":"`+path+`"}}`)["pid"]
		return fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%v}}`, pid)
	}
	endless := run("endless")
	for range maxProcesses - 1 {
		run("brief")
	}
	close(gate)
	for n := range a.processes {
		if n > 1 {
			<-a.processes[n].done
		}
	}
	for range 2 * maxProcesses {
		if got := ended(t, a, run("brief")); got["exitcode"] != 0.0 {
			t.Fatalf("ends with %v", got)
		}
	}
	if got := do(t, a, endless); got["exited"] != false {
		t.Errorf("what runs: %v", got)
	}
	if len(a.processes) != maxProcesses-1 {
		t.Errorf("%d are kept", len(a.processes))
	}
}

func ended(t *testing.T, a *Agent, status string) map[string]any {
	t.Helper()
	for {
		if got := do(t, a, status); got["exited"] == true {
			return got
		}
		time.Sleep(time.Millisecond)
	}
}
