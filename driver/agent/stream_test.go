package agent

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"virtvzd/runtime"
)

// upper reads to the end and writes it back in capitals, a line at the end of
// it to the other output.
func upper(ctx context.Context, c runtime.Command) (syscall.WaitStatus, error) {
	if c.Args[0] == "true" {
		return 0, nil
	}
	n := 0
	buf := make([]byte, streamChunk)
	for {
		got, err := c.Stdin.Read(buf)
		n += got
		if _, failed := c.Stdout.Write(bytes.ToUpper(buf[:got])); failed != nil {
			return 9, ctx.Err()
		}
		if err == io.EOF {
			fmt.Fprintf(c.Stderr, "%d bytes", n)
			return 3 << 8, nil
		}
		if err != nil {
			return 9, err
		}
	}
}

func startStream(t *testing.T, a *Agent, ctx context.Context) (pid any) {
	t.Helper()
	text, err := a.Do(ctx, `{"execute":"guest-exec","arguments":{"path":"upper","`+streamMember+`":true}}`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(text, `{"return":{"pid":%d}}`, new(int)); err != nil {
		t.Fatal(text)
	}
	return strings.Trim(text, `{}"returnpid:`)
}

func TestStream(t *testing.T) {
	a := newAgent(t, &guest{program: upper})
	pid := startStream(t, a, t.Context())
	write := func(text, more string) map[string]any {
		return do(t, a, fmt.Sprintf(`{"execute":"%s","arguments":{"pid":%v,"buf-b64":"%s"%s}}`, streamWrite, pid, base64.StdEncoding.EncodeToString([]byte(text)), more))
	}
	read := fmt.Sprintf(`{"execute":"%s","arguments":{"pid":%v}}`, streamRead, pid)
	data := func(got map[string]any, of string) string {
		text, _ := got[of+"-data"].(string)
		body, _ := base64.StdEncoding.DecodeString(text)
		return string(body)
	}

	// What has come is there before more does.
	if got := write("hello ", ""); got["count"] != 6.0 {
		t.Errorf("%v", got)
	}
	if got := do(t, a, read); data(got, "out") != "HELLO " || got["exited"] != false {
		t.Errorf("%v", got)
	}

	// More than is kept anywhere, by two who do not wait for each other.
	long := strings.Repeat("x", 1<<20)
	const times = 5
	go func() {
		for range times {
			write(long, "")
		}
		write("end", `,"end":true`)
	}()
	var out, errs strings.Builder
	var got map[string]any
	for got = do(t, a, read); got["exited"] == false; got = do(t, a, read) {
		out.WriteString(data(got, "out"))
		errs.WriteString(data(got, "err"))
	}
	if want := strings.ToUpper(strings.Repeat(long, times)) + "END"; out.String() != want || got["exitcode"] != 3.0 {
		t.Errorf("%d bytes of %d, %v", out.Len(), len(want), got)
	}
	if want := fmt.Sprint(6+3+times*len(long), " bytes"); errs.String() != want {
		t.Errorf("%q, want %q", errs.String(), want)
	}
	if _, err := a.Do(t.Context(), read); err == nil || !strings.Contains(err.Error(), "PID lookup failed") {
		t.Errorf("asked once more: %v", err)
	}

	for _, wrong := range []string{
		`{"execute":"guest-exec","arguments":{"path":"x","capture-output":true,"` + streamMember + `":true}}`,
		`{"execute":"guest-exec","arguments":{"path":"x","input-data":"eA==","` + streamMember + `":true}}`,
		fmt.Sprintf(`{"execute":"guest-exec-status","arguments":{"pid":%v}}`, startStream(t, a, t.Context())),
		`{"execute":"` + streamRead + `","arguments":{"pid":` + fmt.Sprint(do(t, a, `{"execute":"guest-exec","arguments":{"path":"true"}}`)["pid"]) + `}}`,
	} {
		if _, err := a.Do(t.Context(), wrong); err == nil {
			t.Errorf("%s is accepted", wrong)
		}
	}
}

// TestStreamForsaken: a program ends with its client, also while it waits to be
// read or written to.
func TestStreamForsaken(t *testing.T) {
	ended := make(chan error, 2)
	a := newAgent(t, &guest{program: func(ctx context.Context, c runtime.Command) (syscall.WaitStatus, error) {
		if c.Args[0] == "upper" {
			_, err := c.Stdin.Read(make([]byte, 1))
			ended <- err
		} else {
			var err error
			for err == nil {
				_, err = c.Stdout.Write(make([]byte, streamChunk))
			}
			ended <- err
		}
		return 9, ctx.Err()
	}})
	gone, leave := context.WithCancel(t.Context())
	ctx := WithClient(t.Context(), gone)
	startStream(t, a, ctx)
	if _, err := a.Do(ctx, `{"execute":"guest-exec","arguments":{"path":"yes","`+streamMember+`":true}}`); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("ended before the client left: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	leave()
	for range 2 {
		select {
		case err := <-ended:
			if err != context.Canceled {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a program without its client goes on")
		}
	}
}
