package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
)

// What the interfaces of an environment received and sent is added up over all
// its runs, for whoever pays for traffic. The kernel counts while an interface
// is there; when it is removed its counters go to a file of the environment's.
// So that they can still be read when the environment has ended by itself, the
// daemon and the service manager keep its network namespace open until then.

// account is that file.
type account struct {
	Received, Sent Traffic
	Counted        []string `json:",omitempty"` // links of the run that are in it already
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
	return replaceFile(file, body, 0o600)
}

// openAccount begins the count of a run. That it cannot be counted keeps no
// environment from what it does, neither here nor in countLink.
func (r *Runtime) openAccount(uuid [16]byte) {
	if a, err := r.loadAccount(uuid); err == nil && a.Counted != nil {
		a.Counted = nil
		r.saveAccount(uuid, a)
	}
}

// countLink adds what a link has counted, once, however often it is removed.
func (r *Runtime) countLink(uuid [16]byte, l *recordedLink, w *wires) {
	key := fmt.Sprintf("%s %d %d", l.ID, l.HostIndex, l.GuestIndex)
	s, ok := readCounters(r.hostLinks(), l, w)
	if !ok {
		return
	}
	a, err := r.loadAccount(uuid)
	if err != nil || slices.Contains(a.Counted, key) {
		return
	}
	a.Received, a.Sent = add(a.Received, s.Received), add(a.Sent, s.Sent)
	a.Counted = append(a.Counted, key)
	r.saveAccount(uuid, a)
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
	link, err := w.inside.LinkByIndex(l.GuestIndex)
	if err != nil || link.Attrs().Statistics == nil {
		return s, false
	}
	c := counters(link.Attrs().Statistics)
	return InterfaceStats{less(c.Received, l.Before.Received), less(c.Sent, l.Before.Sent)}, true
}

// Traffic is what all interfaces of an environment received and sent since it
// was defined, over every run. now are the counters of those it has.
func (r *Runtime) Traffic(uuid [16]byte, now []InterfaceStats) (InterfaceStats, error) {
	a, err := r.loadAccount(uuid)
	s := InterfaceStats{a.Received, a.Sent}
	for _, n := range now {
		s.Received, s.Sent = add(s.Received, n.Received), add(s.Sent, n.Sent)
	}
	return s, err
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
