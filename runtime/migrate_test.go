package runtime

import (
	"archive/tar"
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
		instances: map[[16]byte]*Instance{}, claims: map[[16]byte]claim{}, incoming: map[string]*Incoming{}, pulls: map[string]pull{},
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
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
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
	r.AwaitPull(s, MigrationRoot{Type: "mount", Dir: t.TempDir()})
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
	if in.Outcome() != Undecided || r.pulls[s.ID].session != s {
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

// TestMoveDisk moves the disk of an environment that is shut off, sent by the
// source or asked for by the destination.
func TestMoveDisk(t *testing.T) {
	for name, move := range map[string]func(from, to *Runtime, in *Incoming, root MigrationRoot) error{
		"sent": func(from, to *Runtime, in *Incoming, root MigrationRoot) error {
			link, served := serve(t.Context(), to)
			dial := func(context.Context) (io.ReadWriteCloser, error) { return link, nil }
			err := from.SendDisk(t.Context(), Outgoing{Session: in.options.Session, Dial: dial, Root: root, Control: NewMigrationControl(0, 0), Compress: true})
			return errors.Join(err, <-served)
		},
		"asked for": func(from, to *Runtime, in *Incoming, root MigrationRoot) error {
			from.AwaitPull(in.options.Session, root)
			link, served := serve(t.Context(), from)
			return errors.Join(in.Pull(t.Context(), link), <-served)
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to, target := emptyRuntime(t), emptyRuntime(t), filepath.Join(t.TempDir(), "root")
			in := await(t, to, target, NewSession())
			p := newMirrorPair(t, onDisk)
			os.WriteFile(filepath.Join(p.from, "file"), bytes.Repeat([]byte("text"), 1<<20), 0o640)
			os.Symlink("/etc/passwd", filepath.Join(p.from, "link"))
			if _, err := in.Commit(t.Context()); err == nil {
				t.Fatal("it was committed before anything came")
			}
			if err := move(from, to, in, MigrationRoot{Type: "mount", Dir: p.from}); err != nil {
				t.Fatal(err)
			}
			if exists(target) != in.complete() {
				t.Error("the disk is not where it belongs")
			}
			if _, err := in.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.to = target
			p.same()
			if err := in.Abort(t.Context()); err != errCommitted || !exists(filepath.Join(target, "file")) {
				t.Errorf("a late abort: %v", err)
			}
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

// TestTakeTar: of what comes as images only images are written, where they belong.
func TestTakeTar(t *testing.T) {
	header := func(name string, kind byte) *tar.Header {
		return &tar.Header{Name: name, Typeflag: kind, Mode: 0o777, Size: map[bool]int64{true: 4}[kind == tar.TypeReg], Linkname: "/etc/passwd"}
	}
	file := func(name string) *tar.Header { return header(name, tar.TypeReg) }
	for name, c := range map[string]struct {
		part string
		has  []*tar.Header
		want string // of the error
	}{
		"images":           {"images", []*tar.Header{file("images/core-1.img"), file("images/pages_1"), file("manifest.json")}, ""},
		"a round":          {"round-1", []*tar.Header{file("round-1/core-1.img")}, ""},
		"of another":       {"round-1", []*tar.Header{file("images/core-1.img")}, "is no image"},
		"manifest early":   {"round-1", []*tar.Header{file("manifest.json")}, "is no image"},
		"beside":           {"images", []*tar.Header{file("evil")}, "is no image"},
		"above":            {"images", []*tar.Header{file("images/../../evil")}, "is no image"},
		"the directory":    {"images", []*tar.Header{file("images/..")}, "file exists"},
		"absolute":         {"images", []*tar.Header{file("/images/evil")}, "is no image"},
		"deeper":           {"images", []*tar.Header{file("images/a/b")}, "is no image"},
		"a directory":      {"images", []*tar.Header{header("images/", tar.TypeDir)}, "is no image"},
		"a link":           {"images", []*tar.Header{header("images/core-1.img", tar.TypeSymlink)}, "is no image"},
		"a hard link":      {"images", []*tar.Header{header("images/core-1.img", tar.TypeLink)}, "is no image"},
		"a device":         {"images", []*tar.Header{header("images/core-1.img", tar.TypeBlock)}, "is no image"},
		"twice":            {"images", []*tar.Header{file("images/a"), file("images/a")}, "file exists"},
		"in place of one":  {"images", []*tar.Header{file("images/parent")}, "file exists"},
		"to the terminal":  {"images", []*tar.Header{file("images/\x1b]0;")}, "is no image"},
		"longer than that": {"images", []*tar.Header{file("images/" + strings.Repeat("a", 101))}, "is no image"},
	} {
		t.Run(name, func(t *testing.T) {
			where := t.TempDir()
			dir := filepath.Join(where, "incoming")
			outside := filepath.Join(where, "outside")
			os.MkdirAll(filepath.Join(dir, c.part), 0o700)
			os.WriteFile(outside, []byte("kept"), 0o600)
			os.Symlink(outside, filepath.Join(dir, c.part, "parent"))
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range c.has {
				err := w.WriteHeader(h)
				if err == nil {
					_, err = io.WriteString(w, "text"[:h.Size])
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			w.Close()
			err := takeTar(dir, c.part, &b)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\x1b")) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			for _, h := range c.has {
				if c.want == "" && readWhole(filepath.Join(dir, h.Name)) != "text" {
					t.Errorf("%s is not there", h.Name)
				}
			}
			if left, _ := os.ReadDir(where); len(left) != 2 || readWhole(outside) != "kept" {
				t.Errorf("outside there is %v", left)
			}
		})
	}
}

// TestBaseGoneMeanwhile: what a disk stands on that is on its way here may be
// removed until it takes its place. Then it does not, and what was here stays.
func TestBaseGoneMeanwhile(t *testing.T) {
	for name, remove := range map[string]func(l *Layers, layer string) error{
		"nothing": func(*Layers, string) error { return nil },
		"template": func(l *Layers, layer string) error {
			return errors.Join(l.Release(layersUUID, layer), l.templates.Remove("base"))
		},
		"layer": func(l *Layers, layer string) error { return l.Release(layersUUID, layer) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newTestLayers(t)
			r := &Runtime{config: Config{DataDir: filepath.Dir(l.dir), StateDir: l.state}}
			base := again(t, l.templates, "base", "2")
			layer := newLayerID()
			made := Layer{Of: formatUUID(layersUUID), Template: base.Digest}
			if err := errors.Join(os.MkdirAll(filepath.Join(l.layerDir(layer), "rootfs"), 0o700), l.describe(l.layerDir(layer), made)); err != nil {
				t.Fatal(err)
			}
			write(t, l.upper(layersUUID), "was=here")
			s := &session{Session: NewSession(), UUID: formatUUID(layersUUID), Name: "web", Root: "template", Began: time.Now()}
			offer := &MigrationOffer{Root: MigrationRoot{Template: base, LayerIDs: []string{layer}}}
			if name == "template" { // right below the disk
				offer.Root.LayerIDs = nil
			}
			if err := errors.Join(r.saveSession(s), r.stageDisk(s, offer, xml.Filesystem{Type: "template"})); err != nil {
				t.Fatal(err)
			}
			write(t, s.stage(r), "came=here")
			if err := remove(l, layer); err != nil {
				t.Fatal(err)
			}
			err := r.placeDisk(s)
			if name == "nothing" {
				if got := l.shows(t, layersUUID); err != nil || got != "came=here text=2" {
					t.Errorf("it did not take its place: %v: %s", err, got)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), "migrate it again") {
				t.Errorf("it took its place: %v", err)
			}
			if err := r.undoDisk(s); err != nil {
				t.Error(err)
			}
			if got := l.shows(t, layersUUID); got != "text=1 was=here" {
				t.Errorf("what was here: %s", got)
			}
		})
	}
}

// TestKeptDiskGone: what came here may have left again, or was removed, before
// the migration is forgotten.
func TestKeptDiskGone(t *testing.T) {
	r := emptyRuntime(t)
	s := &session{Session: NewSession(), UUID: "6f9619ff-8b86-4011-b42d-00cf4fc964ff", Root: "template", Outcome: Committed, Began: time.Now()}
	if err := r.saveSession(s); err != nil {
		t.Fatal(err)
	}
	if _, err := r.recoverSessions(); err != nil {
		t.Error(err)
	}
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
		"a checkpoint": i.Checkpoint(t.Context(), t.TempDir(), nil),
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
