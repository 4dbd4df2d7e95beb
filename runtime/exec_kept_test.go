package runtime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// keptHost is what daemons leave to each other: a directory, and descriptors.
type keptHost struct {
	*testing.T
	r     *Runtime
	store memoryStore
}

func newKeptHost(t *testing.T) *keptHost {
	h := &keptHost{T: t, r: emptyRuntime(t)}
	h.r.config.FDs = &h.store
	return h
}

// daemon is one that finds the environment there.
func (h *keptHost) daemon() *Instance {
	h.Helper()
	i := newInstance(h.r, &record{UUID: formatUUID(testUUID), Name: "web1"}, nil)
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		h.Fatal(err)
	}
	stored := h.store.take()
	i.adoptKept(stored)
	for _, f := range stored {
		f.Close()
	}
	return i
}

// begin has a shell in the place of the OCI runtime and a program inside, and the
// daemon killed at once.
func (h *keptHost) begin(k Kept, input, script string) *exec.Cmd {
	h.Helper()
	i := h.daemon()
	p := &keptProgram{Kept: k, i: i}
	check := func(err error) {
		h.Helper()
		if err != nil {
			h.Fatal(err)
		}
	}
	check(p.prepare(strings.NewReader(input)))
	s, err := openPipes(k.Merged, 0, 0)
	check(err)
	check(p.connect(s))
	cmd := s.run(h.T, script)
	pidfd, err := openPidfd(cmd.Process.Pid, 0)
	check(err)
	check(errors.Join(p.store("pid", pidfd), os.WriteFile(p.path(pidName), fmt.Appendln(nil, cmd.Process.Pid), 0o600)))
	pidfd.Close()
	s.close()
	closeAll(p.files[:])
	return cmd
}

// TestKept: neither what a program reads nor what it writes suffers from daemons
// that are killed, and the last of them knows how it ended.
func TestKept(t *testing.T) {
	h := newKeptHost(t)
	input := strings.Repeat("0123456789abcdef", 50_000)
	k := Kept{Number: 3, Out: true, Err: true, Limit: 1 << 20}
	h.begin(k, input, `sleep 0.3; sha256sum; for n in 0 1 2 3 4 5 6 7 8 9; do head -c 50000 /dev/zero | tr '\0' $n; sleep 0.05; done; echo end; echo oops >&2; exit 7`)
	for range 10 {
		i := h.daemon()
		if got := i.Kept(); !slices.Equal(got, []Kept{k}) {
			t.Fatalf("%+v is kept", got)
		}
		s, err := i.kept[3].rejoin()
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(70 * time.Millisecond)
		s.close() // by the kernel, of who is killed
		closeAll(i.kept[3].files[:])
	}
	want := fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(input)))
	for n := range 10 {
		want += strings.Repeat(fmt.Sprint(n), 50_000)
	}
	i := h.daemon()
	for range 2 { // the second time it has ended before
		if ws, err := i.AwaitKept(t.Context(), 3); err != nil || ws != 7<<8 {
			t.Errorf("status %#x, %v", ws, err)
		}
		for output, want := range map[int]string{1: want + "end\n", 2: "oops\n"} {
			if got, more, err := i.KeptOutput(3, output); err != nil || more || string(got) != want {
				t.Errorf("output %d: %d bytes of %d, the same up to %d, %v, %v", output, len(got), len(want), sameUpTo(string(got), want), more, err)
			}
		}
		if left := h.store.take(); len(left) > 0 {
			t.Errorf("stored is %v", left)
		}
		i = h.daemon()
	}
	if err := i.ForgetKept(3); err != nil || exists(i.keptDir(3)) || len(i.Kept()) > 0 {
		t.Errorf("it is not forgotten: %v, %v", err, i.Kept())
	}
}

func sameUpTo(a, b string) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// TestKeptLimit: of what is too much the beginning is kept, and what is not asked
// for is not: the program writes on all the same.
func TestKeptLimit(t *testing.T) {
	h := newKeptHost(t)
	cmd := h.begin(Kept{Number: 1, Out: true, Limit: 1000}, "", "sleep 0.1; for n in 1 2 3 4; do seq 20000; seq 20000 >&2; done; [ -z \"$(cat)\" ]")
	i := h.daemon()
	if ws, err := i.AwaitKept(t.Context(), 1); err != nil || ws != 0 {
		t.Errorf("status %#x, %v", ws, err)
	}
	cmd.Process.Release()
	if got, more, err := i.KeptOutput(1, 1); err != nil || !more || len(got) != 1000 || !bytes.HasPrefix(got, []byte("1\n2\n3\n")) {
		t.Errorf("%q, %v, %v", got, more, err)
	}
	if got, more, err := i.KeptOutput(1, 2); err != nil || more || len(got) > 0 {
		t.Errorf("not captured: %q, %v, %v", got, more, err)
	}
}

// TestKeptUnknown: of a program that ended without a daemon there is at least what
// it wrote, whether its process is known or not; and one of which nobody was told
// that it began is not there.
func TestKeptUnknown(t *testing.T) {
	for _, pidfd := range []bool{true, false} {
		h := newKeptHost(t)
		cmd := h.begin(Kept{Number: 1, Out: true, Merged: true, Limit: 1000}, "", "echo a; echo b >&2")
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		i := h.daemon()
		if !pidfd {
			i.kept[1].stored["pid"].Close()
			delete(i.kept[1].stored, "pid")
		}
		ws, err := i.AwaitKept(t.Context(), 1)
		if known := pidfd && err == nil; !known && !errors.Is(err, ErrEndUnknown) || ws != 0 {
			t.Errorf("status %#x, %v", ws, err)
		}
		if got, _, err := i.KeptOutput(1, 1); err != nil || string(got) != "a\nb\n" {
			t.Errorf("%q, %v", got, err)
		}
		_, again := h.daemon().AwaitKept(t.Context(), 1)
		if fmt.Sprint(again) != fmt.Sprint(err) {
			t.Errorf("later: %v, before %v", again, err)
		}
	}
	h := newKeptHost(t)
	p := &keptProgram{Kept: Kept{Number: 4}, i: h.daemon()}
	if err := p.prepare(nil); err != nil {
		t.Fatal(err)
	}
	if i := h.daemon(); len(i.Kept()) > 0 || exists(i.keptDir(4)) {
		t.Errorf("%v is kept", i.Kept())
	}
}

// TestKeptKilled: with the environment's end ends what an earlier daemon began.
func TestKeptKilled(t *testing.T) {
	h := newKeptHost(t)
	cmd := h.begin(Kept{Number: 1, Limit: 1000}, "", "exec sleep 1000")
	i := h.daemon()
	i.rec.Cgroup = "no such cgroup"
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := i.AwaitKept(ctx, 1); err == nil {
		t.Error("it has ended by itself")
	}
	state, err := cmd.Process.Wait()
	if err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Error(state, err)
	}
}
