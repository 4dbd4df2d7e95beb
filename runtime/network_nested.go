package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// Root inside may make network namespaces of his own and move interfaces on to
// them. A veth pair's end on the host is deleted all the same; what has none is
// looked for there while the environment runs.

// takeAway takes from a running environment what has no end on the host: a
// lent interface, or a macvlan and those that root inside has made of it, which
// are the host's interface's as well. spaces are the network namespaces there
// are inside, the environment's first.
func takeAway(l *recordedLink, spaces []*wires) error {
	taken := false
	for _, w := range spaces {
		var found bool
		var err error
		if l.Type == "hostdev" {
			found, err = w.moveOut(l)
		} else {
			found, err = w.removeMacvlans(l)
		}
		if err != nil {
			return err
		}
		taken = taken || found
	}
	if !taken && l.GuestIndex != 0 {
		return errors.New("it is not where it was put: root inside has deleted it, or hides it in a network namespace without a process. " +
			"It is gone when the environment has ended, which virsh reset does too")
	}
	return nil
}

// removeMacvlans removes those in a namespace that are of a link's parent, which
// may have another name by now. Of a parent that is gone there are none.
func (w *wires) removeMacvlans(l *recordedLink) (found bool, err error) {
	links, err := settled(w.inside.LinkList)
	if err != nil {
		return false, err
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false, err
	}
	defer host.Close()
	id, err := w.inside.GetNetNsIdByFd(int(host.Fd()))
	if err != nil {
		return false, err
	}
	parents := map[int]bool{}
	if parent, err := w.host.LinkByName(l.Parent); err == nil {
		parents[parent.Attrs().Index] = true
	} else {
		found = errors.As(err, &netlink.LinkNotFoundError{})
	}
	ours := func(link netlink.Link) bool {
		kind := link.Type()
		return (kind == "macvlan" || kind == "macvtap") && id >= 0 && link.Attrs().NetNsID == id
	}
	for _, link := range links {
		if a := link.Attrs(); ours(link) && a.Index == l.GuestIndex {
			parents[a.ParentIndex] = true
		}
	}
	for _, link := range links {
		if ours(link) && parents[link.Attrs().ParentIndex] {
			found = true
			err = errors.Join(err, ignoreMissing(w.inside.LinkDel(link)))
		}
	}
	return found, err
}

// takeAway finds the namespaces for it. A macvlan whose parent another
// interface of the environment has as well is removed alone, by its index:
// what root inside has made of it could be the other's.
func (i *Instance) takeAway(w *wires, l *recordedLink) error {
	shared := func(other recordedLink) bool {
		return other.ID != l.ID && other.Type == "direct" && other.Parent == l.Parent
	}
	if l.Type != "hostdev" && l.Type != "direct" || l.Type == "direct" && slices.ContainsFunc(i.recordedLinks(), shared) {
		return nil
	}
	spaces := []*wires{w}
	nested, err := i.nestedSpaces(w.space)
	for _, space := range nested {
		v, e := openWires(space)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		defer v.close()
		spaces = append(spaces, v)
	}
	if err != nil {
		return err
	}
	return takeAway(l, spaces)
}

// nestedSpaces are the network namespaces that the environment's processes are
// in, but for its own.
func (i *Instance) nestedSpaces(own *os.File) (list []*os.File, err error) {
	known := map[uint64]bool{}
	know := func(f *os.File) (first bool, err error) {
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		first = err == nil && !known[st.Ino]
		known[st.Ino] = true
		return first, err
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer host.Close()
	for _, f := range []*os.File{host, own} {
		if _, err := know(f); err != nil {
			return nil, err
		}
	}
	err = i.processes(func(pid int) error {
		space, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return nil // it has ended
		}
		first, err := know(space)
		if cgroup, e := systemd.ControlGroupOf(pid, i.rec.Scope); err != nil || !first || e != nil || cgroup != i.rec.Cgroup {
			space.Close() // the PID may have been another process's by now
			return err
		}
		list = append(list, space)
		return nil
	})
	return list, err
}
