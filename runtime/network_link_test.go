package runtime

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// inMachine tells whether this is the machine of the tests, where nothing is missing.
func inMachine() bool { return os.Getenv("VIRTVZD_TEST_ROOTS") != "" }

// skipWithout skips a test where a module of the kernel is missing: on whatever
// host this is, but not in the machine of the tests.
func skipWithout(t *testing.T, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), "the kernel has no") && !inMachine() {
		t.Skip(err)
	}
}

// newSpace puts the test's thread into a network namespace of its own, which
// stands for the host's, and gives another for an environment.
func newSpace(t *testing.T) *wires {
	t.Helper()
	needRoot(t, "network namespaces can only be made by root")
	goruntime.LockOSThread() // for good: the thread ends with the test
	make := func() *os.File {
		if err := unix.Unshare(unix.CLONE_NEWNET); errors.Is(err, unix.EPERM) {
			t.Skip("root of this host may not make network namespaces")
		} else if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	inside := make()
	make().Close()
	w, err := openWires(inside)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	for _, h := range []*netlink.Handle{w.host, w.inside} {
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// addLink makes a link of the host's side.
func addLink(t *testing.T, w *wires, link netlink.Link, addresses ...string) netlink.Link {
	t.Helper()
	if err := w.host.LinkAdd(link); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) && !inMachine() {
			t.Skipf("this kernel has no %s links", link.Type())
		}
		t.Fatal(err)
	}
	made, err := w.host.LinkByName(link.Attrs().Name)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		addr, _ := netlink.ParseAddr(a)
		if err := w.host.AddrAdd(made, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.host.LinkSetUp(made); err != nil {
		t.Fatal(err)
	}
	return made
}

func named(name string) netlink.LinkAttrs {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	return attrs
}

// cable is a link with the other end at hand, for one of the host's hardware.
func cable(name string) netlink.Link {
	veth := netlink.NewVeth(named(name))
	veth.PeerName = name + "-far"
	return veth
}

func mustPlan(t *testing.T, n xml.Interface, plug Plug, host, guest string) linkPlan {
	t.Helper()
	p, err := planLink(n, []xml.Interface{n}, plug, host, guest)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// state lists what is there, of links and routes, on one side.
func state(t *testing.T, h *netlink.Handle) string {
	t.Helper()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		if a.Name == "lo" || strings.HasSuffix(a.Name, "0") && (l.Type() == "sit" || l.Type() == "ip6tnl") {
			continue
		}
		fmt.Fprintf(&b, "%s %s %s\n", a.Name, l.Type(), a.HardwareAddr)
		addrs, _ := h.AddrList(l, unix.AF_INET)
		for _, a := range addrs {
			fmt.Fprintf(&b, "  %s\n", a.IPNet)
		}
		routes, _ := h.RouteList(l, unix.AF_INET)
		for _, r := range routes {
			fmt.Fprintf(&b, "  %s via %s\n", r.Dst, r.Gw)
		}
		proxies, _ := h.NeighProxyList(a.Index, unix.AF_INET)
		for _, p := range proxies {
			fmt.Fprintf(&b, "  answers for %s\n", p.IP)
		}
	}
	return b.String()
}

func TestBridgeLink(t *testing.T) {
	w := newSpace(t)
	attrs := named("br0")
	attrs.MTU, attrs.HardwareAddr = 1400, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	addLink(t, w, &netlink.Bridge{LinkAttrs: attrs})
	before := state(t, w.host)
	n := xml.Interface{
		Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Isolated: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")},
		Routes:    []xml.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.1")}},
	}
	p := mustPlan(t, n, Plug{}, "vnet7", "eth0")
	made, err := w.add(p)
	if err != nil {
		t.Fatal(err)
	}
	if want := "eth0 veth 52:54:00:00:00:01\n  192.0.2.2/24\n  0.0.0.0/0 via 192.0.2.1\n  192.0.2.0/24 via <nil>\n"; state(t, w.inside) != want {
		t.Errorf("inside:\n%swant\n%s", state(t, w.inside), want)
	}
	host, err := w.host.LinkByName("vnet7")
	if err != nil {
		t.Fatal(err)
	}
	bridge, _ := w.host.LinkByName("br0")
	if a := host.Attrs(); a.MasterIndex != bridge.Attrs().Index || a.MTU != 1400 || a.HardwareAddr.String() != "fe:54:00:00:00:01" || a.Index != made.host {
		t.Errorf("host's end: %+v", a)
	}
	// Names are the kernel's to find: another of the same is refused, and undone.
	second := p
	second.Guest = "eth1"
	if _, err := w.add(second); err == nil || !strings.Contains(err.Error(), "there is a network interface vnet7 on the host already") {
		t.Errorf("the same name: %v", err)
	}
	second.Host, second.Guest = "vnet8", "eth0"
	if _, err := w.add(second); err == nil || !strings.Contains(err.Error(), "there is a network interface eth0 inside already") {
		t.Errorf("the same name inside: %v", err)
	}
	// Root inside renames it: it is the same one.
	guest, _ := w.inside.LinkByName("eth0")
	w.inside.LinkSetDown(guest)
	if err := w.inside.LinkSetName(guest, "wan"); err != nil {
		t.Fatal(err)
	}
	changed := p
	changed.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.3/24")}
	if err := w.setUpInside(changed, made.guest, &p); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.inside); !strings.Contains(got, "wan veth") || strings.Contains(got, "192.0.2.2") || !strings.Contains(got, "192.0.2.3/24\n  0.0.0.0/0 via 192.0.2.1") {
		t.Errorf("after renaming and a change:\n%s", got)
	}
	if err := w.unmake(p.Type, made); err != nil {
		t.Fatal(err)
	}
	if err := w.unmake(p.Type, made); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := w.setUpInside(p, made.guest, nil); err == nil || !strings.Contains(err.Error(), "deleted inside") {
		t.Errorf("set up a link that is gone: %v", err)
	}
	if got := state(t, w.host) + state(t, w.inside); got != before {
		t.Errorf("left:\n%swant\n%s", got, before)
	}
}

func TestLinkRefused(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, cable("dummy0"))
	for _, c := range []struct {
		n    xml.Interface
		want string
	}{
		{xml.Interface{Type: "bridge", Source: "br7"}, "there is no bridge br7 on this host"},
		{xml.Interface{Type: "bridge", Source: "dummy0"}, "is no bridge"},
		{xml.Interface{Type: "direct", Source: "eth7"}, "there is no network interface eth7 on this host"},
		{xml.Interface{Type: "hostdev", Source: "eth7"}, "there is no network interface eth7 on this host"},
		{xml.Interface{Type: "hostdev", Source: "lo"}, "cannot be moved"},
	} {
		if c.n.Type != "hostdev" {
			c.n.MAC = "52:54:00:00:00:01"
		}
		_, err := w.add(mustPlan(t, c.n, Plug{}, "vnet0", "eth0"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v", c.n.Type, c.n.Source, err)
		}
	}
	if got := state(t, w.inside); got != "" {
		t.Errorf("inside:\n%s", got)
	}
}

// TestRoutedLink: the host routes to the addresses and answers for them, and
// only those pass.
func TestRoutedLink(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, cable("up0"), "198.51.100.1/24", "2001:db8:5::1/64")
	addLink(t, w, cable("other"), "203.0.113.1/24")
	before := state(t, w.host)
	n := xml.Interface{Type: "ethernet", MAC: "52:54:00:00:00:01", Addresses: []netip.Prefix{
		netip.MustParsePrefix("198.51.100.20/32"), netip.MustParsePrefix("10.7.0.1/32"), netip.MustParsePrefix("2001:db8:5::20/128")}}
	p := mustPlan(t, n, Plug{}, "vnet0", "eth0")
	proxies, err := w.planProxies(p)
	if want := "[{198.51.100.20 up0} {2001:db8:5::20 up0}]"; err != nil || fmt.Sprint(proxies) != want {
		t.Fatalf("proxies %v, %v, want %s", proxies, err, want)
	}
	made, err := w.add(p)
	skipWithout(t, err)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.addProxies(proxies); err != nil {
		t.Fatal(err)
	}
	if again, _ := w.planProxies(p); len(again) > 0 {
		t.Errorf("entries that are there are planned again: %v", again)
	}
	want := "eth0 veth 52:54:00:00:00:01\n  198.51.100.20/32\n  10.7.0.1/32\n  0.0.0.0/0 via 169.254.0.1\n"
	if got := state(t, w.inside); got != want {
		t.Errorf("inside:\n%swant\n%s", got, want)
	}
	got := state(t, w.host)
	for _, line := range []string{"  answers for 198.51.100.20", "vnet0 veth fe:54:00:00:00:01\n  169.254.0.1/32", "  10.7.0.1/32 via <nil>", "  198.51.100.20/32 via <nil>"} {
		if !strings.Contains(got, line) {
			t.Errorf("no %q in\n%s", line, got)
		}
	}
	for name, value := range map[string]string{"ipv4/conf/vnet0/rp_filter": "1", "ipv4/conf/vnet0/forwarding": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/up0/proxy_ndp": "1"} {
		if sysctl(name) != value {
			t.Errorf("%s is %q", name, sysctl(name))
		}
	}
	// An address that the host has, or routes elsewhere, is not to be had.
	for _, a := range []string{"203.0.113.1", "10.7.0.1"} {
		other := n
		other.MAC, other.Addresses = "52:54:00:00:00:02", []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(a), 32)}
		if _, err := w.add(mustPlan(t, other, Plug{}, "vnet1", "eth1")); err == nil || !strings.Contains(err.Error(), "the address "+a+" is in use") {
			t.Errorf("%s: %v", a, err)
		}
	}
	// One address less.
	less := n
	less.Addresses = n.Addresses[:1]
	p2 := mustPlan(t, less, Plug{}, "vnet0", "eth0")
	if err := w.setUpHost(p2, made.host); err != nil {
		t.Fatal(err)
	}
	if err := w.setUpInside(p2, made.guest, &p); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.host) + state(t, w.inside); strings.Contains(got, "10.7.0.1") {
		t.Errorf("10.7.0.1 is still there:\n%s", got)
	}
	// And none: root inside may give it what he likes, it is of no use.
	none := n
	none.Addresses, none.Routed = nil, true
	p3 := mustPlan(t, none, Plug{}, "vnet0", "eth0")
	if err := w.setUpHost(p3, made.host); err != nil {
		t.Fatal(err)
	}
	if err := w.setUpInside(p3, made.guest, &p2); err != nil {
		t.Fatal(err)
	}
	host, _ := w.host.LinkByName("vnet0")
	if got := traffic(t, w.host, host); got != "7 shot" {
		t.Errorf("without an address there pass\n%s", got)
	}
	if got := state(t, w.host) + state(t, w.inside); strings.Contains(got, "198.51.100.20/32") || strings.Contains(got, "169.254.0.1") {
		t.Errorf("198.51.100.20 is still there:\n%s", got)
	}
	if six, _ := w.host.AddrList(host, unix.AF_INET6); slices.ContainsFunc(six, func(a netlink.Addr) bool { return a.IP.Equal(gateway6.AsSlice()) }) {
		t.Errorf("%s is still there: %v", gateway6, six)
	}
	if six, _ := w.host.RouteList(host, unix.AF_INET6); slices.ContainsFunc(six, func(r netlink.Route) bool { return strings.HasPrefix(fmt.Sprint(r.Dst), "2001:db8") }) {
		t.Errorf("2001:db8:5::20 is still there: %v", six)
	}
	if sysctl("ipv4/conf/vnet0/forwarding") != "0" || sysctl("ipv4/conf/vnet0/proxy_arp") != "0" {
		t.Error("the host still routes for it")
	}
	if err := w.setUpHost(p, made.host); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.host); !strings.Contains(got, "vnet0 veth fe:54:00:00:00:01\n  169.254.0.1/32") || !strings.Contains(got, "  10.7.0.1/32 via <nil>") {
		t.Errorf("with addresses again:\n%s", got)
	}
	if err := removeProxies(w.host, proxies); err != nil {
		t.Fatal(err)
	}
	if err := removeProxies(w.host, proxies); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := w.unmake(p.Type, made); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.host) + state(t, w.inside); got != before {
		t.Errorf("left:\n%swant\n%s", got, before)
	}
}

