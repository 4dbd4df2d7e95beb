package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"virtvzd/systemd"
)

// followed is an environment that was let go and whose memory still comes, and
// the channel of its source.
func followed(t *testing.T) (*Incoming, *channel) {
	t.Helper()
	r, s := emptyRuntime(t), NewSession()
	in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
	link, served := serve(t.Context(), r)
	ch := newChannel(link)
	t.Cleanup(func() {
		ch.close(nil)
		<-served
	})
	err := errors.Join(ch.send(hello{Version: migrationVersion, Session: s}), ch.receive(t.Context(), &welcome{}))
	if err == nil {
		err = sendAll(t, ch, []any{part{What: partDisk, Still: true}, mirrorRecord(recordEnd, nil), part{What: partEnd}})
	}
	if err != nil {
		t.Fatal(err)
	}
	in.mu.Lock()
	in.lazy = &lazyPages{ended: make(chan struct{})}
	in.instance = newInstance(r, &record{UUID: formatUUID(in.env.UUID), Name: in.env.Name, Phase: running, Follows: s.ID}, nil)
	in.mu.Unlock()
	if err := os.Mkdir(in.instance.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return in, ch
}

// TestMemoryFollows: while it does, the client may go, and no source is told that
// the environment runs at the destination: it would end, with what is missing.
func TestMemoryFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, ch := followed(t)
		if err := in.Abort(t.Context()); err != errCommitted {
			t.Errorf("a client that goes: %v", err)
		}
		i := &Instance{rec: &record{Migration: &Leave{Session: in.options.Session, Sent: true}}, migration: &outgoing{ch: ch, lazy: true}}
		told := make(chan Outcome, 1)
		began := time.Now()
		go func() {
			outcome, err := i.SettleMigration(t.Context(), func(context.Context) (io.ReadWriteCloser, error) {
				return nil, errors.New("it asks on another connection")
			})
			if err != nil {
				t.Error(err)
			}
			told <- outcome
		}()
		time.Sleep(2 * settleTimeout)
		select {
		case outcome := <-told:
			t.Fatalf("after %v it is told that it is %q", time.Since(began), outcome)
		default:
		}
		soon, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if outcome, err := in.r.SettleSession(soon, in.options.Session); outcome == Committed || err == nil {
			t.Errorf("on another connection it is told %q, %v", outcome, err)
		}
		close(in.lazy.ended)
		if outcome := <-told; outcome != Committed {
			t.Errorf("in the end it is told %q", outcome)
		}
		if err := in.AwaitMemory(); err != nil || len(in.r.incoming) != 0 {
			t.Errorf("%v; there is left: %v", err, in.r.incoming)
		}
		if rec, err := loadRecord(in.instance.dir); err != nil || rec.Follows != "" {
			t.Errorf("a later daemon is told %+v, %v", rec, err)
		}
	})
}

// TestMemoryLost: when memory does not come any more the environment is lost, and
// its source is told so, also by a later daemon.
func TestMemoryLost(t *testing.T) {
	in, ch := followed(t)
	if err := ch.send(part{What: partSettle}); err != nil {
		t.Fatal(err)
	}
	close(in.instance.exited)
	in.lazy.err = errors.New("exit status 1")
	close(in.lazy.ended)
	var answer done
	if err := ch.receive(t.Context(), &answer); err != nil || answer.Outcome != Lost {
		t.Errorf("the source is told %q, %v", answer.Outcome, err)
	}
	if err := in.AwaitMemory(); err == nil || !strings.Contains(err.Error(), "some of its memory was still at the source, and is lost") || in.Outcome() != Lost {
		t.Errorf("here it is %q: %v", in.Outcome(), err)
	}
	if err := in.Abort(t.Context()); err != errCommitted {
		t.Errorf("a late abort: %v", err)
	}
	later := emptyRuntime(t)
	later.config = in.r.config
	if _, err := later.recoverSessions(); err != nil {
		t.Error(err)
	}
	if outcome, err := later.SettleSession(t.Context(), in.options.Session); outcome != Lost || err != nil {
		t.Errorf("a later daemon says %q, %v", outcome, err)
	}
}

// TestCutOff: a daemon that ends while memory follows leaves nothing that could go
// on. Only what was let go is lost.
func TestCutOff(t *testing.T) {
	for name, c := range map[string]struct {
		phase   phase
		follows bool
		before  Outcome
		want    Outcome
	}{
		"held":            {held, true, Undecided, Aborted},
		"decided":         {held, true, Committed, Aborted},
		"let go":          {running, true, Committed, Lost},
		"once more":       {running, true, Lost, Lost},
		"whole":           {running, false, Committed, Committed},
		"whole, and held": {held, false, Committed, Committed},
	} {
		t.Run(name, func(t *testing.T) {
			r, s := emptyRuntime(t), NewSession()
			in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
			if err := r.decide(s.ID, c.before); err != nil {
				t.Fatal(err)
			}
			in.forget()
			rec := &record{UUID: formatUUID(in.env.UUID), Name: "web", Phase: c.phase}
			if c.follows {
				rec.Follows = s.ID
			}
			err := r.cutOff(rec)
			if said := err != nil && strings.Contains(err.Error(), "web came here by a migration, and was killed"); said != (c.want == Lost && c.before != Lost) {
				t.Errorf("the log says %v", err)
			}
			if _, err := r.recoverSessions(); err != nil {
				t.Error(err)
			}
			if outcome, err := r.SettleSession(t.Context(), s); outcome != c.want || err != nil {
				t.Errorf("the source is told %q, %v", outcome, err)
			}
		})
	}
}

