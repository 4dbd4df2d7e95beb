package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// What the host does with its own links can cut an environment off, and nobody
// inside can tell why there is silence:
//
//   - a bridge that goes takes the connections of its ports along, and a network
//     of libvirt's that ends (virsh net-destroy) its list of them;
//   - a link that goes down, if only because its cable was pulled, forgets for
//     whom the host answers on it, and before it has its address the host does
//     not know that it is to answer;
//   - a network filter that is taken away cannot always be bound again.
//
// So the host's links are watched, and whoever an environment belongs to hears
// of a change that may concern it (HostChanged) and has it connected again
// (RenewInterfaces), as a change among others.

// hostWatch is one goroutine's.
type hostWatch struct {
	r      *Runtime
	states map[string]string  // of links that others stand on, by name
	counts map[int]seenCounts // of the host's ends of interfaces, by index
}

// seenCounts are the largest that a link was seen with. While the kernel
// deletes it they grow less.
type seenCounts struct {
	InterfaceStats
	at time.Time
}

const (
	// settleTime is how long after a change the host is looked at: several come
	// together.
	settleTime = 200 * time.Millisecond
	// lookTime is how often it is looked at without one. What is sent within it
	// is not counted if the interface is then deleted inside.
	lookTime = 10 * time.Second
	// countTime is how much of the traffic is not in an account when the host ends.
	countTime = 5 * time.Minute
	// retryTime is how long something is left of an environment after libvirt's
	// daemon, which was away, is back.
	retryTime = 20 * time.Second
	// goneTime is how long the kernel may take to tell that a link is gone.
	goneTime = time.Minute
)

// watchHost runs until the runtime is closed.
func (r *Runtime) watchHost() {
	h := &hostWatch{r: r, counts: map[int]seenCounts{}}
	for {
		h.listen()
		// Either stopped, or more came than there was room for, or there was none for
		// another socket.
		select {
		case <-r.stop:
			return
		case <-time.After(time.Second):
		}
	}
}

// tend sees to what nobody asks for, until the runtime is closed.
func (r *Runtime) tend() {
	go r.repeat(countTime, r.countAll)
	r.repeat(retryTime, func() {
		r.retryFilters()
		r.retryDebts(context.Background()) // which takes long while libvirt's daemon hangs
		r.keepFilters(context.Background())
	})
}

func (r *Runtime) repeat(each time.Duration, do func()) {
	next := time.NewTicker(each)
	defer next.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-next.C:
			do()
		}
	}
}

// subscribe is netlink's; a test lets it fail.
var subscribe = netlink.LinkSubscribe

// listen returns when the kernel has lost a message or tells nothing, or the
// runtime is closed.
func (h *hostWatch) listen() {
	done := make(chan struct{})
	links, addresses := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	if err := subscribe(links, done); err != nil {
		close(done)
		return
	}
	if err := netlink.AddrSubscribe(addresses, done); err != nil {
		close(done)
		for range links {
		}
		return
	}
	defer func() {
		close(done)
		for range links { // until the subscription has ended
		}
		for range addresses {
		}
	}()
	next := time.NewTimer(0)
	defer next.Stop()
	for waits, open := false, true; open; {
		select {
		case <-h.r.stop:
			return
		case <-next.C:
			h.look()
			next.Reset(lookTime)
			waits = false
			continue
		case _, open = <-addresses:
		case u, ok := <-links:
			if open = ok; ok && u.Header.Type == unix.RTM_DELLINK {
				h.r.countDeleted(u.Link, h.counts[u.Attrs().Index].InterfaceStats)
			}
		}
		if !waits {
			next.Reset(settleTime)
			waits = true
		}
	}
}