func TestMacvlanLink(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, cable("up0"))
	addLink(t, w, cable("eth0")) // a name inside may be one of the host's
	before := state(t, w.host)
	p := mustPlan(t, xml.Interface{Type: "network", Source: "lan", MAC: "52:54:00:00:00:01"}, Plug{Device: "up0", Mode: "bridge"}, "macvlan0", "eth0")
	made, err := w.add(p)
	if errors.Is(err, unix.EOPNOTSUPP) && !inMachine() {
		t.Skip("this kernel has no macvlan links")
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.inside); got != "eth0 macvlan 52:54:00:00:00:01\n" {
		t.Errorf("inside:\n%s", got)
	}
	if err := w.unmake(p.Type, made); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.host) + state(t, w.inside); got != before {
		t.Errorf("left:\n%swant\n%s", got, before)
	}
}

// What a link counted is added up once, over links that come and go, and what
// cannot be read keeps nobody from removing one.
func TestCountLink(t *testing.T) {
	w := newSpace(t)
	bridge := addLink(t, w, &netlink.Bridge{LinkAttrs: named("br0")}, "192.0.2.1/24")
	r := &Runtime{config: Config{DataDir: t.TempDir()}, links: linkState{host: w.host}}
	count := func(mac string) (InterfaceStats, *recordedLink) {
		n := xml.Interface{Type: "bridge", Source: bridge.Attrs().Name, MAC: mac, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}}
		p := mustPlan(t, n, Plug{}, "vnet0", "eth0")
		made, err := w.add(p)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // a neighbour is asked for that answers nothing
			w.inside.NeighDel(&netlink.Neigh{LinkIndex: made.guest, IP: net.IPv4(192, 0, 2, 9)})
			w.inside.NeighAdd(&netlink.Neigh{LinkIndex: made.guest, IP: net.IPv4(192, 0, 2, 9), State: netlink.NUD_INCOMPLETE, Flags: unix.NTF_USE})
		}
		l := &recordedLink{ID: n.ID(), Type: p.Type, MAC: mac, Host: p.Host, HostIndex: made.host, GuestIndex: made.guest}
		var s InterfaceStats
		for end := time.Now().Add(10 * time.Second); s.Sent.Packets == 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			s, _ = readCounters(w.host, l, w)
		}
		if s.Sent.Packets == 0 {
			t.Fatal("nothing was sent")
		}
		// No more is sent while it is looked at.
		if err := w.host.LinkSetDown(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: made.host}}); err != nil {
			t.Fatal(err)
		}
		s, _ = readCounters(w.host, l, w)
		return s, l
	}
	total := func() Traffic {
		t.Helper()
		s, err := r.Traffic(testUUID, nil)
		if err != nil {
			t.Error(err)
		}
		return s.Sent
	}
	r.openAccount(testUUID)
	first, l := count("52:54:00:00:00:01")
	for range 2 { // as when a daemon was killed in between
		r.countLink(testUUID, l, w)
	}
	if total() != first.Sent {
		t.Errorf("counted %+v of %+v", total(), first.Sent)
	}
	grown := first
	grown.Sent.Packets += 7
	if s, _ := r.Traffic(testUUID, map[string]InterfaceStats{l.counter(): grown, "another": first}); s.Sent.Packets != 2*first.Sent.Packets+7 {
		t.Errorf("with those it has: %+v", s)
	}
	if s, _ := r.Traffic(testUUID, map[string]InterfaceStats{l.counter(): {}}); s.Sent != first.Sent {
		t.Errorf("with what was read before it was counted: %+v", s)
	}
	if err := removeVeth(w.host, l, macOf(l)); err != nil {
		t.Fatal(err)
	}
	r.countLink(testUUID, l, w) // nothing is there
	second, l := count("52:54:00:00:00:02")
	r.openAccount(testUUID) // another run
	// Root inside deletes it: the kernel has the last word.
	r.instances = map[[16]byte]*Instance{testUUID: {uuid: testUUID, rec: &record{Links: []*recordedLink{l}}}}
	gone := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(gone, done); err != nil {
		t.Fatal(err)
	}
	if guest, err := w.inside.LinkByIndex(l.GuestIndex); err != nil || w.inside.LinkDel(guest) != nil {
		t.Fatal("it cannot be deleted inside", err)
	}
	for u := range gone {
		if u.Header.Type == unix.RTM_DELLINK && u.Attrs().Index == l.HostIndex {
			for range 2 {
				r.countDeleted(u.Link, InterfaceStats{Received: second.Sent})
			}
			if u.Attrs().Statistics != nil { // the first says that it is no port of the bridge any more
				break
			}
		}
	}
	if s, _ := r.Traffic(testUUID, nil); s.Received.Packets != first.Received.Packets+second.Received.Packets {
		t.Errorf("received %+v, of %+v and %+v", s.Received, first.Received, second.Received)
	}
	if total().Packets != first.Sent.Packets+second.Sent.Packets {
		t.Errorf("after the second %+v, of %+v and %+v", total(), first.Sent, second.Sent)
	}
	if err := os.WriteFile(r.accountFile(testUUID), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.countLink(testUUID, l, w)
	if _, err := r.Traffic(testUUID, nil); err == nil || !strings.Contains(err.Error(), "mend or remove the file") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	if err := errors.Join(r.ForgetTraffic(testUUID), r.ForgetTraffic(testUUID)); err != nil || total() != (Traffic{}) {
		t.Errorf("forgotten: %+v, %v", total(), err)
	}
}

