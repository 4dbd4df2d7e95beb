package runtime

import (
	"errors"
	"net"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

func TestMovedLink(t *testing.T) {
	w := newSpace(t)
	link := addLink(t, w, cable("nic0"))
	n := xml.Interface{Type: "hostdev", Source: "nic0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")}}
	if err := w.host.LinkAddAltName(link, "nic-alt"); err != nil {
		t.Fatal(err)
	}
	p := mustPlan(t, n, Plug{}, "nic0", "wan")
	if err := w.lend(&p); err != nil {
		t.Fatal(err)
	}
	made, err := w.add(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.inside); !strings.HasPrefix(got, "wan veth") || !strings.Contains(got, "192.0.2.9/24") {
		t.Errorf("inside:\n%s", got)
	}
	// Root inside changes what he can, and has another of its name.
	guest, _ := w.inside.LinkByName("wan")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	err = errors.Join(w.inside.LinkSetDown(guest), w.inside.LinkSetName(guest, "mine"), w.inside.LinkSetHardwareAddr(guest, mac),
		w.inside.LinkSetMTU(guest, 1280), w.inside.LinkAddAltName(guest, "eth-of-host"),
		w.inside.LinkSetARPOff(guest), w.inside.SetPromiscOn(guest), w.inside.LinkSetMulticastOff(guest), w.inside.LinkSetTxQLen(guest, 1))
	blocker := netlink.NewVeth(named("nic0"))
	blocker.PeerName = "nic0-far"
	if err := errors.Join(err, w.inside.LinkAdd(blocker)); err != nil {
		t.Fatal(err)
	}
	addLink(t, w, cable("eth-of-host"))
	l := &recordedLink{ID: n.ID(), Type: "hostdev", Host: "nic0", MAC: link.Attrs().HardwareAddr.String(), GuestIndex: made.guest, WasUp: true, NIC: p.NIC}
	if err := takeAway(l, slices.Values([]*wires{w})); err != nil {
		t.Fatal(err)
	}
	if err := takeAway(l, slices.Values([]*wires{w})); err == nil || !strings.Contains(err.Error(), "it is not where it was put") {
		t.Errorf("once more when it is back: %v", err)
	}
	if err := bringBack(w.host, l, w); err != nil {
		t.Errorf("when it is back: %v", err)
	}
	back, err := w.host.LinkByName("nic0")
	if err != nil {
		t.Fatal(err)
	}
	if a := back.Attrs(); a.Flags&net.FlagUp == 0 || a.MTU != link.Attrs().MTU || a.TxQLen != link.Attrs().TxQLen ||
		a.RawFlags&(unix.IFF_NOARP|unix.IFF_PROMISC|unix.IFF_MULTICAST) != unix.IFF_MULTICAST || !slices.Equal(a.AltNames, []string{"nic-alt"}) {
		t.Errorf("it is not what it was: %+v", a)
	}
	w.host.LinkDel(&netlink.Veth{LinkAttrs: named("eth-of-host")})
	if got := state(t, w.host); !strings.Contains(got, "nic0 veth "+link.Attrs().HardwareAddr.String()) || strings.Contains(got, "192.0.2.9") {
		t.Errorf("host:\n%s", got)
	}
	addLink(t, w, &netlink.Bridge{LinkAttrs: named("br0")})
	bridge, _ := w.host.LinkByName("br0")
	nic, _ := w.host.LinkByName("nic0")
	if err := w.host.LinkSetMaster(nic, bridge); err != nil {
		t.Fatal(err)
	}
	if _, err := w.add(p); err == nil || !strings.Contains(err.Error(), "nic0 is a port of br0") {
		t.Errorf("a port of a bridge: %v", err)
	}
}

// nested gives another network namespace, as root inside may make one.
func nested(t *testing.T, w *wires) *wires {
	t.Helper()
	made := make(chan *os.File)
	go func() {
		goruntime.LockOSThread()
		unix.Unshare(unix.CLONE_NEWNET)
		f, _ := os.Open("/proc/thread-self/ns/net")
		made <- f
	}()
	deep, err := openWires(<-made)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(deep.close)
	return deep
}

