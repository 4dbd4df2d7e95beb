package runtime

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// emptyRuntime has directories, and nothing runs there.
func emptyRuntime(t *testing.T) *Runtime {
	t.Helper()
	dir := t.TempDir()
	return &Runtime{
		config:    Config{DataDir: dir, StateDir: dir},
		instances: map[[16]byte]*Instance{}, claims: map[[16]byte]claim{}, incoming: map[string]*Incoming{}, pulls: map[string]Outgoing{},
	}
}

// offered is a shut off environment whose root is a directory, and what a source
// says of it.
func offered(root string) (*xml.Environment, MigrationOffer) {
	env := &xml.Environment{Name: "web", UUID: [16]byte{1}, Filesystems: []xml.Filesystem{{Type: "mount", Source: root}}}
	return env, MigrationOffer{Version: migrationVersion, UUID: formatUUID(env.UUID), Inactive: true, Root: MigrationRoot{Type: "mount"}}
}

func await(t *testing.T, r *Runtime, root string, s Session) *Incoming {
	t.Helper()
	needRoot(t, "only root can give files away")
	env, offer := offered(root)
	in, err := r.PrepareMigration(t.Context(), env, offer, IncomingOptions{Session: s})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func serve(ctx context.Context, r *Runtime) (io.ReadWriteCloser, chan error) {
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- r.ServeMigration(ctx, theirs) }()
	return ours, served
}