func macOf(l *recordedLink) net.HardwareAddr {
	mac, _ := net.ParseMAC(l.MAC)
	return mac
}

func bridgeNamed(name string) netlink.Link { return &netlink.Bridge{LinkAttrs: named(name)} }

// A port has the VLANs it is to have and no others, from one set to the next;
// a bridge that does not tell VLANs apart has no such port.
func TestPortVLANs(t *testing.T) {
	w := newSpace(t)
	yes := true
	bridge := addLink(t, w, &netlink.Bridge{LinkAttrs: named("br0"), VlanFiltering: &yes})
	plain := addLink(t, w, bridgeNamed("br1"))
	for _, vlan := range []xml.VLAN{
		{}, {Native: 42}, {Native: 42}, {Native: 43, Tags: []uint16{44, 45}}, {Tags: []uint16{1, 44}}, {Native: 44, Tagged: true}, {},
	} {
		port, err := w.host.LinkByName("port0")
		if err != nil {
			port = addLink(t, w, cable("port0"))
		}
		if err := joinBridge(w.host, port, bridge, true, vlan); err != nil {
			t.Fatalf("%+v: %v", vlan, err)
		}
		port, _ = w.host.LinkByName("port0")
		have, err := readVLANs(w.host, port)
		if want := portVLANs(vlan, bridge.(*netlink.Bridge)); err != nil || !maps.Equal(have, want) {
			t.Errorf("%+v: the port has %v, want %v, %v", vlan, have, want, err)
		}
		if port.Attrs().MasterIndex != bridge.Attrs().Index || port.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("%+v: %+v", vlan, port.Attrs())
		}
	}
	port, _ := w.host.LinkByName("port0")
	if err := joinBridge(w.host, port, plain, false, xml.VLAN{Native: 42}); err == nil || !strings.Contains(err.Error(), "ip link set br1 type bridge vlan_filtering 1") {
		t.Errorf("a bridge without VLANs: %v", err)
	}
}

// TestUnanswered: what no neighbour looks for here is told of, and only that.
func TestUnanswered(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, cable("up0"), "198.51.100.1/24", "2001:db8:5::1/64")
	addLink(t, w, cable("point0"), "203.0.113.7/32")
	r := &Runtime{links: linkState{host: w.host}}
	routed := xml.Interface{Type: "ethernet", MAC: "52:54:00:00:00:01", Addresses: addresses("198.51.100.20/32", "203.0.113.7/32", "2001:db8:5::20/128", "2001:db8:6::20/128")}
	bridged := xml.Interface{Type: "bridge", MAC: "52:54:00:00:00:02", Addresses: addresses("10.0.0.1/24")}
	got := strings.Join(r.Unanswered([]xml.Interface{routed, bridged}), "\n")
	const tail = " of interface 52:54:00:00:00:01 is in no subnet of this host: others reach it only if a router sends it here"
	if want := "the address 203.0.113.7" + tail + "\nthe address 2001:db8:6::20" + tail; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
