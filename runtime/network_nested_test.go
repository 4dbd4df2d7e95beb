package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// lend gives an interface of the host's away.
func lend(t *testing.T, w *wires, name string) (*recordedLink, netlink.Link) {
	t.Helper()
	addLink(t, w, cable(name))
	p := mustPlan(t, xml.Interface{Type: "hostdev", Source: name}, Plug{}, name, name)
	if err := w.lend(&p); err != nil {
		t.Fatal(err)
	}
	made, err := w.add(p)
	if err != nil {
		t.Fatal(err)
	}
	link, err := w.inside.LinkByIndex(made.guest)
	if err != nil {
		t.Fatal(err)
	}
	return &recordedLink{ID: p.ID, Type: p.Type, Parent: p.Parent, Host: p.Host, Guest: p.Guest, GuestIndex: made.guest, MAC: p.MAC.String(), NIC: p.NIC}, link
}

// TestLentUppers: what root inside has made of a lent interface does not keep
// him on the host's wire when it is taken away, wherever he has put it.
func TestLentUppers(t *testing.T) {
	w := newSpace(t)
	deep := nested(t, w)
	l, _ := lend(t, w, "nic0")
	for _, name := range []string{"more", "hidden"} {
		attrs := named(name)
		attrs.ParentIndex = l.GuestIndex
		if err := w.inside.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			if !inMachine() {
				t.Skip(err)
			}
			t.Fatal(err)
		}
	}
	hidden, err := w.inside.LinkByName("hidden")
	if err == nil {
		err = w.inside.LinkSetNsFd(hidden, int(deep.space.Fd()))
	}
	if err == nil {
		err = w.inside.LinkAdd(cable("own"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := takeAway(l, slices.Values([]*wires{w, deep})); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.inside) + state(t, deep.inside); strings.Contains(got, "macvlan") || !strings.Contains(got, "own veth") {
		t.Errorf("left inside:\n%s", got)
	}
	if _, err := w.host.LinkByName("nic0"); err != nil {
		t.Errorf("not back: %v", err)
	}
}

// TestLentDeleted: one that root inside has deleted is not another of the host's
// with the same address, as all VLANs of one interface have.
func TestLentDeleted(t *testing.T) {
	w := newSpace(t)
	l, link := lend(t, w, "nic0")
	other := addLink(t, w, cable("nic1"))
	if err := w.host.LinkSetHardwareAddr(other, macOf(l)); err != nil {
		t.Fatal(err)
	}
	was := state(t, w.host)
	// Its other end, on the host, goes as well.
	was = strings.Join(slices.DeleteFunc(strings.SplitAfter(was, "\n"), func(s string) bool { return strings.HasPrefix(s, "nic0-far ") }), "")
	if err := w.inside.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if err := bringBack(w.host, l, w); err != nil {
		t.Fatal(err)
	}
	if got := state(t, w.host); got != was {
		t.Errorf("the host has\n%swant\n%s", got, was)
	}
	// One that was brought back and has not got its name yet is it.
	if err := w.host.LinkSetDown(other); err != nil {
		t.Fatal(err)
	}
	if err := w.host.LinkSetName(other, "vz0123abcd"); err != nil {
		t.Fatal(err)
	}
	if err := bringBack(w.host, l, w); err != nil {
		t.Fatal(err)
	}
	if _, err := w.host.LinkByName("nic0"); err != nil {
		t.Errorf("on its way: %v", err)
	}
}

// TestManyNames: root inside may give an interface so many names that the
// library cannot read it. It is found, taken away and counted all the same.
func TestManyNames(t *testing.T) {
	w := newSpace(t)
	name := func(link netlink.Link) {
		t.Helper()
		n := 0
		for ; w.inside.LinkAddAltName(link, fmt.Sprintf("%0127d", n)) == nil; n++ {
		}
		if _, err := w.inside.LinkByIndex(link.Attrs().Index); n < 100 || err == nil {
			t.Fatalf("%d names, which the library reads: %v", n, err)
		}
	}
	l, link := lend(t, w, "nic0")
	name(link)
	if list, err := w.inside.LinkList(); err == nil {
		t.Fatalf("the library lists %d links", len(list))
	}
	count := 0
	err := w.eachInside(func(netlink.Link) bool { count++; return true })
	if err != nil || count < 2 {
		t.Errorf("%d links inside, %v", count, err)
	}
	if _, ok := readCounters(nil, l, w); !ok {
		t.Error("it is not counted")
	}
	i := instanceIn(t, w)
	i.rec.Links = []*recordedLink{l}
	if _, obstacles, err := i.saveLinks(); err != nil || len(obstacles) != 1 {
		t.Errorf("why it cannot be saved: %q, %v", obstacles, err)
	}
	if err := bringBack(w.host, l, w); err != nil {
		t.Fatal(err)
	}
	back, err := w.host.LinkByName("nic0")
	if err != nil || len(back.Attrs().AltNames) > 0 {
		t.Fatalf("not back: %v", err)
	}
	p := mustPlan(t, xml.Interface{Type: "direct", Source: "nic0", MAC: "52:54:00:00:00:01"}, Plug{}, "macvlan0", "eth0")
	made, err := w.add(p)
	if err != nil {
		if !inMachine() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	if link, err = w.inside.LinkByIndex(made.guest); err != nil {
		t.Fatal(err)
	}
	name(link)
	direct := &recordedLink{ID: p.ID, Type: p.Type, Parent: p.Parent, Host: p.Host, Guest: p.Guest, GuestIndex: made.guest, MAC: p.MAC.String()}
	r := &Runtime{config: Config{DataDir: t.TempDir()}, links: linkState{host: w.host}}
	if err := r.removeLink(t.Context(), testUUID, direct, w, false); err != nil {
		t.Error(err)
	}
	if link, err := w.find(func(link netlink.Link) bool { return link.Attrs().Index == made.guest }); link != nil || err != nil {
		t.Errorf("the macvlan is there: %v", err)
	}
}

// TestManySpaces: however many network namespaces root inside has, the daemon
// has one of them open.
func TestManySpaces(t *testing.T) {
	w := newSpace(t)
	var pids []int
	for range 20 {
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		pids = append(pids, cmd.Process.Pid)
	}
	pids = append(pids, pids...)
	pids = append(pids, os.Getpid(), 1<<30)
	var open []int
	err := eachSpace(w.space, func(visit func(int) error) error {
		for _, pid := range pids {
			if err := visit(pid); err != nil {
				return err
			}
		}
		return nil
	}, func(pid int) bool { return pid != pids[0] && pid != os.Getpid() }, func(space *os.File) error {
		v, err := openWires(space)
		if err != nil {
			return err
		}
		defer v.close()
		entries, err := os.ReadDir("/proc/self/fd")
		open = append(open, len(entries))
		return err
	})
	if err != nil || len(open) != 19 || slices.Max(open) > open[0]+5 { // others may have a few
		t.Errorf("descriptors at each visit: %v, %v", open, err)
	}
}

// TestEachFromInside: root inside, who sees the socket's number, can send it
// nothing in the kernel's name.
func TestEachFromInside(t *testing.T) {
	newSpace(t)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ports := func() (list []uint32) {
		table, err := os.ReadFile("/proc/thread-self/net/netlink")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(table)) {
			var address string
			var protocol, port uint32
			if n, _ := fmt.Sscan(line, &address, &protocol, &port); n == 3 && protocol == unix.NETLINK_ROUTE && port != 0 {
				list = append(list, port)
			}
		}
		return list
	}
	before, links, sent := ports(), 0, 0
	err = eachLink(func(netlink.Link) bool {
		links++
		for _, port := range without(ports(), before) {
			sent++
			if err := unix.Sendto(fd, make([]byte, unix.NLMSG_HDRLEN), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: port}); err == nil {
				t.Error("it takes what it is sent")
			}
		}
		return true
	})
	if err != nil || links == 0 || sent == 0 {
		t.Errorf("%d links, sent to %d, %v", links, sent, err)
	}
}
