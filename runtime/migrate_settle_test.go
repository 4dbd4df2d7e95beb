package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// afterPowerLoss is what a daemon finds when the host was started anew: the data
// directory, and nothing of the state directory.
func afterPowerLoss(t *testing.T, r *Runtime) *Runtime {
	t.Helper()
	later := emptyRuntime(t)
	later.config.DataDir = r.config.DataDir
	if adopted, ended, err := later.Recover(t.Context(), nil); len(adopted)+len(ended) != 0 || err != nil {
		t.Fatalf("it finds %v, %v, %v", adopted, ended, err)
	}
	return later
}

// leavingInstance was sent to another host, but for what makes it whole there.
func leavingInstance(t *testing.T, r *Runtime) *Instance {
	t.Helper()
	i := newInstance(r, &record{
		Version: 1, UUID: "01000000-0000-0000-0000-000000000000", Name: "web", Phase: running,
		Migration: &Leave{Session: NewSession(), Address: "tcp://there:1", Flags: 7},
	}, nil)
	if err := os.Mkdir(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return i
}

// TestLeftWithHost: of an environment that may run elsewhere nothing makes another
// when its host loses its power, until it is known or said what became of it.
func TestLeftWithHost(t *testing.T) {
	r := emptyRuntime(t)
	i := leavingInstance(t, r)
	want := *i.rec.Migration
	want.UUID, want.Name, want.Sent = i.uuid, "web", true
	if err := i.noteSent(); err != nil {
		t.Fatal(err)
	}
	later := afterPowerLoss(t, r)
	if list, err := later.AllLeft(); len(list) != 1 || *list[0] != want || err != nil {
		t.Fatalf("the next daemon knows %+v, %v", list, err)
	}
	env, offer := offered(filepath.Join(t.TempDir(), "root"))
	for name, do := range map[string]func() error{
		"a start":        func() error { _, err := later.Start(t.Context(), env, StartOptions{}); return err },
		"an offline one": func() error { _, err := later.OfferDisk(env); return err },
		"one from elsewhere": func() error {
			_, err := later.PrepareMigration(t.Context(), env, offer, IncomingOptions{Session: NewSession()})
			return err
		},
		"a start of an image": func() error {
			_, err := later.Start(t.Context(), env, StartOptions{Checkpoint: t.TempDir()})
			return err
		},
	} {
		if err := do(); !errors.Is(err, ErrLeft) || !strings.Contains(err.Error(), "web was sent to tcp://there:1, and what became of it there is not known yet") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := later.ForgetLeft(env.UUID); !left || err != nil {
		t.Errorf("%v, %v", left, err)
	}
	if _, err := later.OfferDisk(env); errors.Is(err, ErrLeft) {
		t.Errorf("when that is said: %v", err)
	}
	if left, err := later.ForgetLeft(env.UUID); left || err != nil {
		t.Errorf("again: %v, %v", left, err)
	}

	if err := os.WriteFile(later.leaveFile(env.UUID), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := later.Start(t.Context(), env, StartOptions{}); err == nil || !strings.Contains(err.Error(), later.leaveFile(env.UUID)) {
		t.Errorf("a note that cannot be read: %v", err)
	}
}

// TestNotNoted: what cannot be written down is not sent.
func TestNotNoted(t *testing.T) {
	r := emptyRuntime(t)
	i := leavingInstance(t, r)
	if err := os.WriteFile(r.leavesDir(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.noteSent(); err == nil || i.Leaving() != nil {
		t.Errorf("%v, %+v", err, i.Leaving())
	}
}

// TestLeftOutcome: what is known of an environment that left outlives this host
// until all is done that follows, and one that did not leave is not kept back.
func TestLeftOutcome(t *testing.T) {
	for outcome, want := range map[Outcome]Outcome{Committed: Committed, Lost: Lost, Aborted: "none", Forgotten: Undecided} {
		r := emptyRuntime(t)
		i := leavingInstance(t, r)
		if err := i.noteSent(); err != nil {
			t.Fatal(err)
		}
		close(i.exited) // it is not a process, and so can be ended
		i.EndMigration(t.Context(), outcome, nil)
		l, err := afterPowerLoss(t, r).Left(i.uuid)
		if err != nil || (l == nil) != (want == "none") || l != nil && l.Outcome != want {
			t.Errorf("%q: the next daemon knows %+v, %v", outcome, l, err)
		}
	}
}

// TestAskDestination: a daemon that has no more than what was written down is told
// what became of it.
func TestAskDestination(t *testing.T) {
	for decided, want := range map[Outcome]Outcome{Committed: Committed, Lost: Lost, Undecided: Aborted} {
		there, s := emptyRuntime(t), NewSession()
		in := await(t, there, filepath.Join(t.TempDir(), "root"), s)
		if decided != Undecided {
			if err := there.decide(s.ID, decided); err != nil {
				t.Fatal(err)
			}
			in.settle(decided)
		}
		outcome, err := AskDestination(t.Context(), s, func(context.Context) (io.ReadWriteCloser, error) {
			link, _ := serve(t.Context(), there)
			return link, nil
		})
		if outcome != want || err != nil {
			t.Errorf("%q: it is told %q, %v", decided, outcome, err)
		}
	}
}

// TestDefinitionStays: the definition of what came is there with the decision,
// also when this host loses its power, until it is kept, whatever its source knows.
// Of what was not decided there is none.
func TestDefinitionStays(t *testing.T) {
	for _, commits := range []bool{true, false} {
		r, s := emptyRuntime(t), NewSession()
		r.config.Scopes = &thawing{}
		env, offer := offered(filepath.Join(t.TempDir(), "root"))
		in, err := r.PrepareMigration(t.Context(), env, offer, IncomingOptions{Session: s, Definition: "<domain/>"})
		if err != nil {
			t.Fatal(err)
		}
		i := newInstance(r, &record{Version: 1, UUID: formatUUID(env.UUID), Name: env.Name, Phase: held, Session: s.ID, Init: 1 << 30}, nil) // of no process
		if err := os.Mkdir(i.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		in.mu.Lock()
		in.instance, in.offer.Inactive = i, false
		in.mu.Unlock()
		if commits {
			if got, err := in.Commit(t.Context()); got != i { // its interfaces cannot be connected, which is for here
				t.Fatal(err)
			}
			if err := r.forgetSession(s.ID); err != nil { // its source has asked
				t.Fatal(err)
			}
		}
		later := afterPowerLoss(t, r)
		docs, err := later.Undefined()
		if err != nil || len(docs) != map[bool]int{true: 1}[commits] || commits && docs[s.ID] != "<domain/>" {
			t.Fatalf("committed: %v; it finds %v, %v", commits, docs, err)
		}
		if !commits {
			continue
		}
		if err := later.Defined(s.ID); err != nil {
			t.Fatal(err)
		}
		if docs, err := later.Undefined(); len(docs) != 0 || err != nil {
			t.Errorf("once it is kept: %v, %v", docs, err)
		}
		if outcome, err := later.SettleSession(t.Context(), s); outcome != Committed || err != nil {
			t.Errorf("its source is told %q, %v", outcome, err)
		}
		if err := later.forgetSession(s.ID); err != nil || exists(later.sessionDir(s.ID)) {
			t.Errorf("it is remembered for ever: %v", err)
		}
	}
}

// TestKeepLeaving: what a daemon of before has noted in its state alone is kept
// by the next one, once.
func TestKeepLeaving(t *testing.T) {
	r := emptyRuntime(t)
	i := leavingInstance(t, r)
	if err := i.keepLeaving(); err != nil {
		t.Fatal(err)
	}
	if list, err := r.AllLeft(); len(list) != 0 || err != nil {
		t.Fatalf("not sent yet: %+v, %v", list, err)
	}
	i.rec.Migration.Sent = true
	want := *i.rec.Migration
	want.UUID, want.Name = i.uuid, "web"
	for _, outcome := range []Outcome{want.Outcome, Committed} {
		if err := i.keepLeaving(); err != nil {
			t.Fatal(err)
		}
		want.Outcome = outcome
		if list, err := r.AllLeft(); len(list) != 1 || *list[0] != want || err != nil {
			t.Fatalf("kept is %+v, %v", list, err)
		}
		if err := r.noteOutcome(i.uuid, Committed); err != nil {
			t.Fatal(err)
		}
	}
}
