package driver

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

// seen is an environment as the kernel has it.
type seen struct {
	frozen, started bool
	err             error
}

func (s seen) Frozen() (bool, error) { return s.frozen, s.err }
func (s seen) Started() bool         { return s.started }

// TestObserved: what the kernel says counts, and one whose cgroup goes away at
// this moment is taken over all the same: it is noticed that it ends.
func TestObserved(t *testing.T) {
	broken := errors.New("broken")
	running := savedStatus{State: Running, Reason: protocol.DomainRunningBooted}
	paused := savedStatus{State: Paused, Reason: protocol.DomainPausedUser}
	for name, test := range map[string]struct {
		is     seen
		saved  savedStatus
		state  State
		reason int32
		err    error
	}{
		"running":          {seen{started: true}, running, Running, protocol.DomainRunningBooted, nil},
		"paused":           {seen{started: true, frozen: true}, paused, Paused, protocol.DomainPausedUser, nil},
		"not yet started":  {seen{}, paused, Paused, protocol.DomainPausedUser, nil},
		"frozen by others": {seen{started: true, frozen: true}, running, Paused, protocol.DomainPausedUnknown, nil},
		"thawed by others": {seen{started: true}, paused, Running, protocol.DomainRunningUnpaused, nil},
		"cgroup is gone":   {seen{started: true, err: &fs.PathError{Op: "open", Err: unix.ENOENT}}, running, Running, protocol.DomainRunningBooted, nil},
		"cgroup goes":      {seen{started: true, err: &fs.PathError{Op: "read", Err: unix.ENODEV}}, running, Running, protocol.DomainRunningBooted, nil},
		"unreadable":       {seen{started: true, err: broken}, running, Running, protocol.DomainRunningBooted, broken},
	} {
		t.Run(name, func(t *testing.T) {
			state, reason, err := observed(test.is, test.saved)
			if state != test.state || reason != test.reason || !errors.Is(err, test.err) {
				t.Errorf("%v, reason %d, %v", state, reason, err)
			}
		})
	}
}

// TestDefineArrived: a domain that was decided to run here is defined, also when
// the daemon or the host ended before, and once: what was changed since stays.
func TestDefineArrived(t *testing.T) {
	t.Chdir(t.TempDir()) // where a runtime without directories of its own remembers
	ids := map[runtime.Outcome]string{}
	for outcome, name := range map[runtime.Outcome]string{runtime.Committed: "came", runtime.Lost: "lost", runtime.Aborted: "aborted", runtime.Undecided: "undecided"} {
		s := runtime.NewSession()
		ids[outcome] = s.ID
		dir := filepath.Join("migration", s.ID)
		body, _ := json.Marshal(map[string]any{"ID": s.ID, "Secret": s.Secret, "Name": name, "Outcome": outcome, "Definition": domainXML(name, "<uuid>"+protocol.UUID{byte(len(ids))}.String()+"</uuid>")})
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "session.json"), body, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	drv := statsDriver(t)
	defined := func(name string) bool {
		d, stored := drv.domains.lookupName(name), drv.store.definition(name)
		_, err := os.Stat(stored)
		if (d != nil) != (err == nil) {
			t.Errorf("%s is known: %v, and stored: %v", name, d != nil, err)
		}
		return d != nil && d.view().persistent
	}
	for range 2 {
		if err := drv.defineArrived(); err != nil {
			t.Fatal(err)
		}
		if !defined("came") || defined("aborted") || defined("undecided") {
			t.Error("another is defined than what came")
		}
	}
	if !defined("lost") {
		t.Error("what was lost here is defined nowhere")
	}
	if err := os.WriteFile(drv.store.definition("came"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := drv.defineArrived()
	if now, _ := os.ReadFile(drv.store.definition("came")); string(now) != "changed" || err != nil {
		t.Errorf("it is defined anew: %v\n%s", err, now)
	}
}

// TestRecoverLeft: a daemon that starts after the host lost its power does not
// start what may run elsewhere, and asks there until it is told what became of it,
// or somebody says so.
func TestRecoverLeft(t *testing.T) {
	t.Chdir(t.TempDir()) // where a runtime without directories of its own remembers, here and there
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go (&runtime.Runtime{}).ServeMigration(context.Background(), conn)
		}
	}()
	for _, outcome := range []runtime.Outcome{runtime.Committed, runtime.Aborted, runtime.Forgotten} {
		drv := statsDriver(t)
		synctest.Test(t, func(t *testing.T) {
			drv.stopping = make(chan struct{})
			defer drv.Close()
			drv.layers = (&runtime.Runtime{}).Layers()
			said := &output{}
			drv.log = slog.New(slog.NewTextHandler(said, nil))
			d := addDomain(t, drv, "web", "<vcpu cpuset='9999'>1</vcpu>") // which no host has: a start ends before it changes anything
			setView(d, func(v *view) { v.autostart = true })
			left := leave(t, d, runtime.Leave{Address: "tcp://" + l.Addr().String(), Flags: protocol.MigrateUndefineSource})
			dir := filepath.Join("migration", left.ID)
			body, _ := json.Marshal(map[string]any{"ID": left.ID, "Secret": left.Secret, "Outcome": outcome})
			if outcome == runtime.Forgotten {
				dir += "-other"
			}
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "session.json"), body, 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(drv.Recover(t.Context(), nil), drv.Autostart()); err != nil {
				t.Fatal(err)
			}
			kept := `msg="cannot autostart" domain=web error="web was sent to`
			if text := said.String(); !strings.Contains(text, kept) || strings.Contains(text, "9999") || d.view().state != Shutoff {
				t.Fatalf("%s: it is started: %s", outcome, text)
			}
			time.Sleep(3*settleAgain + time.Second)
			synctest.Wait()
			if started := strings.Contains(said.String(), "9999"); started != (outcome == runtime.Aborted) || isLeft(t, d) != (outcome == runtime.Forgotten) {
				t.Errorf("%s: it is still left: %v; it says %s", outcome, isLeft(t, d), said)
			}
			if defined := drv.domains.lookupName("web") != nil; defined != (outcome != runtime.Committed) {
				t.Errorf("%s: it is defined: %v", outcome, defined)
			}
			if _, err := drv.rt.ForgetLeft(d.uuid); err != nil {
				t.Error(err)
			}
		})
	}
}
