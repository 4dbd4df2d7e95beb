package runtime

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// TestLinkStates: what an environment stands on is seen to change, whatever the
// way, and what does not concern it is not.
func TestLinkStates(t *testing.T) {
	w := newSpace(t)
	known := map[string]string{}
	changed := func() string {
		t.Helper()
		links, err := w.host.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := w.host.AddrList(nil, unix.AF_UNSPEC)
		if err != nil {
			t.Fatal(err)
		}
		now := linkStates(links, addrs)
		var list []string
		for name, state := range now {
			if known[name] != state {
				list = append(list, name)
			}
		}
		known = now
		slices.Sort(list)
		return strings.Join(list, " ")
	}
	expect := func(what, want string) {
		t.Helper()
		if got := changed(); got != want {
			t.Errorf("%s: %q changed, want %q", what, got, want)
		}
	}
	expect("nothing is there", "")
	up := addLink(t, w, cable("up0"))
	expect("a link without an address", "")
	addr, _ := netlink.ParseAddr("198.51.100.1/24")
	w.host.AddrAdd(up, addr)
	expect("it has one", "up0")
	expect("nothing happens", "")
	w.host.LinkSetDown(up)
	expect("it goes down", "up0")
	w.host.LinkSetUp(up)
	expect("and comes up", "up0")
	far, _ := w.host.LinkByName("up0-far")
	w.host.LinkSetUp(far)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) { // the kernel takes its time
		if list := changed(); list == "up0" {
			break
		} else if list != "" || time.Now().After(end) {
			t.Fatalf("the cable is plugged in: %q changed", list)
		}
	}
	addLink(t, w, cable("other0"), "169.254.0.1/32")
	expect("an address that says nothing", "")
	addLink(t, w, &netlink.Bridge{LinkAttrs: named("br0")})
	expect("a bridge", "br0")
	bridge, _ := w.host.LinkByName("br0")
	if err := w.host.BridgeSetVlanFiltering(bridge, true); err == nil {
		expect("it tells VLANs apart", "br0")
	}
	w.host.LinkDel(bridge)
	expect("it goes", "")
	addLink(t, w, &netlink.Bridge{LinkAttrs: named("br0")})
	expect("and is there again", "br0")
}

func TestStandsOn(t *testing.T) {
	i := &Instance{rec: &record{Links: []*recordedLink{{Type: "bridge", Parent: "br0"}}}}
	routed := &Instance{rec: &record{Links: []*recordedLink{{Type: "ethernet", Routed: true}}}}
	for _, c := range []struct {
		changed      map[string]bool
		first, other bool
	}{
		{map[string]bool{"br0": true, "eth0": false}, true, true},
		{map[string]bool{"br0": false, "eth0": true}, false, true},
		{map[string]bool{"br0": false, "eth0": false}, false, false},
	} {
		if i.standsOn(c.changed) != c.first || routed.standsOn(c.changed) != c.other {
			t.Errorf("%v: %v, %v", slices.Sorted(maps.Keys(c.changed)), i.standsOn(c.changed), routed.standsOn(c.changed))
		}
	}
}

// TestRenewProxies: the kernel forgets whom to answer for when a link goes
// down, and another link may have its address later.
func TestRenewProxies(t *testing.T) {
	w := newSpace(t)
	up := addLink(t, w, cable("up0"), "198.51.100.1/24")
	late := addLink(t, w, cable("late0"))
	n := xml.Interface{Type: "ethernet", MAC: "52:54:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.20/32"), netip.MustParsePrefix("203.0.113.20/32")}}
	p := mustPlan(t, n, Plug{}, "vnet0", "eth0")
	l := &recordedLink{ID: n.ID()}
	i := &Instance{rec: &record{Links: []*recordedLink{l}}, dir: t.TempDir()}
	expect := func(what string, want ...string) {
		t.Helper()
		if err := i.renewProxies(w, l, p); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		var got []string
		for _, link := range []netlink.Link{up, late} {
			list, _ := w.host.NeighProxyList(link.Attrs().Index, unix.AF_INET)
			for _, q := range list {
				got = append(got, fmt.Sprint(q.IP, " ", link.Attrs().Name))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("at first", "198.51.100.20 up0")
	w.host.LinkSetDown(up)
	w.host.LinkSetUp(up)
	if list, _ := w.host.NeighProxyList(up.Attrs().Index, unix.AF_INET); len(list) > 0 {
		t.Logf("this kernel remembers %v", list)
	}
	addr, _ := netlink.ParseAddr("203.0.113.1/24")
	w.host.AddrAdd(late, addr)
	expect("after a flap, and an address on another", "198.51.100.20 up0", "203.0.113.20 late0")
	if want := "[{198.51.100.20 up0} {203.0.113.20 late0}]"; fmt.Sprint(l.Proxies) != want {
		t.Errorf("recorded %v, want %s", l.Proxies, want)
	}
	if err := removeProxies(w.host, l.Proxies); err != nil {
		t.Error(err)
	}
	l.Proxies = nil
	p.Addresses = nil
	expect("without an address")
}

// TestSeenCounts: a look at a link that is being deleted takes nothing away.
func TestSeenCounts(t *testing.T) {
	h := &hostWatch{counts: map[int]seenCounts{}}
	much, less := InterfaceStats{Received: Traffic{Bytes: 900, Packets: 9}}, InterfaceStats{Sent: Traffic{Bytes: 100, Packets: 1}}
	h.saw(7, much)
	h.saw(7, less)
	if got := h.counts[7].InterfaceStats; got != (InterfaceStats{much.Received, less.Sent}) {
		t.Errorf("%+v", got)
	}
}

// TestWatchAgain: the host's links are watched again when that has failed.
func TestWatchAgain(t *testing.T) {
	real := subscribe
	defer func() { subscribe = real }()
	synctest.Test(t, func(t *testing.T) {
		r, tries, began := &Runtime{stop: make(chan struct{})}, 0, time.Now()
		subscribe = func(chan<- netlink.LinkUpdate, <-chan struct{}) error {
			if tries++; tries == 3 {
				close(r.stop)
			}
			return unix.EMFILE
		}
		r.watchHost()
		if paused := time.Since(began); tries != 3 || paused < time.Second {
			t.Errorf("tried %d times within %s", tries, paused)
		}
	})
}
