package runtime

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkState is what the daemon knows of the interfaces of all environments.
type linkState struct {
	host   *netlink.Handle       // in the host's network namespace; nil if there is no netlink
	claims map[string]string     // what an environment has alone, and its name
	spaces map[[16]byte]*os.File // network namespaces of environments with interfaces
	next   map[string]int        // number of the last name that was chosen
}

func newLinkState() linkState {
	host, _ := netlink.NewHandle(unix.NETLINK_ROUTE) // without it no interface can be made, and the error says so
	return linkState{host: host, claims: map[string]string{}, spaces: map[[16]byte]*os.File{}, next: map[string]int{}}
}

func (s *linkState) close() {
	if s.host != nil {
		s.host.Close()
	}
	for _, space := range s.spaces {
		space.Close()
	}
}

func (r *Runtime) hostLinks() *netlink.Handle { return r.links.host }

// claimLinks takes what no two environments can have: all, or none.
func (r *Runtime) claimLinks(name string, claims []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range claims {
		if owner, used := r.links.claims[c]; used {
			return fmt.Errorf("%s is in use by %s, which runs", c, owner)
		}
	}
	for _, c := range claims {
		r.links.claims[c] = name
	}
	return nil
}

// releaseLinks gives up what an environment has of these.
func (r *Runtime) releaseLinks(name string, claims []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range claims {
		if r.links.claims[c] == name {
			delete(r.links.claims, c)
		}
	}
}

// adoptLinks takes over what an environment that runs has.
func (r *Runtime) adoptLinks(i *Instance, space *os.File) {
	for _, l := range i.rec.Links {
		r.claimLinks(i.rec.Name, l.Claims) // nobody else has it
	}
	switch {
	case space != nil:
		r.holdSpace(i.uuid, space)
	case len(i.rec.Links) > 0: // the store was lost; the namespace is there as long as init
		if w, err := i.wires(); err == nil {
			defer w.close()
			i.keepSpace(w)
		}
	}
}

// keepSpace keeps the namespace open beyond the environment's end: what is lent
// is to come back from it, what was counted is to be read.
func (i *Instance) keepSpace(w *wires) error {
	i.r.mu.Lock()
	have := i.r.links.spaces[i.uuid]
	i.r.mu.Unlock()
	if have != nil {
		return nil
	}
	space, err := dupFile(w.space)
	if err != nil {
		return err
	}
	i.r.holdSpace(i.uuid, space)
	return i.r.storeFD(spaceFDName(i.rec.UUID), space)
}

func (r *Runtime) holdSpace(uuid [16]byte, space *os.File) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links.spaces[uuid] = space
}

// dropSpace lets the namespace end that was kept for an environment.
func (r *Runtime) dropSpace(uuid [16]byte) {
	r.mu.Lock()
	space := r.links.spaces[uuid]
	delete(r.links.spaces, uuid)
	r.mu.Unlock()
	if space != nil {
		space.Close()
	}
	r.dropFD(spaceFDName(formatUUID(uuid)))
}

// freeName chooses a name for the host's end, vnetN as libvirt does, or what a
// macvlan is asked by. A number is not used again soon, so that who counts
// traffic by name does not mix two up.
func (r *Runtime) freeName(h *netlink.Handle, macvlan bool) string {
	prefix := "vnet"
	if macvlan {
		prefix = "macvlan"
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		n := r.links.next[prefix] % maxLinkNumber
		r.links.next[prefix] = n + 1
		name := fmt.Sprintf("%s%d", prefix, n)
		_, claimed := r.links.claims["the network interface "+name]
		if _, err := h.LinkByName(name); err != nil && !claimed {
			return name
		}
	}
}

// maxLinkNumber keeps macvlanN below 16 bytes.
const maxLinkNumber = 10_000_000