// look tells the environments that a change may concern.
func (h *hostWatch) look() {
	running := h.r.running()
	if len(running) == 0 {
		return
	}
	links, err := settled(h.r.links.host.LinkList)
	if err != nil {
		return // there is a next time soon
	}
	addrs, err := settled(func() ([]netlink.Addr, error) { return h.r.links.host.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return
	}
	var theirs []netlink.Link
	for _, link := range links {
		if a := link.Attrs(); !h.r.ownsLink(a.Name) {
			theirs = append(theirs, link)
		} else if a.Statistics != nil {
			h.saw(a.Index, counters(a.Statistics))
		}
	}
	maps.DeleteFunc(h.counts, func(_ int, c seenCounts) bool { return time.Since(c.at) > goneTime })
	states, changed := linkStates(theirs, addrs), map[string]bool{}
	for name, state := range states {
		changed[name] = h.states[name] != state
	}
	h.states = states
	for _, i := range running {
		if i.standsOn(changed) {
			i.tellChanged()
		}
	}
}

func (h *hostWatch) saw(index int, s InterfaceStats) {
	was := h.counts[index].InterfaceStats
	grown := InterfaceStats{add(was.Received, less(s.Received, was.Received)), add(was.Sent, less(s.Sent, was.Sent))}
	h.counts[index] = seenCounts{grown, time.Now()}
}

// linkStates is what matters of links that environments stand on: bridges, and
// those with an address that others look for it on.
func linkStates(links []netlink.Link, addrs []netlink.Addr) map[string]string {
	states := map[string]string{}
	for _, link := range links {
		a := link.Attrs()
		var own []string
		for _, addr := range addrs {
			if addr.LinkIndex == a.Index && !addr.IP.IsLinkLocalUnicast() {
				own = append(own, addr.IPNet.String())
			}
		}
		bridge, isBridge := link.(*netlink.Bridge)
		if a.Flags&net.FlagLoopback != 0 || !isBridge && own == nil {
			continue
		}
		slices.Sort(own)
		states[a.Name] = fmt.Sprint(a.Index, a.RawFlags&(unix.IFF_UP|unix.IFF_RUNNING), own, isBridge && tellsVLANs(bridge))
	}
	return states
}

func (r *Runtime) ownsLink(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, claimed := r.links.claims["the network interface "+name]
	return claimed
}

func (r *Runtime) running() (list []*Instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.instances {
		if i != nil {
			list = append(list, i)
		}
	}
	return list
}

// standsOn tells whether a change of the host's links may concern the
// environment: an address may come up on any of them.
func (i *Instance) standsOn(changed map[string]bool) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	any := slices.Contains(slices.Collect(maps.Values(changed)), true)
	return slices.ContainsFunc(i.rec.Links, func(l *recordedLink) bool {
		return l.Type == "bridge" && changed[l.Parent] || l.Routed && any
	})
}

// HostChanged tells that the host's links may have changed such that
// RenewInterfaces has something to do.
func (i *Instance) HostChanged() <-chan struct{} { return i.changed }

func (i *Instance) tellChanged() {
	select {
	case i.changed <- struct{}{}:
	default: // told already, and not yet heard
	}
}

// RenewInterfaces connects what the host's own changes have cut off. list is
// what the interfaces are.
func (i *Instance) RenewInterfaces(ctx context.Context, list []xml.Interface) error {
	i.mu.Lock()
	cutOff := i.rec.Checkpoint != nil || i.rec.Session != "" // see unplugLinks
	i.mu.Unlock()
	if cutOff || len(i.Links()) == 0 {
		return nil
	}
	w, err := i.wires()
	if err != nil {
		return err
	}
	defer w.close()
	var errs []error
	for _, n := range list {
		l := i.link(n.ID())
		if l == nil || l.HostIndex == 0 {
			continue
		}
		err := i.renewLink(ctx, w, l, n, list)
		if err != nil {
			errs = append(errs, fmt.Errorf("network interface %s: %w", l.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (i *Instance) renewLink(ctx context.Context, w *wires, l *recordedLink, n xml.Interface, all []xml.Interface) error {
	end, err := w.host.LinkByIndex(l.HostIndex)
	if err != nil {
		return ignoreMissing(err) // deleted inside
	}
	if l.Routed {
		p, err := i.plan(w, n, all, Plug{})
		if err != nil {
			return err
		}
		return i.renewProxies(w, l, p)
	}
	_, err = w.host.LinkByName(l.Parent)
	loose := l.Type == "bridge" && end.Attrs().MasterIndex == 0 && err == nil
	if !loose && (n.Filter.Name == "" || i.has(l, n.Filter)) {
		return nil
	}
	return i.reconnect(ctx, w, l, n, all, loose)
}

// reconnect makes the host's end, if it is loose, a port of its bridge again,
// and binds its filter. It is without a port in its network until the network
// can tell of one, and may itself be used meanwhile.
func (i *Instance) reconnect(ctx context.Context, w *wires, l *recordedLink, n xml.Interface, all []xml.Interface, loose bool) (err error) {
	plug := l.plug()
	if loose && n.Type == "network" {
		made, e := i.plugIn(ctx, l, n)
		if err = e; err == nil {
			plug = made
		}
	}
	p, e := i.plan(w, n, all, plug)
	if e == nil {
		e = i.rewire(ctx, w, l, p, p, n.Type == "network")
	}
	return errors.Join(err, e)
}

// renewProxies has the host answer for the addresses where it does not, and
// neighbours look for them.
func (i *Instance) renewProxies(w *wires, l *recordedLink, p linkPlan) error {
	missing, err := w.planProxies(p)
	if err != nil || len(missing) == 0 {
		return err
	}
	if err := i.noteLink(func() { l.Proxies = append(l.Proxies, without(missing, l.Proxies)...) }); err != nil {
		return err
	}
	return w.addProxies(missing)
}
