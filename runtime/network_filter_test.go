package runtime

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"virtvzd/xml"
)

// filterDaemon is libvirt's, as far as it is asked.
type filterDaemon struct {
	mu    sync.Mutex
	away  bool
	loses bool // takes away what it cannot replace
	bound map[string]Binding
	calls []string
	gone  func() // runs while something is bound
}

func (d *filterDaemon) Bind(_ context.Context, b Binding) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, "bind "+b.Device)
	if d.away {
		return errors.New("away")
	}
	if d.loses {
		delete(d.bound, b.Device)
		return &UnboundError{errors.New("no such filter")}
	}
	d.bound[b.Device] = b
	if d.gone != nil {
		d.gone()
	}
	return nil
}

func (d *filterDaemon) Unbind(_ context.Context, device string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, "unbind "+device)
	if d.away {
		return errors.New("away")
	}
	delete(d.bound, device)
	return nil
}

func (d *filterDaemon) Keep(context.Context) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, "keep")
}

func withFilter(t *testing.T) (*Instance, *filterDaemon, linkPlan, *wires) {
	w := newSpace(t)
	addLink(t, w, cable("up0"))
	addLink(t, w, bridgeNamed("br0"))
	d := &filterDaemon{bound: map[string]Binding{}}
	r := &Runtime{config: Config{StateDir: t.TempDir(), DataDir: t.TempDir(), Filters: d}, links: linkState{host: w.host}}
	i := &Instance{r: r, uuid: testUUID, rec: &record{UUID: formatUUID(testUUID), Name: "web1"}, dir: t.TempDir()}
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Filter: xml.Filter{Name: "clean-traffic"}}
	p := mustPlan(t, n, Plug{}, "vnet0", "eth0")
	p.Guarded = true
	made, err := w.add(p)
	skipWithout(t, err)
	if err != nil {
		t.Fatal(err)
	}
	i.rec.Links = []*recordedLink{{ID: n.ID(), Type: "bridge", MAC: n.MAC, Host: "vnet0", HostIndex: made.host, GuestIndex: made.guest}}
	return i, d, p, w
}

// Nothing from inside passes before the filter is bound; when that fails
// nothing ever does.
func TestFilterGuards(t *testing.T) {
	i, d, p, w := withFilter(t)
	l := i.rec.Links[0]
	guards := func() bool {
		t.Helper()
		link, err := w.host.LinkByName("vnet0")
		if err != nil {
			t.Fatal(err)
		}
		rules := traffic(t, w.host, link)
		if rules != "" && rules != "7 shot" {
			t.Errorf("something passes:\n%s", rules)
		}
		return rules != ""
	}
	if !guards() {
		t.Error("traffic passes before there is a filter")
	}
	d.away = true
	if err := i.bindFilter(context.Background(), w, l, p); err == nil || !guards() {
		t.Errorf("a filter that cannot be: %v, guarded %v", err, guards())
	}
	d.away = false
	if err := i.bindFilter(context.Background(), w, l, p); err != nil || guards() {
		t.Errorf("with its filter: %v, guarded %v", err, guards())
	}
	if b := d.bound["vnet0"]; b.MAC != l.MAC || b.Owner != "web1" || b.Filter.Name != "clean-traffic" {
		t.Errorf("bound %+v", b)
	}
	p.Filter, p.Guarded = xml.Filter{}, false
	if err := i.bindFilter(context.Background(), w, l, p); err != nil || len(d.bound) != 0 || l.Filter.Name != "" {
		t.Errorf("taken away: %v, %v", err, d.bound)
	}
}

// What cannot be removed while the daemon is away is when it is back, unless
// another has the name by then.
func TestFilterDebt(t *testing.T) {
	i, d, p, w := withFilter(t)
	ctx := context.Background()
	if err := i.bindFilter(ctx, w, i.rec.Links[0], p); err != nil {
		t.Fatal(err)
	}
	d.away = true
	if err := i.r.removeLink(ctx, testUUID, i.rec.Links[0], w, false); err != nil {
		t.Fatal(err)
	}
	noted := filepath.Join(i.r.config.StateDir, "bindings", "vnet0")
	if _, err := os.Stat(noted); err != nil {
		t.Fatal(err)
	}
	d.away = false
	i.r.retryDebts(ctx)
	if _, err := os.Stat(noted); err == nil || len(d.bound) != 0 {
		t.Errorf("not settled: %v, %v", err, d.bound)
	}
	if err := i.r.settleDebt(unbound, "vnet0", "", errors.New("away")); err != nil {
		t.Fatal(err)
	}
	made, err := w.add(p)
	if err != nil {
		t.Fatal(err)
	}
	i.rec.Links[0].HostIndex = made.host
	if err := i.bindFilter(ctx, w, i.rec.Links[0], p); err != nil {
		t.Fatal(err)
	}
	i.r.retryDebts(ctx)
	i.r.retryUnbind(ctx, "vnet0") // as one that had seen the note before
	if len(d.bound) != 1 {
		t.Error("the filter of another was removed")
	}
}

