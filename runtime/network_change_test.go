package runtime

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// instanceIn is an environment of one process in the namespace inside.
func instanceIn(t *testing.T, w *wires) *Instance {
	t.Helper()
	r := &Runtime{config: Config{StateDir: t.TempDir(), DataDir: t.TempDir()}}
	r.links = linkState{host: w.host, claims: map[string]string{}, spaces: map[[16]byte]*os.File{}, next: map[string]int{}}
	cmd := exec.Command("sleep", "1000")
	if err := inSpace(w.space, cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		r.dropSpace(testUUID)
	})
	pidfd, err := openPidfd(cmd.Process.Pid, startTime(cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pidfd.Close() })
	i := newInstance(r, &record{UUID: formatUUID(testUUID), Name: "web1", Phase: running, Init: cmd.Process.Pid}, pidfd)
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return i
}

// addressesInside are those of IPv4 on a link inside.
func addressesInside(t *testing.T, w *wires, index int) string {
	t.Helper()
	list, err := w.inside.AddrList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, unix.AF_INET)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, a := range list {
		text = append(text, a.IPNet.String())
	}
	slices.Sort(text)
	return strings.Join(text, " ")
}

// TestChangeOfHostEnd: what is changed on the host is, whatever root inside has
// done with his end, which is left as he has it.
func TestChangeOfHostEnd(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, bridgeNamed("br0"))
	i := instanceIn(t, w)
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Addresses: addresses("192.0.2.2/24", "192.0.2.3/24")}
	if err := i.changeInterfaces(t.Context(), nil, []xml.Interface{n}); err != nil {
		t.Fatal(err)
	}
	l := i.link(n.ID())
	guest, err := w.inside.LinkByIndex(l.GuestIndex)
	if err == nil {
		err = w.inside.AddrDel(guest, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.3/24"))})
	}
	if err != nil {
		t.Fatal(err)
	}
	change := func(to xml.Interface) {
		t.Helper()
		if err := i.changeInterfaces(t.Context(), []xml.Interface{n}, []xml.Interface{to}); err != nil {
			t.Fatal(err)
		}
		n = to
	}
	up := func() bool {
		t.Helper()
		host, err := w.host.LinkByIndex(l.HostIndex)
		if err != nil {
			t.Fatal(err)
		}
		return host.Attrs().Flags&net.FlagUp != 0
	}
	off, on := n, n
	off.Down = true
	change(off)
	if got := addressesInside(t, w, l.GuestIndex); up() || got != "192.0.2.2/24" {
		t.Errorf("off: up %v, inside there are %s", up(), got)
	}
	more := off
	more.Addresses = addresses("192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24")
	change(more)
	if got := addressesInside(t, w, l.GuestIndex); got != "192.0.2.2/24 192.0.2.4/24" {
		t.Errorf("with another address there are %s", got)
	}
	on.Addresses = more.Addresses
	change(on)
	if err := w.inside.LinkSetNsFd(guest, int(nested(t, w).space.Fd())); err != nil {
		t.Fatal(err)
	}
	off = on
	off.Down = true
	change(off)
	if up() {
		t.Error("on, when the end inside is hidden")
	}
	// What cannot be changed is told once, and nothing is changed for it.
	larger := off
	larger.MTU = 1400
	if err := w.host.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.HostIndex}}); err != nil {
		t.Fatal(err)
	}
	err = i.changeInterfaces(t.Context(), []xml.Interface{off}, []xml.Interface{larger})
	if err == nil || strings.Count(err.Error(), "the <mtu> of a network interface cannot be changed") != 1 || !up() {
		t.Errorf("up %v, %v", up(), err)
	}
}

// TestRestoreInterfaces: what a daemon had given an interface when it was killed,
// and which is not to be, is taken away by the next.
func TestRestoreInterfaces(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, bridgeNamed("br0"))
	i := instanceIn(t, w)
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Addresses: addresses("192.0.2.2/24", "192.0.2.3/24")}
	before := &xml.Environment{Interfaces: []xml.Interface{n}}
	to := n
	to.Addresses = addresses("192.0.2.2/24", "192.0.2.4/24")
	after := &xml.Environment{Interfaces: []xml.Interface{to}}
	if err := i.changeInterfaces(t.Context(), nil, before.Interfaces); err != nil {
		t.Fatal(err)
	}
	if err := i.changeInterfaces(t.Context(), before.Interfaces, after.Interfaces); err != nil {
		t.Fatal(err)
	}
	if err := i.restoreInterfaces(t.Context(), before.Interfaces, []*xml.Environment{before, after}); err != nil {
		t.Fatal(err)
	}
	if got := addressesInside(t, w, i.link(n.ID()).GuestIndex); got != "192.0.2.2/24 192.0.2.3/24" {
		t.Errorf("inside there are %s", got)
	}
}

// TestLeadsOut: when the interface that leads out goes the next one does, and not
// any more when it is back.
func TestLeadsOut(t *testing.T) {
	w := newSpace(t)
	i := instanceIn(t, w)
	first := xml.Interface{Type: "ethernet", MAC: "52:54:00:00:00:01", Addresses: addresses("198.51.100.20/32")}
	second := xml.Interface{Type: "ethernet", MAC: "52:54:00:00:00:02", Addresses: addresses("198.51.100.21/32")}
	both := []xml.Interface{first, second}
	err := i.changeInterfaces(t.Context(), nil, both)
	skipWithout(t, err)
	if err != nil {
		t.Fatal(err)
	}
	leads := func(n xml.Interface) bool {
		t.Helper()
		routes, err := w.inside.RouteList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i.link(n.ID()).GuestIndex}}, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Gw.Equal(gateway4.AsSlice()) })
	}
	if !leads(first) || leads(second) {
		t.Errorf("both are there: %v, %v", leads(first), leads(second))
	}
	if err := i.changeInterfaces(t.Context(), both, both[1:]); err != nil {
		t.Fatal(err)
	}
	if !leads(second) {
		t.Error("nothing leads out")
	}
	if err := i.changeInterfaces(t.Context(), both[1:], both); err != nil {
		t.Fatal(err)
	}
	if !leads(first) || leads(second) {
		t.Errorf("both are there again: %v, %v", leads(first), leads(second))
	}
}

// TestAddedAgain: of an interface that could not be removed nothing is taken for
// the one that is added.
func TestAddedAgain(t *testing.T) {
	w := newSpace(t)
	addLink(t, w, bridgeNamed("br0"))
	i := instanceIn(t, w)
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Addresses: addresses("192.0.2.2/24")}
	if err := i.changeInterfaces(t.Context(), nil, []xml.Interface{n}); err != nil {
		t.Fatal(err)
	}
	n.Addresses = addresses("192.0.2.3/24")
	if err := i.changeInterfaces(t.Context(), nil, []xml.Interface{n}); err != nil {
		t.Fatal(err)
	}
	if got := addressesInside(t, w, i.link(n.ID()).GuestIndex); got != "192.0.2.3/24" || len(i.Links()) != 1 {
		t.Errorf("%d interfaces, inside there are %s", len(i.Links()), got)
	}
}
