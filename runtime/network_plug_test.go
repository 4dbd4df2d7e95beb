package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"virtvzd/xml"
)

// fakeNetworks has what virsh net-port-list would show. As libvirt it gives a
// port what the interface asks for, or else what the network has.
type fakeNetworks struct {
	own   Plug
	ports map[string]Port
	fail  error
}

func (n *fakeNetworks) Find(context.Context, string) (string, error) { return n.own.Bridge, n.fail }

func (n *fakeNetworks) Plug(_ context.Context, p Port) (Plug, error) {
	if n.fail != nil {
		return Plug{}, n.fail
	}
	n.ports[p.UUID] = p
	plug := n.own
	plug.Isolated = plug.Isolated || p.Isolated
	if !p.VLAN.IsZero() {
		plug.VLAN = p.VLAN
	}
	if p.Inbound != (xml.Rate{}) || p.Outbound != (xml.Rate{}) {
		plug.Inbound, plug.Outbound = p.Inbound, p.Outbound
	}
	return plug, nil
}

func (n *fakeNetworks) Unplug(_ context.Context, _, uuid string) error {
	delete(n.ports, uuid)
	return nil
}

func (n *fakeNetworks) Release(context.Context, string, string) error { return nil }

func (n *fakeNetworks) Limit(_ context.Context, _, uuid string, in, out xml.Rate) error {
	p, ok := n.ports[uuid]
	if !ok {
		return fmt.Errorf("lan: %w", ErrNoPort)
	}
	p.Inbound, p.Outbound = in, out
	n.ports[uuid] = p
	return nil
}

