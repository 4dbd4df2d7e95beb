package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
)

// What the interfaces of an environment received and sent is added up over all
// its runs, for whoever pays for traffic. The kernel counts while an interface
// is there; what it has counted goes to a file of the environment's
//
//   - when the interface is removed. So that it can be read when the environment
//     has ended by itself, the daemon and the service manager keep its network
//     namespace open until then;
//   - when root inside deletes it: the kernel tells what it last had received;
//     what it had sent the kernel has forgotten, so that is looked at all the time;
//   - now and then, in case that the host ends, or a macvlan is deleted inside.

// account is that file.
type account struct {
	Received, Sent Traffic
	Links          map[string]InterfaceStats `json:",omitempty"` // of the run's links: what of them is in it
}

// count brings the account up to what a link has counted.
func (a *account) count(key string, s InterfaceStats) {
	was := a.Links[key]
	more := InterfaceStats{less(s.Received, was.Received), less(s.Sent, was.Sent)}
	a.Received, a.Sent = add(a.Received, more.Received), add(a.Sent, more.Sent)
	if a.Links == nil {
		a.Links = map[string]InterfaceStats{}
	}
	a.Links[key] = InterfaceStats{add(was.Received, more.Received), add(was.Sent, more.Sent)}
}

// counter tells the link from any other of the run.
func (l *recordedLink) counter() string {
	return fmt.Sprintf("%s %d %d", l.ID, l.HostIndex, l.GuestIndex)
}

func (r *Runtime) accountFile(uuid [16]byte) string {
	return filepath.Join(r.config.DataDir, "traffic", formatUUID(uuid))
}

// loadAccount reads what was counted up to now. Without a file that is nothing.
func (r *Runtime) loadAccount(uuid [16]byte) (a account, err error) {
	body, err := os.ReadFile(r.accountFile(uuid))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return account{}, fmt.Errorf("the count of its traffic cannot be read, mend or remove the file: %s: %w", r.accountFile(uuid), err)
	}
	return a, nil
}

func (r *Runtime) saveAccount(uuid [16]byte, a account) error {
	file := r.accountFile(uuid)
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return replaceFileSynced(file, body) // it is about money
}

// openAccount begins the count of a run, of which no link is there yet. That it cannot be counted keeps no
// environment from what it does, neither here nor when it is counted.
func (r *Runtime) openAccount(uuid [16]byte) {
	r.counting.Lock()
	defer r.counting.Unlock()
	if a, err := r.loadAccount(uuid); err == nil && a.Links != nil {
		a.Links = nil
		r.saveAccount(uuid, a)
	}
}

// setAccount is for an environment that was counted elsewhere until now.
func (r *Runtime) setAccount(uuid [16]byte, s InterfaceStats) {
	r.counting.Lock()
	defer r.counting.Unlock()
	r.saveAccount(uuid, account{Received: s.Received, Sent: s.Sent})
}

// countLink adds what a link has counted since it was last counted.
func (r *Runtime) countLink(uuid [16]byte, l *recordedLink, w *wires) {
	r.counting.Lock()
	defer r.counting.Unlock()
	if s, ok := readCounters(r.hostLinks(), l, w); ok {
		r.count(uuid, l, s)
	}
}

// count is called while what was read is the run's, and counting is held.
func (r *Runtime) count(uuid [16]byte, l *recordedLink, s InterfaceStats) {
	if a, err := r.loadAccount(uuid); err == nil && a.Links[l.counter()] != s {
		a.count(l.counter(), s)
		r.saveAccount(uuid, a)
	}
}

// countDeleted adds the last counters of a host's end that the kernel deleted,
// as it does when the other end is deleted inside. seen are those it was last
// seen with: what an end receives is counted at the other, which is gone.
func (r *Runtime) countDeleted(link netlink.Link, seen InterfaceStats) {
	if link.Attrs().Statistics == nil {
		return // it only left its bridge
	}
	r.counting.Lock()
	defer r.counting.Unlock()
	c := counters(link.Attrs().Statistics)
	c.Received = add(c.Received, less(seen.Received, c.Received))
	for _, i := range r.running() {
		for _, l := range i.recordedLinks() {
			if l.HostIndex == link.Attrs().Index {
				r.count(i.uuid, &l, InterfaceStats{Received: c.Sent, Sent: c.Received})
			}
		}
	}
}

// countAll adds up to now.
func (r *Runtime) countAll() {
	for _, i := range r.running() {
		links := i.recordedLinks()
		if len(links) == 0 {
			continue
		}
		w, err := i.wires()
		if err != nil {
			continue // it has ended, and is counted then
		}
		for _, l := range links {
			r.countLink(i.uuid, &l, w)
		}
		w.close()
	}
}

// recordedLinks copies the records.
func (i *Instance) recordedLinks() (list []recordedLink) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, l := range i.rec.Links {
		list = append(list, *l)
	}
	return list
}

// readCounters tells what a link has counted, seen from inside, while it is
// there: at its end on the host, where it has one, or inside.
func readCounters(host *netlink.Handle, l *recordedLink, w *wires) (s InterfaceStats, ok bool) {
	if l.HostIndex != 0 && host != nil {
		hardware, _ := net.ParseMAC(l.MAC)
		link, _ := hostEnd(host, l, hardware)
		if link == nil || link.Attrs().Statistics == nil {
			return s, false
		}
		c := counters(link.Attrs().Statistics)
		return InterfaceStats{Received: c.Sent, Sent: c.Received}, true
	}
	if l.GuestIndex == 0 || w == nil {
		return s, false
	}
	link, err := w.find(func(link netlink.Link) bool { return link.Attrs().Index == l.GuestIndex })
	if err != nil || link == nil || link.Attrs().Statistics == nil {
		return s, false
	}
	c := counters(link.Attrs().Statistics)
	return InterfaceStats{less(c.Received, l.Before.Received), less(c.Sent, l.Before.Sent)}, true
}

// Traffic is what all interfaces of an environment received and sent since it
// was defined, over every run. now are those it has, by their Counter.
func (r *Runtime) Traffic(uuid [16]byte, now map[string]InterfaceStats) (InterfaceStats, error) {
	a, err := r.loadAccount(uuid)
	for key, s := range now {
		a.count(key, s)
	}
	return InterfaceStats{a.Received, a.Sent}, err
}

// ForgetTraffic ends the count of an environment that is no more.
func (r *Runtime) ForgetTraffic(uuid [16]byte) error {
	if err := os.Remove(r.accountFile(uuid)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func add(a, b Traffic) Traffic {
	return Traffic{a.Bytes + max(b.Bytes, 0), a.Packets + max(b.Packets, 0), a.Errors + max(b.Errors, 0), a.Dropped + max(b.Dropped, 0)}
}

func less(a, b Traffic) Traffic {
	return Traffic{max(a.Bytes-b.Bytes, 0), max(a.Packets-b.Packets, 0), max(a.Errors-b.Errors, 0), max(a.Dropped-b.Dropped, 0)}
}