// TestPrepareMigration refuses what cannot come.
func TestPrepareMigration(t *testing.T) {
	r := emptyRuntime(t)
	full := t.TempDir()
	os.WriteFile(filepath.Join(full, "file"), nil, 0o600)
	digest := "sha256-" + strings.Repeat("0", 64)
	for name, c := range map[string]struct {
		edit func(*xml.Environment, *MigrationOffer, *IncomingOptions)
		want string
	}{
		"no ID": {func(_ *xml.Environment, _ *MigrationOffer, o *IncomingOptions) { o.ID = "" }, "the migration has no ID"},
		"another path": {func(_ *xml.Environment, _ *MigrationOffer, o *IncomingOptions) {
			o.ID = "../../../../etc/aaaaaaaaaaaaaaaa"
		}, "the migration has no ID"},
		"no secret":  {func(_ *xml.Environment, _ *MigrationOffer, o *IncomingOptions) { o.Secret = "" }, "the migration has no ID"},
		"newer":      {func(_ *xml.Environment, m *MigrationOffer, _ *IncomingOptions) { m.Version++ }, "speaks version 2 of the migration, this one version 1: upgrade the older"},
		"another":    {func(_ *xml.Environment, m *MigrationOffer, _ *IncomingOptions) { m.UUID = "../x" }, "of another environment than what is offered"},
		"no root":    {func(e *xml.Environment, _ *MigrationOffer, _ *IncomingOptions) { e.Filesystems = nil }, "has no root of its own"},
		"other root": {func(e *xml.Environment, m *MigrationOffer, _ *IncomingOptions) { m.Root.Type = "template" }, "of type 'template' there and would be of type 'mount' here"},
		"a file": {func(e *xml.Environment, m *MigrationOffer, _ *IncomingOptions) {
			e.Filesystems[0].Type, m.Root.Type = "file", "file"
		}, "a root of type 'file' cannot come"},
		"no room":   {func(_ *xml.Environment, m *MigrationOffer, _ *IncomingOptions) { m.Root.Used = 1 << 60 }, "there is no room in"},
		"not empty": {func(e *xml.Environment, _ *MigrationOffer, _ *IncomingOptions) { e.Filesystems[0].Source = full }, "has something in it, and is not the directory of the other host"},
		"other marker": {func(e *xml.Environment, m *MigrationOffer, _ *IncomingOptions) {
			e.Filesystems[0].Source, m.Root.Marker = full, "file"
		}, "has something in it"},
		"no parent": {func(e *xml.Environment, _ *MigrationOffer, _ *IncomingOptions) {
			e.Filesystems[0].Source = full + "/none/root"
		}, "is no directory"},
		"digest": {func(e *xml.Environment, m *MigrationOffer, _ *IncomingOptions) {
			e.Filesystems[0].Type, m.Root = "template", MigrationRoot{Type: "template", Template: Generation{Digest: "sha256-../../etc"}}
		}, "what the other host says of the disk cannot be"},
		"layers": {func(e *xml.Environment, m *MigrationOffer, _ *IncomingOptions) {
			e.Filesystems[0].Type, m.Root = "template", MigrationRoot{Type: "template", Template: Generation{Digest: digest}, LayerIDs: []string{NewSession().ID}}
		}, "what the other host says of the disk cannot be"},
		"layer": {func(e *xml.Environment, m *MigrationOffer, _ *IncomingOptions) {
			e.Filesystems[0].Type, m.Root = "template", MigrationRoot{Type: "template", Template: Generation{Digest: digest}, Layers: []Layer{{}}, LayerIDs: []string{"../x"}}
		}, `"../x" is no layer`},
	} {
		env, offer := offered(filepath.Join(t.TempDir(), "root"))
		o := IncomingOptions{Session: NewSession()}
		c.edit(env, &offer, &o)
		if _, err := r.PrepareMigration(t.Context(), env, offer, o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
	if left, _ := os.ReadDir(r.config.DataDir); len(left) != 0 || len(r.incoming) != 0 {
		t.Errorf("of what was refused there is left: %v", left)
	}
}

// TestPrepareTwice: an ID is used once, also when what came of it is only
// remembered.
func TestPrepareTwice(t *testing.T) {
	r, s := emptyRuntime(t), NewSession()
	in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
	again := func() {
		t.Helper()
		before := readWhole(filepath.Join(r.sessionDir(s.ID), "session.json"))
		env, offer := offered(filepath.Join(t.TempDir(), "root"))
		_, err := r.PrepareMigration(t.Context(), env, offer, IncomingOptions{Session: Session{s.ID, NewSession().Secret}})
		if err == nil || !strings.Contains(err.Error(), "there is a migration with this ID already") {
			t.Errorf("got %v", err)
		}
		if after := readWhole(filepath.Join(r.sessionDir(s.ID), "session.json")); after != before {
			t.Errorf("what is remembered was %s and is %s", before, after)
		}
	}
	again()
	committed := *in.session
	committed.Outcome = Committed
	if err := r.saveSession(&committed); err != nil {
		t.Fatal(err)
	}
	in.settle(Committed)
	again()
	if outcome, err := r.SettleSession(t.Context(), s); outcome != Committed || err != nil {
		t.Errorf("got %q, %v", outcome, err)
	}
}

// TestServeStranger: who does not know the secret of a migration learns nothing
// and changes nothing.
func TestServeStranger(t *testing.T) {
	r, s := emptyRuntime(t), NewSession()
	in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
	wrong := Session{s.ID, NewSession().Secret}
	r.AwaitPull(Outgoing{Session: s, Root: MigrationRoot{Type: "mount", Dir: t.TempDir()}})
	const none = "there is no such migration here"
	for name, c := range map[string]struct {
		hello any
		want  string
	}{
		"version":       {hello{Version: 7, Session: s}, "speaks version 7 of the migration, this one version 1"},
		"no ID":         {hello{Version: 1}, none},
		"a path":        {hello{Version: 1, Session: Session{"../" + s.ID[3:], s.Secret}}, none},
		"unknown":       {hello{Version: 1, Session: NewSession()}, none},
		"wrong secret":  {hello{Version: 1, Session: wrong}, none},
		"no such pull":  {hello{Version: 1, Session: NewSession(), Pull: true}, none},
		"pull of other": {hello{Version: 1, Session: wrong, Pull: true}, none},
		"long":          {hello{Version: 1, Session: Session{ID: strings.Repeat("a", maxStrange)}}, "longer than any can be"},
	} {
		link, served := serve(t.Context(), r)
		ch := newChannel(link)
		sent := ch.send(c.hello)
		var w welcome
		if err := ch.receive(t.Context(), &w); err == nil {
			t.Errorf("%s: %v, and then %+v", name, sent, w)
		}
		if err := <-served; err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
	for name, ask := range map[string]Session{"unknown": NewSession(), "wrong secret": wrong} {
		if outcome, err := r.SettleSession(t.Context(), ask); outcome != Forgotten || err != nil {
			t.Errorf("%s: got %q, %v", name, outcome, err)
		}
	}
	if in.Outcome() != Undecided || r.pulls[s.ID].Session != s {
		t.Error("a stranger has ended a migration")
	}
	if outcome, err := r.SettleSession(t.Context(), s); outcome != Aborted || err != nil {
		t.Errorf("got %q, %v", outcome, err)
	}
}

// TestServeSilent: whoever connects has to say soon what for, and is not heard
// for longer because of pings.
func TestServeSilent(t *testing.T) {
	for name, says := range map[string]string{"nothing": "", "a part": "m\x00\x00\x00\x20{", "pings": strings.Repeat(frameBytes(framePing, ""), 100)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &Runtime{}
				served := make(chan error, 1)
				ctx, cancel := context.WithTimeout(t.Context(), channelPatience+3*channelPulse)
				defer cancel()
				go func() { served <- r.ServeMigration(context.Background(), stranger(t, says, true)) }()
				select {
				case err := <-served:
					if err == nil {
						t.Error("it was served")
					}
				case <-ctx.Done():
					t.Error("it is still waited for")
				}
			})
		})
	}
}

