package vm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
)

// Progress receives a line for every step that takes longer than a few seconds.
// Set it before the first call.
var Progress io.Writer = os.Stderr

// heartbeat is how long a step may stay silent: nobody shall think it hangs.
const heartbeat = 15 * time.Second

func progress(format string, args ...any) {
	fmt.Fprintf(Progress, "vm: "+format+"\n", args...)
}

func since(t time.Time) time.Duration { return time.Since(t).Round(time.Second) }

// during says every heartbeat that a step still runs, until stop is called.
func during(step func() string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	start := time.Now()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(heartbeat):
				progress("%s: %s so far", step(), since(start))
			}
		}
	}()
	return cancel
}

// runLogged runs a script whose output goes to the file at log, and whose lines
// that start with "==> " are progress. The error ends with the log's last lines.
func runLogged(cmd *exec.Cmd, log string) error {
	file, err := os.Create(log)
	if err != nil {
		return err
	}
	defer file.Close()
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w

	var step atomic.Value
	step.Store("starting")
	defer during(func() string { return step.Load().(string) })()
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines := bufio.NewReader(r)
		for {
			line, err := lines.ReadString('\n')
			io.WriteString(file, line)
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "==> "); ok {
				step.Store(text)
				progress("%s", text)
			}
			if err != nil {
				return
			}
		}
	}()
	// Its death signal comes when the thread that started it ends.
	runtime.LockOSThread()
	err = cmd.Run()
	runtime.UnlockOSThread()
	w.Close()
	<-done
	if err != nil {
		return fmt.Errorf("%w; the end of %s:\n%s", err, log, tail(log, 2000))
	}
	return nil
}

// tail is the last n bytes of a file, "" when it cannot be read.
func tail(path string, n int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > n {
		f.Seek(-n, io.SeekEnd)
	}
	data, _ := io.ReadAll(io.LimitReader(f, n))
	return strings.TrimSpace(string(data))
}