// units is systemd, and knows the properties of what was started.
type units struct {
	Scopes
	props map[string]any
}

func (u *units) StartService(_ context.Context, _ string, props ...systemd.Property) error {
	u.props = map[string]any{}
	for _, p := range props {
		u.props[p.Name] = p.Value.Value()
	}
	return nil
}

func (*units) Stop(context.Context, string) error { return nil }

// TestLazyDumpLasts: who has memory that follows is not ended because the network
// is slow.
func TestLazyDumpLasts(t *testing.T) {
	r, u := emptyRuntime(t), &units{}
	r.config.Scopes = u
	for lazy, want := range map[bool]any{true: nil, false: uint64(dumpTimeout.Microseconds())} {
		if err := r.runDump(t.Context(), "6f9619ff-8b86-4011-b42d-00cf4fc964ff", "/criu.conf", []string{"/bin/true"}, lazy); err != nil {
			t.Fatal(err)
		}
		if got := u.props["TimeoutStartUSec"]; got != want || u.props["Type"] != "oneshot" || (u.props["PrivateNetwork"] == true) != lazy {
			t.Errorf("lazy %v: it may take %v to start: %v", lazy, got, u.props)
		}
	}
}

// TestAllowFaults: page faults are handled for as long as any restore needs it, and
// after that, or in the next daemon, the sysctl is what it was.
func TestAllowFaults(t *testing.T) {
	real := faultsInside
	defer func() { faultsInside = real }()
	faultsInside = filepath.Join(t.TempDir(), filepath.Base(real))
	r := emptyRuntime(t)
	allow := func() func() {
		t.Helper()
		done, err := r.allowFaults()
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	is := func(when, want string) {
		t.Helper()
		if got := strings.TrimSpace(readWhole(faultsInside)); got != want {
			t.Errorf("%s it is %q, and not %q", when, got, want)
		}
	}
	if _, err := r.allowFaults(); err == nil || !strings.Contains(err.Error(), "CONFIG_USERFAULTFD") {
		t.Errorf("without the sysctl: %v", err)
	}
	for _, was := range []string{"0", "1"} {
		os.WriteFile(faultsInside, []byte(was+"\n"), 0o600)
		first := allow()
		second := allow()
		is("while two restore", "1")
		first()
		is("while one still restores", "1")
		second()
		is("afterwards", was)
	}
	os.WriteFile(faultsInside, []byte("0\n"), 0o600)
	allow() // and then the daemon is killed
	is("in a restore", "1")
	r = &Runtime{config: r.config}
	if _, err := r.recoverSessions(); err != nil {
		t.Error(err)
	}
	is("in the next daemon", "0")
	if exists(r.faultsNote()) {
		t.Error("it would be put back again")
	}
}

// TestMemoryLostBefore: where memory would follow, and the connection ends before
// it is decided, nothing can be let go here: it goes on at the source, which has
// all of it.
func TestMemoryLostBefore(t *testing.T) {
	r, s := emptyRuntime(t), NewSession()
	in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
	link, served := serve(t.Context(), r)
	ch := newChannel(link)
	if err := errors.Join(ch.send(hello{Version: migrationVersion, Session: s}), ch.receive(t.Context(), &welcome{})); err != nil {
		t.Fatal(err)
	}
	sock, theirs := net.Pipe()
	defer theirs.Close()
	l := &lazyPages{cmd: exec.Command("sleep", "1000"), sock: sock, ended: make(chan struct{})}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.ended)
	}()
	i := newInstance(r, &record{UUID: formatUUID(in.env.UUID), Name: in.env.Name, Phase: held, Session: s.ID, Follows: s.ID}, nil)
	close(i.exited) // it is not a process, and so can be ended
	in.mu.Lock()
	in.lazy, in.instance = l, i
	in.mu.Unlock()
	ch.close(nil)
	<-served
	if in.Outcome() != Aborted {
		t.Errorf("it is %q", in.Outcome())
	}
	if _, err := in.Commit(t.Context()); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Errorf("it is let go: %v", err)
	}
	if outcome, err := r.SettleSession(t.Context(), s); outcome != Aborted || err != nil {
		t.Errorf("its source is told %q, %v", outcome, err)
	}
	select {
	case <-l.ended:
	default:
		t.Error("who waits for its memory is left")
		l.end()
	}
}
