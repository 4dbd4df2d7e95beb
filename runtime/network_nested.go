package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
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
// lent interface, or a macvlan, and what root inside has made of them, which is
// on the host's wire as well. spaces are the network namespaces there are
// inside, the environment's first.
func takeAway(l *recordedLink, spaces iter.Seq[*wires]) error {
	taken := false
	for w := range spaces {
		found, err := w.take(l)
		if err != nil {
			return err
		}
		if taken = taken || found; found && l.Type == "hostdev" {
			break
		}
	}
	if !taken && l.GuestIndex != 0 {
		return errors.New("it is not where it was put: root inside has deleted it, or hides it in a network namespace without a process. " +
			"It is gone when the environment has ended, which virsh reset does too")
	}
	if l.Type != "hostdev" {
		return nil
	}
	// Macvlans and VLANs of it stay inside when it goes, and work on.
	for w := range spaces {
		if _, err := w.removeUppers(l); err != nil {
			return err
		}
	}
	return nil
}

func (w *wires) take(l *recordedLink) (found bool, err error) {
	if l.Type == "hostdev" {
		return w.moveOut(l)
	}
	return w.removeUppers(l)
}

// removeUppers removes those in a namespace that stand on a link's parent, which
// may have another name by now. Of a parent that is gone there are none.
func (w *wires) removeUppers(l *recordedLink) (found bool, err error) {
	type upper struct{ index, parent, space int }
	uppers, err := settled(func() (list []upper, err error) {
		err = w.eachInside(func(link netlink.Link) bool {
			// A veth's other end is told of in the same way.
			if a := link.Attrs(); a.NetNsID >= 0 && link.Type() != "veth" {
				list = append(list, upper{a.Index, a.ParentIndex, a.NetNsID})
			}
			return true
		})
		return list, err
	})
	if err != nil {
		return false, err
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false, err
	}
	defer host.Close()
	id, err := w.inside.GetNetNsIdByFd(int(host.Fd())) // which it has from when a link's parent was told to be there
	if err != nil {
		return false, err
	}
	uppers = slices.DeleteFunc(uppers, func(u upper) bool { return u.space != id })
	parents := map[int]bool{}
	if parent, err := w.host.LinkByName(l.Parent); err == nil {
		parents[parent.Attrs().Index] = true
	} else {
		found = errors.As(err, &netlink.LinkNotFoundError{})
	}
	for _, u := range uppers {
		if l.Type == "direct" && u.index == l.GuestIndex {
			parents[u.parent] = true
		}
	}
	for _, u := range uppers {
		if parents[u.parent] {
			found = true
			err = errors.Join(err, ignoreMissing(w.inside.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: u.index}})))
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
	var failed error
	err := takeAway(l, func(yield func(*wires) bool) {
		if !yield(w) {
			return
		}
		failed = i.eachNested(w.space, func(space *os.File) error {
			v, err := openWires(space)
			if err != nil {
				return err
			}
			defer v.close()
			if !yield(v) {
				return fs.SkipAll
			}
			return nil
		})
	})
	return errors.Join(failed, err)
}

// eachNested visits the network namespaces that the environment's processes are
// in, but for its own.
func (i *Instance) eachNested(own *os.File, visit func(space *os.File) error) error {
	return eachSpace(own, i.processes, func(pid int) bool {
		cgroup, err := systemd.ControlGroupOf(pid, i.rec.Scope)
		return err == nil && cgroup == i.rec.Cgroup
	}, visit)
}

// eachSpace visits those of processes, once each: how many there are is for root
// inside to decide, so one after the other is open. ours tells whether a PID is
// not another process's by now. visit closes what it is given.
func eachSpace(own *os.File, processes func(visit func(pid int) error) error, ours func(pid int) bool, visit func(space *os.File) error) error {
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
		return err
	}
	defer host.Close()
	for _, f := range []*os.File{host, own} {
		if _, err := know(f); err != nil {
			return err
		}
	}
	return processes(func(pid int) error {
		space, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return nil // it has ended
		}
		first, err := know(space)
		if err != nil || !first || !ours(pid) {
			space.Close()
			return err
		}
		return visit(space)
	})
}
