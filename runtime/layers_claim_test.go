package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"virtvzd/xml"
)

// stopAt has whoever is the first to come by a step wait there until goOn.
func stopAt(t *testing.T, step string) (reached chan bool, goOn func()) {
	t.Helper()
	reached, release := make(chan bool), make(chan bool)
	var first sync.Once
	was := atStep
	atStep = func(at string) error {
		if at == step {
			first.Do(func() {
				close(reached)
				<-release
			})
		}
		return nil
	}
	t.Cleanup(func() { atStep = was })
	return reached, sync.OnceFunc(func() { close(release) })
}

// joiningSteps are those at which a layer is joined without the lock of all.
var joiningSteps = []string{"join look", "join move", "join entry"}

// chainShows is what a disk of chainForJoin shows.
const chainShows = "a=2 b=0 c=1 d/ d/x=1 e=3 text=1"

// chainForJoin makes a disk on the layers zero, one and two, from the bottom.
func chainForJoin(t *testing.T, l *Layers, uuid [16]byte) (zero, one, two string) {
	t.Helper()
	write(t, l.upper(uuid), "a=0", "b=0")
	zero = must[string](t)(l.Push(uuid))
	write(t, l.upper(uuid), "a=1", "c=1", "d/x=1", "gone=1")
	one = must[string](t)(l.Push(uuid))
	write(t, l.upper(uuid), "a=2", "-gone")
	two = must[string](t)(l.Push(uuid))
	write(t, l.upper(uuid), "e=3")
	if got := l.shows(t, uuid); got != chainShows {
		t.Fatal(got)
	}
	return zero, one, two
}

// endsSoon fails the test if something does not end for somebody else's sake.
func endsSoon(t *testing.T, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatalf("%s waits", what)
		return nil
	}
}

