package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// savedLink is an interface of a checkpoint. Its addresses, routes and what
// else is inside CRIU has; the host's end is made anew.
type savedLink struct {
	ID, Type string
	Name     string // inside, whatever root there has called it
	Index    int    // inside
	Routed   bool   `json:",omitempty"`
}

// saveLinks lists the interfaces of an environment, and those which cannot be
// checkpointed. One that root inside has deleted is none any more.
func (i *Instance) saveLinks() (list []savedLink, obstacles []string, err error) {
	w, err := i.wires()
	if err != nil {
		return nil, nil, err
	}
	defer w.close()
	for _, l := range i.recordedLinks() {
		link, err := w.find(func(link netlink.Link) bool { return link.Attrs().Index == l.GuestIndex })
		switch {
		case err != nil:
			return nil, nil, err
		case link == nil:
			continue
		case l.HostIndex == 0:
			obstacles = append(obstacles, fmt.Sprintf("the network interface %s, which has no end on the host: detach it, or use a bridge or network", l.ID))
		case !plainTarget.MatchString("/" + link.Attrs().Name):
			obstacles = append(obstacles, fmt.Sprintf("the network interface %s, which is called %q inside: give it a plain name", l.ID, link.Attrs().Name))
		default:
			list = append(list, savedLink{ID: l.ID, Type: l.Type, Name: link.Attrs().Name, Index: l.GuestIndex, Routed: l.Routed})
		}
	}
	return list, obstacles, nil
}

// unplugLinks cuts the environment off: the kernel answers for sockets also
// while all processes are frozen, and what it acknowledges after they were
// saved would be lost. The links stay up, because one that is down takes its
// routes along inside, and CRIU cannot make such again.
func (i *Instance) unplugLinks() error {
	host := i.r.hostLinks()
	if host == nil {
		return errors.New("netlink cannot be used")
	}
	for _, l := range i.recordedLinks() {
		if l.HostIndex == 0 {
			continue
		}
		link, err := host.LinkByIndex(l.HostIndex)
		if err == nil {
			err = errors.Join(removeProxies(host, l.Proxies), unplug(host, link))
		}
		if err = ignoreMissing(err); err != nil {
			return fmt.Errorf("network interface %s: %w", l.ID, err)
		}
	}
	return nil
}

// unplug lets nothing pass between the host and a host's end.
func unplug(host *netlink.Handle, link netlink.Link) error {
	if err := setIngress(host, link, xml.Rate{}, true, nil); err != nil {
		return err
	}
	if link.Attrs().MasterIndex != 0 {
		return host.LinkSetNoMaster(link)
	}
	routes, err := settled(func() ([]netlink.Route, error) {
		return host.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_OIF)
	})
	for _, r := range routes {
		if e := host.RouteDel(&r); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// unlockTimeout leaves enough of stopTimeout for the rest: how much there is to
// list is root's inside.
const unlockTimeout = stopTimeout / 3

// unlockNetwork takes away what keeps all packets from sockets inside while
// CRIU dumps: one that was killed has left that.
func (i *Instance) unlockNetwork(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, unlockTimeout)
	defer cancel()
	return i.inside("packet filter", []string{"net"}, func() error {
		// This thread's network namespace is what the program gets.
		list := exec.CommandContext(ctx, nft, "list", "tables", "inet")
		out, err := list.StdoutPipe()
		if err == nil {
			err = list.Start()
		}
		if err != nil {
			return err
		}
		names, err := lockTables(out)
		out.Close()
		if err = errors.Join(err, list.Wait()); err != nil {
			return fmt.Errorf("nft list tables: %w", err)
		}
		for _, name := range names {
			text, e := exec.CommandContext(ctx, nft, "delete", "table", "inet", name).CombinedOutput()
			if e != nil {
				err = errors.Join(err, fmt.Errorf("nft delete table inet %s: %w: %s", name, e, printable(string(text), 200)))
			}
		}
		return err
	})
}

// lockTable is how nft lists a table of CRIU's, which has as much of the ID of a
// run in its name as fits, before CRIU 4.1 a process's. nft would take more than a
// name for commands.
var lockTable = regexp.MustCompile(`^table inet (CRIU-[[:xdigit:]][[:xdigit:]-]{0,35})$`)