// TestHiddenLink: root inside may move what has no end on the host on, and make
// more macvlans of one. It is found there, or not said to be gone.
func TestHiddenLink(t *testing.T) {
	w := newSpace(t)
	deep := nested(t, w)
	up := addLink(t, w, cable("up0"))
	nic := addLink(t, w, cable("nic0"))
	lent := mustPlan(t, xml.Interface{Type: "hostdev", Source: "nic0"}, Plug{}, "nic0", "nic0")
	if err := w.lend(&lent); err != nil {
		t.Fatal(err)
	}
	direct := mustPlan(t, xml.Interface{Type: "direct", Source: "up0", MAC: "52:54:00:00:00:01", Mode: "bridge"}, Plug{}, "macvlan0", "eth0")
	add := func(p linkPlan) *recordedLink {
		t.Helper()
		made, err := w.add(p)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("this kernel has no macvlan links")
		}
		if err != nil {
			t.Fatal(err)
		}
		return &recordedLink{ID: p.ID, Type: p.Type, Parent: p.Parent, Host: p.Host, Guest: p.Guest, GuestIndex: made.guest, MAC: p.MAC.String(), NIC: p.NIC}
	}
	hide := func(index int) {
		t.Helper()
		link, err := w.inside.LinkByIndex(index)
		if err == nil {
			err = w.inside.LinkSetNsFd(link, int(deep.space.Fd()))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []linkPlan{lent, direct} {
		l := add(p)
		hide(l.GuestIndex)
		// One of the same number is not it.
		other := netlink.NewVeth(named("other"))
		other.Index, other.PeerName = l.GuestIndex, "other-far"
		if p.Type == "direct" {
			if err := w.inside.LinkAdd(other); err != nil {
				t.Fatal(err)
			}
		}
		if err := takeAway(l, slices.Values([]*wires{w})); err == nil || !strings.Contains(err.Error(), "it is not where it was put") {
			t.Errorf("%s, hidden: %v", p.Type, err)
		}
		if err := takeAway(l, slices.Values([]*wires{w, deep})); err != nil {
			t.Errorf("%s, found: %v", p.Type, err)
		}
		w.inside.LinkDel(other)
	}
	if _, err := w.host.LinkByName(nic.Attrs().Name); err != nil {
		t.Errorf("it is not back: %v", err)
	}
	// Of a macvlan root inside makes another, and the first is taken away.
	l := add(direct)
	attrs := named("more")
	attrs.ParentIndex = l.GuestIndex
	if err := w.inside.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		t.Fatal(err)
	}
	more, _ := w.inside.LinkByName("more")
	hide(more.Attrs().Index)
	// And one of his own, which is none of the host's.
	own := netlink.NewVeth(named("own"))
	own.PeerName = "own-far"
	if err := w.inside.LinkAdd(own); err != nil {
		t.Fatal(err)
	}
	attrs = named("theirs")
	if link, err := w.inside.LinkByName("own"); err == nil {
		attrs.ParentIndex = link.Attrs().Index
	}
	if err := w.inside.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
		t.Fatal(err)
	}
	if err := takeAway(l, slices.Values([]*wires{w, deep})); err != nil {
		t.Fatal(err)
	}
	if got := state(t, deep.inside); got != "" {
		t.Errorf("left hidden:\n%s", got)
	}
	if got := state(t, w.inside); strings.Contains(got, "eth0") || !strings.Contains(got, "theirs macvlan") {
		t.Errorf("inside:\n%s", got)
	}
	// With the parent all of them go.
	l = add(direct)
	w.host.LinkDel(up)
	if err := takeAway(l, slices.Values([]*wires{w})); err != nil {
		t.Errorf("of a parent that is gone: %v", err)
	}
}