func begin(do func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

// TestJoinAlone: while layers are joined all that is others' goes on.
func TestJoinAlone(t *testing.T) {
	other, clone, third := [16]byte{2}, [16]byte{3}, [16]byte{4}
	for _, step := range joiningSteps {
		t.Run(step, func(t *testing.T) {
			l := newTestLayers(t)
			_, one, two := chainForJoin(t, l, layersUUID)
			use(t, l.templates, formatUUID(other), "web")
			write(t, l.upper(other), "o=1")
			reached, goOn := stopAt(t, step)
			defer goOn()
			joined := begin(func() error { return l.Release(layersUUID, one) })
			<-reached
			var layer string
			for _, does := range []struct {
				what string
				do   func() error
			}{
				{"a start", func() error { _, _, err := l.below(other); return err }},
				{"a first start", func() error {
					_, err := l.templates.pin(t.Context(), "web", l.privateDir(formatUUID([16]byte{5})))
					return err
				}},
				{"a snapshot", func() (err error) { layer, err = l.Push(other); return err }},
				{"the keeping of it", func() error { return l.Keep(other, layer) }},
				{"a revert to it", func() error { return l.Revert(other, layer) }},
				{"a clone", func() error { return l.Clone(other, "", clone) }},
				{"a clone of a snapshot", func() error { return l.Clone(other, layer, third) }},
				{"the end of a clone", func() error { return l.Remove(clone) }},
				{"an adoption", func() error { return l.Adopt(third, clone) }},
				{"a look at all", func() error { _, err := l.Roots(); return err }},
				{"a snapshot of a running one", func() error {
					_, err := l.Copy(t.Context(), other, func(do func() error) error { return do() }, nil)
					return err
				}},
				{"the end of a snapshot", func() error { return l.Release(other, layer) }},
				{"its own snapshot's keeping", func() error { return l.Keep(layersUUID, two) }},
				{"the giving up of its own", func() error { return l.GiveUp(layersUUID, two) }},
			} {
				if err := endsSoon(t, does.what, begin(does.do)); err != nil {
					t.Errorf("%s: %v", does.what, err)
				}
			}
			goOn()
			if err := endsSoon(t, "the join", joined); err != nil {
				t.Error(err)
			}
			if got, other := l.shows(t, layersUUID), l.shows(t, other); got != chainShows || other != "o=1 text=1" {
				t.Errorf("it shows %q, the other %q", got, other)
			}
			for _, id := range []string{one, two} { // the second was given up meanwhile
				if exists(l.layerDir(id)) {
					t.Errorf("layer %s is left", id)
				}
			}
		})
	}
}

// TestJoinAwaited: what would find a disk's layers half joined waits, and then
// finds them joined.
func TestJoinAwaited(t *testing.T) {
	own, to := formatUUID(layersUUID), [16]byte{2}
	type chain struct{ zero, one, two string }
	for name, does := range map[string]struct {
		do    func(t *testing.T, l *Layers, c chain) error
		of    [16]byte // whose disk it is then
		shows string
	}{
		"start": {func(t *testing.T, l *Layers, c chain) error {
			if err := os.MkdirAll(filepath.Join(l.state, own), 0o700); err != nil {
				return err
			}
			_, layers, err := l.below(layersUUID)
			for _, dir := range layers {
				if !exists(dir) {
					t.Errorf("it starts without %s", dir)
				}
			}
			return err
		}, layersUUID, chainShows},
		"push":                 {func(_ *testing.T, l *Layers, _ chain) error { _, err := l.Push(layersUUID); return err }, layersUUID, chainShows},
		"revert":               {func(_ *testing.T, l *Layers, c chain) error { return l.Revert(layersUUID, c.zero) }, layersUUID, "a=0 b=0 text=1"},
		"clone":                {func(_ *testing.T, l *Layers, _ chain) error { return l.Clone(layersUUID, "", to) }, to, chainShows},
		"clone of what starts": {func(_ *testing.T, l *Layers, _ chain) error { return l.clone(layersUUID, "", to, true) }, to, chainShows},
		"adopt":                {func(_ *testing.T, l *Layers, _ chain) error { return l.Adopt(layersUUID, to) }, to, chainShows},
		"remove":               {func(_ *testing.T, l *Layers, _ chain) error { return l.Remove(layersUUID) }, layersUUID, ""},
		"another collect":      {func(_ *testing.T, l *Layers, _ chain) error { return l.Collect(layersUUID) }, layersUUID, chainShows},
		"offer":                {func(_ *testing.T, l *Layers, _ chain) error { return l.offer(own, &MigrationRoot{}) }, layersUUID, chainShows},
		"replaced by one that comes": {func(t *testing.T, l *Layers, c chain) error {
			r := &Runtime{config: Config{DataDir: filepath.Dir(l.dir), StateDir: l.state}}
			layer, err := l.layer(c.zero)
			if err != nil {
				return err
			}
			s := &session{Session: NewSession(), UUID: own, Name: "web", Root: "template", Began: time.Now()}
			offer := &MigrationOffer{Root: MigrationRoot{Template: Generation{Digest: layer.Template}, LayerIDs: []string{c.zero}}}
			if err := errors.Join(r.saveSession(s), r.stageDisk(s, offer, xml.Filesystem{Type: "template"})); err != nil {
				return err
			}
			return r.placeDisk(s)
		}, layersUUID, "a=0 b=0 text=1"},
		"undone": {func(t *testing.T, l *Layers, _ chain) error {
			r := &Runtime{config: Config{DataDir: filepath.Dir(l.dir), StateDir: l.state}}
			s := &session{Session: NewSession(), UUID: own, Name: "web", Root: "template", Began: time.Now()}
			dir := l.privateDir(own)
			d, err := readDisk(dir)
			d.Incoming = s.ID
			if err := errors.Join(err, r.saveSession(s), d.save(dir)); err != nil {
				return err
			}
			return r.undoDisk(s)
		}, layersUUID, ""},
	} {
		for above, step := range map[string]string{"layer": "join look", "disk": "join entry"} {
			t.Run(name+"/"+above, func(t *testing.T) {
				l := newTestLayers(t)
				var c chain
				c.zero, c.one, c.two = chainForJoin(t, l, layersUUID)
				released := c.one
				if above == "disk" {
					released = c.two
				}
				reached, goOn := stopAt(t, step)
				defer goOn()
				joined := begin(func() error { return l.Release(layersUUID, released) })
				<-reached
				done := begin(func() error { return does.do(t, l, c) })
				select {
				case err := <-done:
					t.Fatalf("it did not wait: %v", err)
				case <-time.After(30 * time.Millisecond):
				}
				goOn()
				if err := errors.Join(endsSoon(t, "the join", joined), endsSoon(t, "it", done)); err != nil {
					t.Fatal(err)
				}
				if exists(l.layerDir(released)) {
					t.Error("the layer is left")
				}
				if does.shows == "" {
					if exists(l.privateDir(own)) {
						t.Error("the disk is left")
					}
				} else if got := l.shows(t, does.of); got != does.shows {
					t.Errorf("it shows %q", got)
				}
				if list, err := l.all(); err != nil || slices.ContainsFunc(list, func(layer Layer) bool { return layer.Below == released }) {
					t.Errorf("one stands on what is gone: %+v, %v", list, err)
				}
			})
		}
	}
}

// TestStartBetweenJoins: a start waits for the layer that is being joined, and no
// other is begun with.
func TestStartBetweenJoins(t *testing.T) {
	l := newTestLayers(t)
	_, one, two := chainForJoin(t, l, layersUUID)
	reached, goOn := stopAt(t, "join entry")
	defer goOn()
	if err := errors.Join(l.GiveUp(layersUUID, one), l.GiveUp(layersUUID, two)); err != nil {
		t.Fatal(err)
	}
	collected := begin(func() error { return l.Collect(layersUUID) })
	<-reached
	state := filepath.Join(l.state, formatUUID(layersUUID))
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	var chain []string
	started := begin(func() (err error) { _, chain, err = l.below(layersUUID); return err })
	time.Sleep(30 * time.Millisecond) // it waits, see TestJoinAwaited
	goOn()
	if err := errors.Join(endsSoon(t, "the collecting", collected), endsSoon(t, "the start", started)); err != nil {
		t.Fatal(err)
	}
	if exists(l.layerDir(one)) == exists(l.layerDir(two)) {
		t.Errorf("left are %v", l.left(t))
	}
	for _, dir := range chain {
		if !exists(dir) {
			t.Errorf("it runs without %s", dir)
		}
	}
	if len(chain) != 2 {
		t.Errorf("it runs on %v", chain)
	}
	os.Remove(state)
	if err := l.Collect(layersUUID); err != nil {
		t.Fatal(err)
	}
	if got := l.shows(t, layersUUID); got != chainShows || exists(l.layerDir(one)) || exists(l.layerDir(two)) {
		t.Errorf("it shows %q, left are %v", got, l.left(t))
	}
}

// TestHalfJoined: a layer of which part is in what stands on it is what it was for
// nobody else, also of those who come from another host and had it there.
func TestHalfJoined(t *testing.T) {
	to := [16]byte{2}
	l := newTestLayers(t)
	_, one, _ := chainForJoin(t, l, layersUUID)
	entries := 0
	atStep = func(step string) error {
		if step == "join entry" {
			if entries++; entries == 3 {
				panic(killed{step})
			}
		}
		return nil
	}
	func() {
		defer func() { atStep = func(string) error { return nil } }()
		defer func() { recover() }()
		l.Release(layersUUID, one)
	}()
	if layer, err := l.layer(one); err != nil || !layer.Joining || view(t, filepath.Join(l.layerDir(one), "rootfs")) == "a=1 c=1 d/ d/x=1 gone=1" {
		t.Fatalf("it is not half joined: %+v, %v", layer, err)
	}
	state := filepath.Join(l.state, formatUUID(layersUUID))
	if err := os.MkdirAll(state, 0o700); err != nil { // it cannot be gone on with now
		t.Fatal(err)
	}
	if err := l.Clone(layersUUID, one, to); err == nil || !strings.Contains(err.Error(), "is no snapshot any more") {
		t.Errorf("cloned: %v", err)
	}
	os.Remove(state)
	if err := l.Revert(layersUUID, one); err == nil || !strings.Contains(err.Error(), "is no snapshot any more") {
		t.Errorf("reverted: %v", err)
	}
	r := &Runtime{config: Config{DataDir: filepath.Dir(l.dir), StateDir: l.state}, instances: map[[16]byte]*Instance{}, incoming: map[string]*Incoming{}}
	about, err := l.layer(one)
	if err != nil {
		t.Fatal(err)
	}
	about.Joining = false // there
	env := &xml.Environment{Name: "web", UUID: to, Filesystems: []xml.Filesystem{{Type: "template", Source: "web"}}}
	offer := MigrationOffer{Version: migrationVersion, UUID: formatUUID(to), Inactive: true, Root: MigrationRoot{
		Type: "template", Template: Generation{Digest: about.Template}, Layers: []Layer{about}, LayerIDs: []string{one}}}
	if _, err := r.PrepareMigration(t.Context(), env, offer, IncomingOptions{Session: NewSession()}); err == nil || !strings.Contains(err.Error(), "was taken apart") {
		t.Errorf("prepared: %v", err)
	}
	s := &session{Session: NewSession(), UUID: formatUUID(to), Name: "web", Root: "template", Began: time.Now()} // before it was
	if err := errors.Join(r.saveSession(s), r.stageDisk(s, &offer, xml.Filesystem{Type: "template"})); err != nil {
		t.Fatal(err)
	}
	if err := r.placeDisk(s); err == nil || !strings.Contains(err.Error(), "was taken apart") {
		t.Errorf("placed: %v", err)
	}
	if got := l.shows(t, layersUUID); got != chainShows {
		t.Errorf("it shows %q", got)
	}
	if err := l.Collect(layersUUID); err != nil || exists(l.layerDir(one)) {
		t.Errorf("not joined: %v", err)
	}
	if got := l.shows(t, layersUUID); got != chainShows {
		t.Errorf("joined it shows %q", got)
	}
}