// maxLocks is more than there can be left: each dump that failed is undone.
const maxLocks = 8

// lockTables finds CRIU's tables in a list. The last are those that were made
// last, so that root inside hides none behind others of such names.
func lockTables(list io.Reader) (names []string, err error) {
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		if m := lockTable.FindStringSubmatch(lines.Text()); m != nil {
			names = append(names, m[1])
			names = names[max(0, len(names)-maxLocks):]
		}
	}
	return names, lines.Err()
}

// nft is where Debian and others have it.
const nft = "/usr/sbin/nft"

// replugLinks is the opposite of unplugLinks. list is what the interfaces are.
func (i *Instance) replugLinks(list []xml.Interface) error {
	w, err := i.wires()
	if err != nil {
		return err
	}
	defer w.close()
	if len(i.Links()) > 0 {
		if err := i.keepSpace(w); err != nil {
			return err
		}
	}
	var errs []error
	for _, n := range list {
		l := i.link(n.ID())
		if l == nil || l.HostIndex == 0 {
			continue
		}
		p, err := i.plan(w, n, list, l.plug())
		if err == nil {
			err = errors.Join(w.setUpHost(p, l.HostIndex), removeProxies(w.host, l.Proxies), w.addProxies(l.Proxies))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("network interface %s: %w", l.ID, err))
		}
	}
	return errors.Join(errs...)
}

// restoreLinks makes the hosts' ends of saved interfaces. The other ends are in
// the host's namespace, down, until CRIU moves them to where they belong;
// lines of its configuration say which.
func (s *starter) restoreLinks(ctx context.Context) (lines []string, err error) {
	if len(s.manifest.Links) == 0 {
		return nil, nil
	}
	space, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	w, err := openWires(space) // with both sides the host's
	if err != nil {
		return nil, err
	}
	defer w.close()
	i := newInstance(s.r, s.rec, nil)
	for k, saved := range s.manifest.Links {
		at := slices.IndexFunc(s.env.Interfaces, func(n xml.Interface) bool { return n.ID() == saved.ID })
		if at < 0 {
			return nil, fmt.Errorf("the network interface %s was saved and is not in the definition: put it back there", saved.ID)
		}
		peer := fmt.Sprintf("vz%d-%d", s.stub.pid(), k)
		err := i.restoreLink(ctx, w, s.env.Interfaces[at], s.env.Interfaces, saved, peer)
		if err == nil { // until its sockets are there: the kernel refuses what comes for none
			err = i.unplugLinks()
		}
		if err != nil {
			return nil, interfaceError(fmt.Errorf("network interface %s: %w", saved.ID, err))
		}
		lines = append(lines, fmt.Sprintf("external netdev[%s]:%s", saved.Name, peer))
	}
	return lines, nil
}

func (i *Instance) restoreLink(ctx context.Context, w *wires, n xml.Interface, all []xml.Interface, saved savedLink, peer string) error {
	l := &recordedLink{ID: n.ID(), MAC: n.MAC}
	if err := i.noteLink(func() { i.rec.Links = append(i.rec.Links, l) }); err != nil {
		return err
	}
	n.Routed = n.Routed || saved.Routed
	plug, err := i.plugIn(ctx, l, n)
	if err != nil {
		return err
	}
	host := n.Target
	if host == "" {
		host = i.r.freeName(w.host, false)
	}
	p, err := planLink(n, all, plug, host, saved.Name)
	if err != nil {
		return err
	}
	if p.Type != saved.Type {
		return fmt.Errorf("it was of type %s when it was saved and would be of type %s now", saved.Type, p.Type)
	}
	if err := i.prepare(w, l, &p); err != nil {
		return err
	}
	p.Guarded = p.Filter.Name != ""
	pair := p
	pair.Guest = peer
	if err := atStep("link_" + p.Type); err != nil {
		return err
	}
	made, err := w.makeVeth(pair)
	if err != nil {
		return err
	}
	if err := i.noteLink(func() { l.HostIndex, l.GuestIndex = made.host, saved.Index }); err != nil {
		return err
	}
	if err := w.setUpHost(p, made.host); err != nil {
		return err
	}
	if err := i.bindFilter(ctx, w, l, p); err != nil {
		return err
	}
	return w.addProxies(l.Proxies)
}