// TestPartsOutOfOrder: a source that sends what is not due is told so, and
// nothing of the environment is left.
func TestPartsOutOfOrder(t *testing.T) {
	end := mirrorRecord(recordEnd, nil)
	disk := []any{part{What: partDisk, Still: true}, end}
	for name, c := range map[string]struct {
		sends []any // parts, and data
		want  string
	}{
		"unknown":      {[]any{part{What: "\x1bsoul"}}, "sends the unknown part"},
		"no part":      {[]any{[]byte("data")}, "sent a frame of the kind 'd' where a message was due"},
		"switch":       {[]any{part{What: partSwitch}}, "cannot switch now"},
		"memory":       {[]any{part{What: partImages, Name: "round-1"}}, "sends memory when it is not due"},
		"memory above": {[]any{part{What: partImages, Name: "../images"}}, "sends memory when it is not due"},
		"a pass":       {[]any{part{What: partDisk}}, "sends the disk when it is not due"},
		"a template":   {[]any{part{What: partTemplate, About: []byte("{}")}}, "sends a template that is not missing"},
		"no template":  {[]any{part{What: partTemplate}}, "what the other host says of the template"},
		"a layer":      {[]any{part{What: partLayer, Name: NewSession().ID, About: []byte("{}")}}, "sends a layer that is not missing"},
		"forget":       {[]any{part{What: partForget}}, "it is not decided that the environment runs here"},
		"no data":      {[]any{disk[0], part{What: partEnd}}, "sent a frame of the kind 'm' among data"},
		"no tree":      {[]any{disk[0], []byte("GET / HTTP/1.1")}, "longer than any can be"},
		"no zstd":      {[]any{disk[0], []byte("\x28\xb5\x2f\xfd\x00\xff\x01\x00\x00")}, "window size exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			r, root := emptyRuntime(t), t.TempDir()
			s := NewSession()
			in := await(t, r, filepath.Join(root, "root"), s)
			link, served := serve(t.Context(), r)
			ch := newChannel(link)
			defer ch.close(nil)
			err := errors.Join(ch.send(hello{Version: migrationVersion, Session: s}), ch.receive(t.Context(), &welcome{}))
			if err == nil {
				err = sendAll(t, ch, c.sends)
			}
			var peer *PeerError
			if !errors.As(err, &peer) || !strings.Contains(peer.text, c.want) {
				t.Errorf("the source hears %v, want %s", err, c.want)
			}
			if err := <-served; err == nil {
				t.Error("no error is told here")
			}
			<-in.Ended()
			if left, _ := os.ReadDir(root); len(left) != 0 || in.Outcome() != Aborted {
				t.Errorf("it is %s, and there is left: %v", in.Outcome(), left)
			}
		})
	}
}

// sendAll sends parts and data, and takes the answer of each part after its data.
func sendAll(t *testing.T, ch *channel, sends []any) (err error) {
	for n := 0; n < len(sends) && err == nil; n++ {
		data, ok := sends[n].([]byte)
		if ok {
			err = ch.sendData(t.Context(), func(int) {}, func(w io.Writer) error { _, err := w.Write(data); return err })
		} else {
			err = ch.send(sends[n])
		}
		if p, _ := sends[n].(part); err == nil && (p.What != partDisk || n+1 == len(sends)) {
			err = ch.receive(t.Context(), &done{})
		}
	}
	return err
}