// After a restart the filters are there again, but not those of an interface
// that is removed before or meanwhile.
func TestFilterRenewed(t *testing.T) {
	i, d, p, w := withFilter(t)
	ctx, l := context.Background(), i.rec.Links[0]
	l.Filter = p.Filter
	i.renewFilters(ctx)
	if len(d.bound) != 1 {
		t.Errorf("bound %v", d.bound)
	}
	removed := make(chan error)
	d.gone = func() {
		d.gone = nil
		go func() { removed <- i.r.removeLink(ctx, testUUID, l, w, false) }()
	}
	i.renewFilters(ctx)
	if err := <-removed; err != nil || len(d.bound) != 0 {
		t.Errorf("removed meanwhile: %v, bound %v", err, d.bound)
	}
	i.renewFilters(ctx)
	if len(d.bound) != 0 {
		t.Errorf("bound %v after it was removed", d.bound)
	}
}

// TestFilterKept: libvirt's daemon is kept while an environment has a filter.
func TestFilterKept(t *testing.T) {
	d := &filterDaemon{}
	i := &Instance{uuid: testUUID, rec: &record{Links: []*recordedLink{{ID: "52:54:00:00:00:01", Host: "vnet0"}}}}
	r := &Runtime{config: Config{Filters: d}, instances: map[[16]byte]*Instance{testUUID: i}}
	r.keepFilters(t.Context())
	if len(d.calls) > 0 {
		t.Errorf("without a filter: %q", d.calls)
	}
	i.rec.Links[0].Filter = xml.Filter{Name: "clean-traffic"}
	r.keepFilters(t.Context())
	if !slices.Equal(d.calls, []string{"keep"}) {
		t.Errorf("with one: %q", d.calls)
	}
	r.config.Filters = nil
	r.keepFilters(t.Context())
}

// TestFilterLost: without the filter that was there before a restart nothing
// from inside passes, and whoever runs the environment hears of it, until it
// can be bound again.
func TestFilterLost(t *testing.T) {
	i, d, p, w := withFilter(t)
	i.changed = make(chan struct{}, 1)
	i.r.instances = map[[16]byte]*Instance{testUUID: i}
	i.r.links.claims = map[string]string{}
	ctx, l := t.Context(), i.rec.Links[0]
	l.Guest, l.Parent = "eth0", "br0"
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: l.MAC, Filter: p.Filter, Outbound: xml.Rate{Average: 1 << 20}}
	if err := i.changeInterface(ctx, w, n, n, []xml.Interface{n}, []xml.Interface{n}); err != nil {
		t.Fatal(err)
	}
	link, err := w.host.LinkByName("vnet0")
	if err != nil {
		t.Fatal(err)
	}
	limited := traffic(t, w.host, link)
	expect := func(what string, passes, told bool) {
		t.Helper()
		i.r.retryFilters()
		select {
		case <-i.changed:
			if passes {
				t.Errorf("%s: is tried again", what)
			}
		default:
			if !passes {
				t.Errorf("%s: is not tried again", what)
			}
		}
		rules, warnings := traffic(t, w.host, link), strings.Join(i.Warnings(), "\n")
		held := rules == "7 shot" || rules == limited+"\n7 shot" // the rate says only what passes no further
		if passes && rules != limited || !passes && !held || strings.Contains(warnings, "nothing that is sent by network interface 52:54:00:00:00:01 passes") != told {
			t.Errorf("%s: %q, %q", what, rules, warnings)
		}
	}
	renew := func() error {
		return i.renewLink(ctx, w, l, n, []xml.Interface{n})
	}
	d.away = true
	i.renewFilters(ctx)
	expect("while libvirt's daemon is away", true, false)
	d.away, d.loses = false, true
	i.renewFilters(ctx)
	expect("lost", false, true)
	if err := renew(); err == nil {
		t.Error("bound by a daemon that cannot")
	}
	expect("still lost", false, true)
	rec, err := loadRecord(i.dir)
	if err != nil {
		t.Fatal(err)
	}
	i.rec = rec // of the next daemon
	l, d.loses, d.away = rec.Links[0], false, true
	i.renewFilters(ctx)
	expect("lost, and another daemon", false, true)
	d.away = false
	if err := renew(); err != nil || d.bound["vnet0"].Filter.Name != p.Filter.Name {
		t.Errorf("%v, bound %v", err, d.bound)
	}
	expect("mended", true, false)
}