func (n *fakeNetworks) String() string {
	var list []string
	for _, p := range n.ports {
		list = append(list, fmt.Sprintf("%s isolated=%v vlan=%v in=%d out=%d", p.MAC, p.Isolated, p.VLAN, p.Inbound.Average, p.Outbound.Average))
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// plugged is an environment's interface n in the network lan.
func plugged(t *testing.T, lan *fakeNetworks, n xml.Interface) (*Instance, *recordedLink) {
	t.Helper()
	lan.ports = map[string]Port{}
	i := &Instance{r: &Runtime{config: Config{Networks: lan, StateDir: t.TempDir()}}, rec: &record{}, dir: t.TempDir()}
	l := &recordedLink{ID: n.ID(), Type: "bridge", MAC: n.MAC, Host: "vnet0", Parent: "virbr0"}
	i.rec.Links = []*recordedLink{l}
	if _, err := i.plugIn(t.Context(), l, n); err != nil {
		t.Fatal(err)
	}
	return i, l
}

// TestReplug: an interface has what it asks for, and what the network gives
// when it asks for nothing any more; the network knows.
func TestReplug(t *testing.T) {
	nic := xml.Interface{Type: "network", Source: "lan", MAC: "52:54:00:00:00:01"}
	with := func(edit func(*xml.Interface)) xml.Interface {
		n := nic
		edit(&n)
		return n
	}
	limited := with(func(n *xml.Interface) { n.Inbound.Average = 3 })
	tagged := with(func(n *xml.Interface) { n.VLAN.Native = 42 })
	alone := with(func(n *xml.Interface) { n.Isolated = true })
	down := with(func(n *xml.Interface) { n.Down = true })
	isolating := Plug{Bridge: "virbr0", Isolated: true, VLAN: xml.VLAN{Native: 7}, Outbound: xml.Rate{Average: 9}}
	for _, c := range []struct {
		name     string
		own      Plug
		from, to xml.Interface
		port     string // what the network has then
		plan     string
	}{
		{"a limit that was there from the start is taken away", Plug{Bridge: "virbr0"}, limited, nic, "isolated=false vlan={0 false []} in=0 out=0", ""},
		{"then the network's holds", isolating, limited, nic, "isolated=false vlan={0 false []} in=0 out=0", "isolated=true vlan={7 false []} out={9 0 0 0}"},
		{"a VLAN is taken away", Plug{Bridge: "virbr0"}, tagged, nic, "isolated=false vlan={0 false []} in=0 out=0", ""},
		{"a VLAN is changed", Plug{Bridge: "virbr0"}, nic, tagged, "isolated=false vlan={42 false []} in=0 out=0", "vlan={42 false []}"},
		{"isolation is taken away", Plug{Bridge: "virbr0"}, alone, nic, "isolated=false vlan={0 false []} in=0 out=0", ""},
		{"the network isolates whatever is changed", isolating, nic, down, "isolated=false vlan={0 false []} in=0 out=0", "down=true isolated=true vlan={7 false []} out={9 0 0 0}"},
		{"a limit is given", isolating, nic, limited, "isolated=false vlan={0 false []} in=3 out=0", "isolated=true vlan={7 false []} in={3 0 0 0}"},
	} {
		lan := &fakeNetworks{own: c.own}
		i, l := plugged(t, lan, c.from)
		plug, err := i.replug(t.Context(), l, c.from, c.to)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for _, p := range l.Ports[:len(l.Ports)-1] { // as dropStale does
			lan.Unplug(t.Context(), p.Network, p.UUID)
		}
		if want := "52:54:00:00:00:01 " + c.port; lan.String() != want {
			t.Errorf("%s: the network has\n%s\nwant\n%s", c.name, lan, want)
		}
		p, err := planLink(c.to, []xml.Interface{c.to}, plug, "H", "G")
		if want := strings.TrimSpace("bridge M of=virbr0 host=H guest=G " + c.plan); err != nil || strings.ReplaceAll(p.String(), nic.MAC, "M") != want {
			t.Errorf("%s: planned\n%s, %v\nwant\n%s", c.name, p.String(), err, want)
		}
	}
}

// TestReplugLost: the end of a network takes its ports along, and a port that
// could not be made is not taken for one.
func TestReplugLost(t *testing.T) {
	lan := &fakeNetworks{own: Plug{Bridge: "virbr0"}}
	nic := xml.Interface{Type: "network", Source: "lan", MAC: "52:54:00:00:00:01"}
	i, l := plugged(t, lan, nic)
	first := l.port()
	limited, tagged := nic, nic
	limited.Inbound.Average, tagged.VLAN.Native = 3, 42
	lan.fail = errors.New("the network is not active")
	if _, err := i.replug(t.Context(), l, nic, tagged); !errors.Is(err, lan.fail) {
		t.Errorf("a port that cannot be made: %v", err)
	}
	if l.port() != first || len(l.Ports) != 1 {
		t.Errorf("the port in use is %v of %v", l.port(), l.Ports)
	}
	clear(lan.ports)
	if _, err := i.replug(t.Context(), l, nic, limited); !errors.Is(err, lan.fail) {
		t.Errorf("a limit while it is not active: %v", err)
	}
	lan.fail = nil
	if _, err := i.replug(t.Context(), l, nic, limited); err != nil {
		t.Errorf("a limit when it is again: %v", err)
	}
	if want := "52:54:00:00:00:01 isolated=false vlan={0 false []} in=3 out=0"; lan.String() != want {
		t.Errorf("the network has\n%s\nwant\n%s", lan, want)
	}
}

// hangingNetworks answers nothing.
type hangingNetworks struct{ *fakeNetworks }

func hang(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // as the real one has
	defer cancel()
	<-ctx.Done()
	return ctx.Err()
}

func (hangingNetworks) Release(ctx context.Context, _, _ string) error { return hang(ctx) }

func (hangingNetworks) Unplug(ctx context.Context, _, _ string) error { return hang(ctx) }

// TestHangingDebt: what is left to be removed while libvirt's daemon hangs is not
// waited for by who has nothing to do with it.
func TestHangingDebt(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, bridgeNamed("br0"))
	i := instanceIn(t, w)
	i.r.config.Networks = hangingNetworks{}
	if err := i.r.settleDebt(unplugged, newPortID(), "lan", errors.New("away")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01"}
	if err := i.addInterfaces(ctx, []xml.Interface{n}, []xml.Interface{n}); err != nil || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

// TestRecoverHanging: a daemon that starts while libvirt's hangs waits for it
// once, however much is left of environments that have ended.
func TestRecoverHanging(t *testing.T) {
	w := newSpace(t)
	synctest.Test(t, func(t *testing.T) {
		r := &Runtime{config: Config{StateDir: t.TempDir(), DataDir: t.TempDir(), Networks: hangingNetworks{}}, instances: map[[16]byte]*Instance{}}
		r.links = linkState{host: w.host, claims: map[string]string{}, spaces: map[[16]byte]*os.File{}, next: map[string]int{}}
		for n := range 5 {
			uuid := testUUID
			uuid[15] = byte(n)
			rec := &record{UUID: formatUUID(uuid), Name: fmt.Sprint("web", n), Phase: running, Killed: true}
			rec.Links = []*recordedLink{{ID: "52:54:00:00:00:01", Type: "bridge", MAC: "52:54:00:00:00:01", Host: "vnet0", HostIndex: 1 << 20, Ports: []recordedPort{{"lan", newPortID()}}}}
			if err := os.MkdirAll(r.dir(uuid), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := rec.save(r.dir(uuid)); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		_, ended, err := r.Recover(t.Context(), map[string]*os.File{})
		if took := time.Since(began); err != nil || len(ended) != 5 || took > time.Minute {
			t.Errorf("%d have ended, %v, after %s", len(ended), err, took)
		}
		if ports, err := os.ReadDir(filepath.Join(r.config.StateDir, unplugged)); err != nil || len(ports) != 5 {
			t.Errorf("%d ports are to be removed later, %v", len(ports), err)
		}
		time.Sleep(10 * time.Minute) // until it has been tried again for each
		synctest.Wait()
	})
}
