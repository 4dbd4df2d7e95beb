package driver

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
)

// registry finds domains. Its mutex protects the two maps, nothing else.
type registry struct {
	mu     sync.RWMutex
	byUUID map[protocol.UUID]*domain
	byName map[string]*domain
}

// maxDomains bounds what clients can make the daemon remember: the wire
// could not list more (REMOTE_DOMAIN_LIST_MAX).
const maxDomains = 16384

func newRegistry() *registry {
	return &registry{byUUID: map[protocol.UUID]*domain{}, byName: map[string]*domain{}}
}

func (r *registry) lookup(id protocol.UUID) *domain {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byUUID[id].ifDefined()
}

func (r *registry) lookupName(name string) *domain {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byName[name].ifDefined()
}

// ifDefined hides a domain whose first definition is still being made.
func (d *domain) ifDefined() *domain {
	if d == nil || d.view().undefined() {
		return nil
	}
	return d
}

// claimed is lookupName that also finds a domain whose first definition is
// still being made.
func (r *registry) claimed(name string) *domain {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.byName[name]
}

// every lists all, those among them whose first definition is still being made.
func (r *registry) every() []*domain {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.byUUID))
}

// all lists the domains by name, so that clients get a stable order.
func (r *registry) all() []*domain {
	r.mu.RLock()
	list := make([]*domain, 0, len(r.byUUID))
	for _, d := range r.byUUID {
		if d.ifDefined() != nil {
			list = append(list, d)
		}
	}
	r.mu.RUnlock()
	slices.SortFunc(list, func(a, b *domain) int { return cmp.Compare(a.view().name, b.view().name) })
	return list
}

// claim finds the domain a definition means, or adds an empty one for it:
// name and UUID must both be free or both belong to the same domain
// (libvirt's virDomainObjListAddLocked, with its words).
func (r *registry) claim(drv *Driver, id protocol.UUID, name string) (*domain, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.byUUID[id]; d != nil {
		if have := d.view().name; have != name {
			return nil, errorf(protocol.ErrOperationFailed, "domain '%s' is already defined with uuid %s", have, id)
		}
		return d, nil
	}
	if d := r.byName[name]; d != nil {
		return nil, errorf(protocol.ErrOperationFailed, "domain '%s' already exists with uuid %s", name, d.uuid)
	}
	if len(r.byUUID) >= maxDomains {
		return nil, errorf(protocol.ErrOperationFailed, "there are %d domains already, the most that can be listed", maxDomains)
	}
	d := &domain{drv: drv, uuid: id, job: newJob()}
	d.current.Store(&view{name: name, state: Shutoff, reason: protocol.DomainShutoffUnknown})
	r.byUUID[id], r.byName[name] = d, d
	return d, nil
}

// drop forgets a domain. Its job must be held, so that whoever waits for it
// finds it removed.
func (r *registry) drop(c *change) {
	c.publish(func(v *view) { v.removed = true })
	if c.drv.rt != nil {
		if err := c.drv.rt.ForgetTraffic(c.uuid); err != nil {
			c.drv.log.Warn("the count of its traffic is left", "uuid", c.uuid, "error", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byUUID, c.uuid)
	delete(r.byName, c.view().name)
}

// rename moves a domain to a free name; its job must be held. While its files
// are moved both names are taken: whoever loses the race for one has written
// nothing.
func (r *registry) rename(c *change, name string, config *libvirtxml.Domain, move func() error) error {
	if err := r.take(name, c.domain); err != nil {
		return err
	}
	old, err := c.view().name, move()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.byName, name)
		return err
	}
	delete(r.byName, old)
	c.publish(func(v *view) { v.name, v.config = name, config })
	return nil
}

func (r *registry) take(name string, d *domain) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byName[name] != nil {
		return errorf(protocol.ErrOperationInvalid, "domain with name '%s' already exists", name)
	}
	r.byName[name] = d
	return nil
}