// TestFilterRefused: while the filter that an interface has stays bound, what
// comes from inside passes, whatever else is refused or is changed. When it may
// be gone nothing does until another is bound.
func TestFilterRefused(t *testing.T) {
	i, d, p, w := withFilter(t)
	i.r.links.claims = map[string]string{}
	ctx, l := t.Context(), i.rec.Links[0]
	l.Guest, l.Parent = "eth0", "br0"
	if err := i.bindFilter(ctx, w, l, p); err != nil {
		t.Fatal(err)
	}
	a := xml.Interface{Type: "bridge", Source: "br0", MAC: l.MAC, Filter: p.Filter}
	b := a
	b.Filter = xml.Filter{Name: "other"}
	down := a
	down.Down = true
	change := func(from, to xml.Interface) error {
		err := i.changeInterface(ctx, w, from, to, []xml.Interface{from}, []xml.Interface{to})
		if err != nil { // as changeInterfaces does
			err = errors.Join(err, i.changeInterface(ctx, w, to, from, []xml.Interface{to}, []xml.Interface{from}))
		}
		return err
	}
	expect := func(what string, err error, refused, guarded bool, bound string) {
		t.Helper()
		link, e := w.host.LinkByName("vnet0")
		if e != nil {
			t.Fatal(e)
		}
		if got := traffic(t, w.host, link); (err != nil) != refused || (got != "") != guarded || d.bound["vnet0"].Filter.Name != bound {
			t.Errorf("%s: %v, %q, bound %q", what, err, got, d.bound["vnet0"].Filter.Name)
		}
	}
	d.away = true
	expect("another, which cannot be bound", change(a, b), true, false, "clean-traffic")
	expect("down", change(a, down), false, false, "clean-traffic")
	expect("up", change(down, a), false, false, "clean-traffic")
	d.away, d.loses = false, true
	expect("another, which takes the first away", change(a, b), true, true, "")
	d.away, d.loses = true, false
	expect("once more, with nothing bound", change(a, b), true, true, "")
	expect("down, with nothing bound", change(a, down), true, true, "")
	d.away = false
	i.renewFilters(ctx)
	expect("it is back", change(a, b), false, false, "other")
	d.loses = true
	change(b, a)
	d.loses = false
	if err := i.r.removeLink(ctx, testUUID, l, w, false); err != nil || !slices.Contains(d.calls, "unbind vnet0") {
		t.Errorf("removed: %v, %v", err, d.calls)
	}
}

// TestFilterNoted: the record says what is bound and not what was to be, and
// whether that is known.
func TestFilterNoted(t *testing.T) {
	i, d, p, w := withFilter(t)
	p.Guarded = false
	a, b := xml.Filter{Name: "a"}, xml.Filter{Name: "b"}
	i.rec.Links[0].Filter = a // as an earlier daemon wrote it
	d.bound["vnet0"] = Binding{Filter: a}
	for _, c := range []struct {
		to          xml.Filter
		away, loses bool
		refused     bool
		has         xml.Filter
		rebinding   bool
	}{
		{to: b, away: true, refused: true, has: a},
		{to: a, away: true, has: a},
		{to: b, has: b},
		{to: a, loses: true, refused: true, rebinding: true},
		{to: b, away: true, refused: true, rebinding: true},
		{to: a, has: a},
		{to: xml.Filter{}},
		{to: b, away: true, refused: true},
		{to: b, loses: true, refused: true, rebinding: true},
		{to: xml.Filter{}},
	} {
		d.away, d.loses = c.away, c.loses
		p.Filter = c.to
		err := i.bindFilter(t.Context(), w, i.rec.Links[0], p)
		rec, e := loadRecord(i.dir)
		if e != nil {
			t.Fatal(e)
		}
		l := rec.Links[0]
		if (err != nil) != c.refused || l.Filter.Name != c.has.Name || l.Rebinding != c.rebinding || i.has(l, c.has) == c.rebinding || d.bound["vnet0"].Filter.Name != c.has.Name {
			t.Errorf("%+v: %v, noted %+v, bound %v", c, err, l.Filter, d.bound)
		}
	}
}
