package driver

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/runtime"
)

// TestLost: a domain that moved and was lost is told apart from one that runs at
// the destination and from one that never came, also by daemons that have only
// what is remembered of it; it never goes on at its source.
func TestLost(t *testing.T) {
	t.Chdir(t.TempDir()) // where a runtime without directories of its own remembers
	there, here := statsDriver(t), statsDriver(t, "web")
	there.config.AuthUnixRW = "none"
	server := rpc.NewServer("virtvzd", rpc.Limits{MaxClients: 5, MaxAnonymousClients: 5, MaxClientRequests: 5, MaxWorkers: 1}, EncodeError)
	there.Register(server)
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l, rpc.ListenerOptions{})
	defer server.Shutdown(context.Background())

	for _, want := range []runtime.Outcome{runtime.Lost, runtime.Committed, runtime.Aborted, runtime.Forgotten} {
		s := runtime.NewSession()
		if want != runtime.Forgotten {
			dir := filepath.Join("migration", s.ID)
			body, _ := json.Marshal(map[string]any{"ID": s.ID, "Secret": s.Secret, "Name": "web", "Outcome": want})
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "session.json"), body, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		told, _ := cookie{Session: s}.encode()
		outcome, err := askOver(t.Context(), "vz+unix:///system?socket="+socket, "", &protocol.DomainMigrateFinish3ParamsArgs{
			Params: migration{name: "web"}.params(), CookieIn: told, Cancelled: 1,
		})
		if outcome != want || (err != nil) != (want == runtime.Forgotten) {
			t.Errorf("%s: the source is told %q, %v", want, outcome, err)
		}
	}

	d := here.domains.lookupName("web")
	change, err := d.change(t.Context(), nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	p := &departure{change: change, how: migration{flags: protocol.MigrateUndefineSource}, session: runtime.NewSession(), address: "tcp://there:1", control: runtime.NewMigrationControl(0, 0)}
	p.phase.Store(departureSettling)
	d.leaving.Store(p)
	refused(t, "what the client is told", p.lost(), protocol.ErrOperationFailed, "domain 'web' moved to tcp://there:1 and was lost there")
	ends := false
	here.log = slog.New(meanwhile{slog.DiscardHandler, "the domain has moved", func() {
		if ends = true; p.how.has(protocol.MigrateUndefineSource) {
			t.Error("it is defined nowhere any more")
		}
		goruntime.Goexit() // there is no environment that could be ended
	}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.Errorf("it goes on: %v", p.follow(runtime.Lost))
	}()
	<-done
	if _, busy := d.job.busy(); busy || !ends || d.leaving.Load() != nil {
		t.Errorf("it ends at its source: %v; the job is held: %v", ends, busy)
	}
}

// leave writes down that a domain was sent to another host, as its daemon did
// before that lost its power. What it asks is relative to the working directory.
func leave(t *testing.T, d *domain, more runtime.Leave) runtime.Leave {
	t.Helper()
	more.UUID, more.Name, more.Sent = d.uuid, d.view().name, true
	if more.ID == "" {
		more.Session = runtime.NewSession()
	}
	body, err := json.Marshal(more)
	if err == nil {
		err = os.MkdirAll("leaving", 0o700)
	}
	if err := errors.Join(err, os.WriteFile(filepath.Join("leaving", d.uuid.String()+".json"), body, 0o600)); err != nil {
		t.Fatal(err)
	}
	return more
}

// isLeft tells whether it is still written down.
func isLeft(t *testing.T, d *domain) bool {
	t.Helper()
	l, err := d.drv.rt.Left(d.uuid)
	if err != nil {
		t.Fatal(err)
	}
	return l != nil
}

// TestLeft: a domain that may run on another host when this one was started anew is
// not started, by whatever that is marked for, before somebody says that it does
// not run there; who destroys it says that it does.
func TestLeft(t *testing.T) {
	t.Chdir(t.TempDir())
	drv := statsDriver(t, "web")
	d := drv.domains.lookupName("web")
	said := ""
	drv.log = slog.New(meanwhile{slog.DiscardHandler, "cannot autostart", func() { said += "kept back" }})
	by := func(do func(c *change) error) error {
		c := d.changeAlways("test")
		defer c.done()
		c.client = &client{drv: drv}
		return do(c)
	}
	create := func(c *change) error { return c.create(0, nil) }
	destroy := func(c *change) error { return c.destroy(0) }

	leave(t, d, runtime.Leave{Address: "tcp://there:1"})
	refused(t, "a start", classify(by(create)), protocol.ErrOperationInvalid,
		"web was sent to tcp://there:1, and what became of it there is not known yet: 'virsh start --force-boot' if it does not run there, 'virsh destroy' if it does")
	link := drv.store.onceLink("web")
	if err := by(func(c *change) error { return c.setAutostart(link, true, func(v *view) { v.once = true }) }); err != nil {
		t.Fatal(err)
	}
	drv.startMarked()
	if _, err := os.Lstat(link); said == "" || err != nil || !d.view().once {
		t.Errorf("it is not kept back (%s), or not marked any more: %v", said, err)
	}
	how := migration{flags: protocol.MigrateOffline | protocol.MigratePersistDest}
	if _, _, err := (&request{ctx: t.Context(), drv: drv, info: protocol.DomainMigrateBegin3Params.Info}).beginMigration(d, how); err == nil || !strings.Contains(err.Error(), "web was sent to tcp://there:1") {
		t.Errorf("an offline migration: %v", err)
	}
	if !isLeft(t, d) {
		t.Fatal("it is forgotten")
	}
	if err := by(destroy); err != nil || isLeft(t, d) || d.view().state != Shutoff {
		t.Errorf("it is said to run there: %v, %v", err, d.view().state)
	}
	refused(t, "a second time", by(destroy), protocol.ErrOperationInvalid, "domain is not running")

	leave(t, d, runtime.Leave{})
	err := by(func(c *change) error { return c.passOverSaved(protocol.DomainStartForceBoot, "start") })
	if err != nil || isLeft(t, d) {
		t.Errorf("it is said not to run there: %v", err)
	}
}

// TestSettledLeft: what the destination says of a domain is done although nothing
// of it runs here any more.
func TestSettledLeft(t *testing.T) {
	t.Chdir(t.TempDir())
	const undefine, persist = protocol.MigrateUndefineSource, protocol.MigratePersistDest
	for name, c := range map[string]struct {
		outcome           runtime.Outcome
		flags             uint32
		marked            bool
		defined, migrated bool
		starts            bool
	}{
		"it moved":                      {outcome: runtime.Committed, marked: true, defined: true, migrated: true},
		"it moved and is defined there": {outcome: runtime.Committed, flags: undefine | persist},
		"it was lost":                   {outcome: runtime.Lost, flags: undefine, marked: true, defined: true, migrated: true},
		"it was lost and is defined":    {outcome: runtime.Lost, flags: undefine | persist},
		"it stays":                      {outcome: runtime.Aborted, flags: undefine, defined: true},
		"it stays and is to be started": {outcome: runtime.Aborted, flags: undefine, marked: true, defined: true, starts: true},
	} {
		t.Run(name, func(t *testing.T) {
			drv := statsDriver(t)
			d := addDomain(t, drv, "web", "<vcpu cpuset='9999'>1</vcpu>") // which no host has: a start ends before it changes anything
			if err := drv.store.saveDefinition("web", "<domain/>"); err != nil {
				t.Fatal(err)
			}
			setView(d, func(v *view) { v.autostart = c.marked })
			var said strings.Builder
			drv.log = slog.New(slog.NewTextHandler(&said, nil))
			drv.settled(leave(t, d, runtime.Leave{Flags: c.flags}), c.outcome)
			_, err := os.Stat(drv.store.definition("web"))
			if defined := drv.domains.lookupName("web") != nil; defined != c.defined || (err == nil) != defined {
				t.Errorf("it is defined: %v, %v", defined, err)
			}
			if migrated := d.view().reason == protocol.DomainShutoffMigrated; c.defined && migrated != c.migrated {
				t.Errorf("it is shut off because it moved: %v", migrated)
			}
			if _, busy := d.job.busy(); strings.Contains(said.String(), "9999") != c.starts || isLeft(t, d) || busy || d.leaving.Load() != nil {
				t.Errorf("it is still left: %v; the job is held: %v; it says %s", isLeft(t, d), busy, &said)
			}
			if lost := strings.Contains(said.String(), "was lost"); lost != (c.outcome == runtime.Lost) {
				t.Errorf("it says %s", &said)
			}
		})
	}

	drv := statsDriver(t, "web")
	d := drv.domains.lookupName("web")
	old := leave(t, d, runtime.Leave{})
	leave(t, d, runtime.Leave{})
	if drv.settled(old, runtime.Committed); !isLeft(t, d) || d.view().reason == protocol.DomainShutoffMigrated {
		t.Error("the answer is taken for that of another migration")
	}
	drv = statsDriver(t) // it was transient
	if drv.settled(leave(t, d, runtime.Leave{}), runtime.Committed); isLeft(t, d) {
		t.Error("one that is not defined is not forgotten")
	}
}