// TestRefusedMove: what cannot be moved stays as it was, and what a daemon that
// was killed had brought back is set up by the next.
func TestRefusedMove(t *testing.T) {
	w := newSpace(t)
	link := addLink(t, w, cable("nic0"), "192.0.2.9/24")
	route := insideRoute(xml.Route{To: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}, link.Attrs().Index)
	if err := errors.Join(w.host.RouteAdd(route), w.inside.LinkAdd(cable("nic0"))); err != nil {
		t.Fatal(err)
	}
	was := state(t, w.host)
	r := &Runtime{config: Config{StateDir: t.TempDir(), DataDir: t.TempDir()}, links: linkState{host: w.host, claims: map[string]string{}}}
	i := &Instance{r: r, uuid: testUUID, rec: &record{UUID: formatUUID(testUUID), Name: "web1"}, dir: t.TempDir()}
	n := xml.Interface{Type: "hostdev", Source: "nic0", Guest: "wan"}
	if err := i.addInterface(t.Context(), w, n, []xml.Interface{n}); !errors.Is(err, unix.EEXIST) {
		t.Fatalf("there is one of its name inside: %v", err)
	}
	l := i.link(n.ID())
	isUp := func() bool {
		nic, err := w.host.LinkByName("nic0")
		if err != nil {
			t.Fatal(err)
		}
		return nic.Attrs().Flags&net.FlagUp != 0
	}
	if got := state(t, w.host); got != was || !isUp() {
		t.Errorf("refused, up %v:\n%s", isUp(), got)
	}
	if err := w.host.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	if err := r.removeLink(t.Context(), testUUID, l, w, false); err != nil || !isUp() {
		t.Errorf("left down, and removed: %v, up %v", err, isUp())
	}
}

// TestRemovedTwice: what could not be removed of an environment that has ended
// is when it is tried again, and nothing of what others have got meanwhile.
func TestRemovedTwice(t *testing.T) {
	w := newSpace(t)
	bridge := addLink(t, w, bridgeNamed("br0"))
	nic := addLink(t, w, cable("nic0"))
	space, err := dupFile(w.space)
	if err != nil {
		t.Fatal(err)
	}
	r := &Runtime{config: Config{StateDir: t.TempDir(), DataDir: t.TempDir()}}
	r.links = linkState{host: w.host, claims: map[string]string{}, spaces: map[[16]byte]*os.File{testUUID: space}, next: map[string]int{}}
	i := newInstance(r, &record{UUID: formatUUID(testUUID), Name: "web1", Phase: running}, nil)
	r.instances = map[[16]byte]*Instance{testUUID: i}
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	port := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Addresses: addresses("192.0.2.2/24")}
	lent := xml.Interface{Type: "hostdev", Source: "nic0"}
	for _, n := range []xml.Interface{port, lent} {
		if err := i.addInterface(t.Context(), w, n, []xml.Interface{n}); err != nil {
			t.Fatal(err)
		}
	}
	answer := proxy{netip.MustParseAddr("198.51.100.7"), "br0"}
	claims := i.link(port.ID()).Claims
	i.link(port.ID()).Proxies = []proxy{answer}
	blocker := addLink(t, w, bridgeNamed("nic0")) // in the way of what is to come back
	if err := r.removeLinks(t.Context(), testUUID, i.rec); err == nil || !strings.Contains(err.Error(), "bring nic0 back") {
		t.Fatalf("with another in its place: %v", err)
	}
	rec, err := loadRecord(i.dir)
	if err != nil || len(rec.Links) != 1 || rec.Links[0].ID != lent.ID() {
		t.Errorf("noted: %+v, %v", rec, err)
	}
	if err := r.claimLinks("web2", rec.Links[0].Claims); err == nil {
		t.Error("what is not yet back is another's")
	}
	if err := errors.Join(r.claimLinks("web2", claims), w.addProxies([]proxy{answer})); err != nil {
		t.Fatal(err)
	}
	if err := w.host.LinkDel(blocker); err != nil {
		t.Fatal(err)
	}
	if err := r.removeLinks(t.Context(), testUUID, i.rec); err != nil {
		t.Fatal(err)
	}
	if back, err := w.host.LinkByName("nic0"); err != nil || back.Attrs().HardwareAddr.String() != nic.Attrs().HardwareAddr.String() {
		t.Errorf("not back: %v, %v", back, err)
	}
	if len(r.links.claims) != len(claims) || r.links.spaces[testUUID] != nil {
		t.Errorf("claims %v, spaces %v", r.links.claims, r.links.spaces)
	}
	if list, err := w.host.NeighProxyList(bridge.Attrs().Index, unix.AF_INET); err != nil || len(list) != 1 {
		t.Errorf("another's are not answered for: %v, %v", list, err)
	}
}