// TestEndTwice: a disk that has come stays, whatever its source says then.
func TestEndTwice(t *testing.T) {
	r, s, root := emptyRuntime(t), NewSession(), filepath.Join(t.TempDir(), "root")
	in := await(t, r, root, s)
	link, served := serve(t.Context(), r)
	ch := newChannel(link)
	defer ch.close(nil)
	err := errors.Join(ch.send(hello{Version: migrationVersion, Session: s}), ch.receive(t.Context(), &welcome{}))
	if err == nil {
		err = sendAll(t, ch, []any{part{What: partDisk, Still: true}, mirrorRecord(recordEnd, nil), part{What: partEnd}})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := sendAll(t, ch, []any{part{What: partEnd}}); err == nil {
		t.Error("it ends twice")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := in.Commit(t.Context()); err != nil || !exists(root) {
		t.Errorf("the disk is there: %v; %v", exists(root), err)
	}
}

// FuzzIncoming has a source that knows the secret send anything.
func FuzzIncoming(f *testing.F) {
	message := func(text string) string { return frameBytes(frameMessage, text) }
	data := func(records ...[]byte) string {
		return frameBytes(frameData, string(bytes.Join(records, nil))) + frameBytes(frameEnd, "")
	}
	file := mirrorRecord(recordFile, &mirrorEntry{Path: []byte("file"), Mode: unix.S_IFREG | 0o600, Size: 1})
	whole := data(file, mirrorRecord(recordData, append(offset(0), 'x')), mirrorRecord(recordDone, nil), mirrorRecord(recordEnd, nil))
	f.Add([]byte(message(`{"What":"disk","Still":true}`) + whole + message(`{"What":"end"}`) + message(`{"What":"settle"}`)))
	f.Add([]byte(message(`{"What":"disk","Still":true}`) + frameBytes(frameFailure, "why")))
	f.Add([]byte(message(`{"What":"template","Name":"x","About":{}}`) + message(`{"What":"images","Name":"images"}`)))
	f.Fuzz(func(t *testing.T, says []byte) {
		r, s, where := emptyRuntime(t), NewSession(), t.TempDir()
		in := await(t, r, filepath.Join(where, "root"), s)
		begin := message(`{"Version":1,"ID":"` + s.ID + `","Secret":"` + s.Secret + `"}`)
		r.ServeMigration(t.Context(), &script{Reader: io.MultiReader(strings.NewReader(begin), bytes.NewReader(says))})
		complete := in.complete()
		if err := in.Abort(t.Context()); err != nil {
			t.Error(err)
		}
		for _, dir := range []string{where, filepath.Join(r.config.DataDir, "save")} {
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("it was complete: %v, and given up, and there is left: %v", complete, left)
			}
		}
	})
}

// TestMoved: what stood still before this daemon was there has no downtime of 292
// years.
func TestMoved(t *testing.T) {
	c, at := NewMigrationControl(0, DefaultDowntime), time.Now()
	if c.Moved(at); c.Stats().Down != 0 {
		t.Errorf("unknown: %v", c.Stats().Down)
	}
	c.note(func(s *MigrationStats) { s.Frozen = at.Add(-time.Second) })
	if c.Moved(at); c.Stats().Down != time.Second {
		t.Errorf("known: %v", c.Stats().Down)
	}
}

// TestFailedRound: what was written to before a dump that failed may be neither in
// an earlier round nor known any more, so the last is of everything.
func TestFailedRound(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ch := newChannel(ours)
	defer ch.close(nil)
	i := newInstance(emptyRuntime(t), &record{UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Phase: running}, nil)
	m := &outgoing{
		Outgoing: Outgoing{Control: NewMigrationControl(0, DefaultDowntime), Begun: func(int) {}},
		i:        i, ch: ch, dir: t.TempDir(), parent: "round-1",
	}
	if err := m.rounds(t.Context()); err != nil || m.round != 1 || m.parent != "" {
		t.Errorf("%v after round %d, and the next dump lacks what is in %q", err, m.round, m.parent)
	}
}

// TestLeaving: of an environment that may run elsewhere nothing makes another, and
// nothing connects it again.
func TestLeaving(t *testing.T) {
	r := emptyRuntime(t)
	i := newInstance(r, &record{
		UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Name: "web", Phase: running, Unsettled: true,
		Migration: &Leave{Session: NewSession(), Sent: true}, Checkpoint: &recordedCheckpoint{Dir: "/migrate"},
	}, nil)
	before, after := &xml.Environment{}, &xml.Environment{Interfaces: []xml.Interface{{MAC: "02:00:00:00:00:01", Type: "bridge"}}}
	file := filepath.Join(t.TempDir(), "file")
	progress := func(done, total uint64) {}
	snapshot := func() error {
		_, err := i.Snapshot(t.Context(), SavedHeader{}, nil, false, progress)
		return err
	}
	for name, err := range map[string]error{
		"a save":       i.Save(t.Context(), file, SavedHeader{}, nil, progress),
		"a dump":       i.Dump(t.Context(), file, nil, false, progress),
		"a snapshot":   snapshot(),
		"a checkpoint": i.Checkpoint(t.Context(), t.TempDir(), nil, true),
		"a migration":  i.Migrate(t.Context(), Outgoing{}),
		"an interface": i.Tune(t.Context(), before, after, nil),
		"another":      i.Tune(t.Context(), after, before, nil),
	} {
		if !errors.Is(err, ErrLeaving) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := i.Enforce(t.Context(), after); err != nil || !i.rec.Unsettled {
		t.Errorf("what a daemon left undone: %v", err)
	}
	if c := i.rec.Checkpoint; c == nil || c.Dir != "/migrate" || i.Leaving() == nil {
		t.Errorf("the migration is forgotten: %+v, %+v", c, i.rec.Migration)
	}
}

// thawing is systemd, and counts what was thawed.
type thawing struct {
	Scopes
	thawed int
}

func (s *thawing) Thaw(context.Context, string) error {
	s.thawed++
	return nil
}

func (*thawing) RegisterMachine(context.Context, systemd.Machine) error { return nil }

// TestFinishUnplugged: one that came, and whose interfaces cannot be connected,
// runs here all the same: it waits to be resumed, and a later daemon keeps it.
func TestFinishUnplugged(t *testing.T) {
	r := emptyRuntime(t)
	scopes := &thawing{}
	r.config.Scopes = scopes
	s := &session{Session: NewSession(), UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Root: "mount", Outcome: Committed, Began: time.Now()}
	if err := r.saveSession(s); err != nil {
		t.Fatal(err)
	}
	i := newInstance(r, &record{Version: 1, UUID: s.UUID, Name: "web", Phase: held, Session: s.ID, Init: 1 << 30}, nil) // of no process
	if err := errors.Join(os.Mkdir(i.dir, 0o700), i.rec.save(i.dir)); err != nil {
		t.Fatal(err)
	}
	if err := i.FinishMigration(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "web has ended") {
		t.Errorf("it cannot be connected, and that is told: %v", err)
	}
	if scopes.thawed != 0 {
		t.Error("it runs without its network")
	}
	if rec, err := loadRecord(i.dir); err != nil || rec.Phase != running || rec.Session != "" {
		t.Errorf("%+v, %v", rec, err)
	}
	if err := i.Resume(t.Context()); err != nil || scopes.thawed != 1 {
		t.Errorf("it is resumed: %v, thawed %d times", err, scopes.thawed)
	}
}

// TestForgetLast: the destination remembers a migration until its source has done
// what follows: of a daemon that is killed meanwhile the next one asks again.
func TestForgetLast(t *testing.T) {
	for outcome, c := range map[Outcome]struct {
		ended bool
		want  string
	}{
		Committed: {true, partForget}, Lost: {true, partForget}, Aborted: {true, partForget},
		Forgotten: {true, ""}, Undecided: {true, ""},
		Committed + " ": {false, ""}, // it cannot be ended here
	} {
		outcome := Outcome(strings.TrimSpace(string(outcome)))
		i := newInstance(emptyRuntime(t), &record{Version: 1, UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Name: "web", Phase: running, Migration: &Leave{Sent: true}}, nil)
		if err := os.Mkdir(i.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		there := newChannel(theirs)
		i.migration = &outgoing{ch: newChannel(ours), dir: t.TempDir()}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if c.ended {
			close(i.exited)
		} else {
			cancel()
		}
		told := make(chan part, 1)
		go func() {
			var p part
			there.receive(t.Context(), &p)
			told <- p
		}()
		err := i.EndMigration(ctx, outcome, nil)
		if p := <-told; p.What != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q, ended %v: it is told %q, %v", outcome, c.ended, p.What, err)
		}
		there.close(nil)
	}
}

// TestCutRound: a round that ends within what it sends ends the migration, with
// the reason: the other side waits for the rest, and could take nothing else.
func TestCutRound(t *testing.T) {
	ours, theirs := net.Pipe()
	there := newChannel(theirs)
	defer there.close(nil)
	m := &outgoing{
		Outgoing: Outgoing{Control: NewMigrationControl(0, DefaultDowntime), Begun: func(int) {}},
		i:        newInstance(emptyRuntime(t), &record{UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Phase: running}, nil), ch: newChannel(ours), dir: t.TempDir(),
		mirror: &mirrorSource{root: -1},
	}
	defer m.ch.close(nil)
	told := make(chan error, 1)
	go func() {
		var p part
		if err := there.receive(t.Context(), &p); err != nil {
			t.Error(err)
		}
		told <- there.receiveData(t.Context(), func(r io.Reader) error { return nil })
	}()
	err := m.rounds(t.Context())
	if err == nil || !strings.Contains(err.Error(), "disk: bad file descriptor") {
		t.Fatalf("got %v", err)
	}
	m.ch.fail(err)
	if err := <-told; err == nil || !strings.Contains(err.Error(), "the other host says: disk: bad file descriptor") {
		t.Errorf("the other side is told %v", err)
	}
}

// TestEndedDecided: one that was decided to run here and ended before it was let
// go is this host's, as its source is told; one that was only held is not.
func TestEndedDecided(t *testing.T) {
	for outcome, want := range map[Outcome]bool{Committed: true, Undecided: false} {
		r, s := emptyRuntime(t), NewSession()
		in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
		if err := r.decide(s.ID, outcome); err != nil {
			t.Fatal(err)
		}
		i := newInstance(r, &record{Version: 1, UUID: formatUUID(in.env.UUID), Name: "web", Phase: held, Session: s.ID, Init: 1 << 30}, nil) // of no process
		if err := errors.Join(os.Mkdir(i.dir, 0o700), i.rec.save(i.dir)); err != nil {
			t.Fatal(err)
		}
		later := emptyRuntime(t)
		later.config = r.config
		adopted, ended, err := later.Recover(t.Context(), nil)
		if len(adopted) != 0 || len(ended) != 1 || err != nil {
			t.Fatalf("%v, %+v, %v", adopted, ended, err)
		}
		if ended[0].Started != want {
			t.Errorf("%q: it had been started: %v", outcome, ended[0].Started)
		}
	}
}

// TestAbortedInPart: nothing of one that was given up runs here, also when its disk
// cannot be removed, and so its source may go on.
func TestAbortedInPart(t *testing.T) {
	r, s := emptyRuntime(t), NewSession()
	in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
	in.session.Stage = filepath.Join(r.sessionDir(s.ID), "session.json", "disk") // below a file
	if err := in.Abort(t.Context()); err == nil {
		t.Fatal("its disk was removed")
	}
	for range 2 {
		if outcome, err := r.SettleSession(t.Context(), s); outcome != Aborted || err != nil {
			t.Errorf("its source is told %q, %v", outcome, err)
		}
	}
}

// TestGivenUpHeld: what is held here goes when its source says that it gave up, for
// then it goes on there. A connection that ends says nothing of that kind.
func TestGivenUpHeld(t *testing.T) {
	for says, want := range map[string]Outcome{"the disk is full": Aborted, "": Undecided} {
		r, s := emptyRuntime(t), NewSession()
		in := await(t, r, filepath.Join(t.TempDir(), "root"), s)
		link, served := serve(t.Context(), r)
		ch := newChannel(link)
		if err := errors.Join(ch.send(hello{Version: migrationVersion, Session: s}), ch.receive(t.Context(), &welcome{})); err != nil {
			t.Fatal(err)
		}
		i := newInstance(r, &record{UUID: formatUUID(in.env.UUID), Name: in.env.Name, Phase: held, Session: s.ID}, nil)
		close(i.exited) // it is not a process, and so can be ended
		in.mu.Lock()
		in.instance = i
		in.mu.Unlock()
		if says != "" {
			ch.fail(errors.New(says))
		}
		ch.close(nil)
		<-served
		if in.Outcome() != want {
			t.Errorf("%q: it is %q", says, in.Outcome())
		}
	}
}
