package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

var listing = table{
	inline(protocol.ConnectListAllDomains, listAllDomains),
	inline(protocol.ConnectListDomains, listDomainIDs),
	inline(protocol.ConnectNumOfDomains, countDomains),
	inline(protocol.ConnectListDefinedDomains, listDefinedNames),
	inline(protocol.ConnectNumOfDefinedDomains, countDefined),
	inline(protocol.DomainLookupByID, lookupByID),
	inline(protocol.DomainLookupByName, lookupByName),
	inline(protocol.DomainLookupByUUID, lookupByUUID),
}

// filter is one pair or group of list flags. Within a group the flags add
// up; a group of which none is set filters nothing
// (conf/virdomainobjlist.c, virDomainObjMatchFilter).
type filter map[uint32]func(*view) bool

var filters = []filter{
	{
		protocol.ConnectListDomainsActive:   func(v *view) bool { return v.state.active() },
		protocol.ConnectListDomainsInactive: func(v *view) bool { return !v.state.active() },
	}, {
		protocol.ConnectListDomainsPersistent: func(v *view) bool { return v.persistent },
		protocol.ConnectListDomainsTransient:  func(v *view) bool { return !v.persistent },
	}, {
		protocol.ConnectListDomainsRunning: func(v *view) bool { return v.state == Running },
		protocol.ConnectListDomainsPaused:  func(v *view) bool { return v.state == Paused },
		protocol.ConnectListDomainsShutoff: func(v *view) bool { return v.state == Shutoff },
		protocol.ConnectListDomainsOther:   func(v *view) bool { return v.state == Stopping },
	}, {
		protocol.ConnectListDomainsAutostart:   func(v *view) bool { return v.autostart },
		protocol.ConnectListDomainsNoAutostart: func(v *view) bool { return !v.autostart },
	}, {
		protocol.ConnectListDomainsManagedsave:   func(v *view) bool { return v.saved },
		protocol.ConnectListDomainsNoManagedsave: func(v *view) bool { return !v.saved },
	}, {
		protocol.ConnectListDomainsHasSnapshot: func(v *view) bool { return len(v.snapshots.all) > 0 },
		protocol.ConnectListDomainsNoSnapshot:  func(v *view) bool { return len(v.snapshots.all) == 0 },
	}, {
		protocol.ConnectListDomainsHasCheckpoint: never,
		protocol.ConnectListDomainsNoCheckpoint:  always,
	},
}

func never(*view) bool  { return false }
func always(*view) bool { return true }

// matches tells whether a domain passes every group of the flags.
func matches(v *view, flags uint32) bool {
	for _, group := range filters {
		asked, passed := false, false
		for flag, test := range group {
			if flags&flag != 0 {
				asked = true
				passed = passed || test(v)
			}
		}
		if asked && !passed {
			return false
		}
	}
	return true
}

// each calls use for every domain that this client may see.
func (r *request) each(use func(*domain, *view)) {
	for _, d := range r.drv.domains.all() {
		if r.client.maySee(r.ctx, d) {
			use(d, d.view())
		}
	}
}

func listAllDomains(r *request, a *protocol.ConnectListAllDomainsArgs) (ret protocol.ConnectListAllDomainsRet, err error) {
	known := uint32(0)
	for _, group := range filters {
		for flag := range group {
			known |= flag
		}
	}
	if err := checkFlags(a.Flags, known); err != nil {
		return ret, err
	}
	r.each(func(d *domain, v *view) {
		if !matches(v, a.Flags) {
			return
		}
		ret.Ret++
		if a.NeedResults != 0 {
			ret.Domains = append(ret.Domains, d.ref(v))
		}
	})
	return ret, nil
}

func listDomainIDs(r *request, a *protocol.ConnectListDomainsArgs) (ret protocol.ConnectListDomainsRet, err error) {
	r.each(func(_ *domain, v *view) {
		if v.state.active() && len(ret.Ids) < int(a.Maxids) {
			ret.Ids = append(ret.Ids, v.id())
		}
	})
	return ret, nil
}

func countDomains(r *request, _ *xdr.Void) (ret protocol.ConnectNumOfDomainsRet, err error) {
	r.each(func(_ *domain, v *view) {
		if v.state.active() {
			ret.Num++
		}
	})
	return ret, nil
}

func listDefinedNames(r *request, a *protocol.ConnectListDefinedDomainsArgs) (ret protocol.ConnectListDefinedDomainsRet, err error) {
	r.each(func(_ *domain, v *view) {
		if !v.state.active() && len(ret.Names) < int(a.Maxnames) {
			ret.Names = append(ret.Names, v.name)
		}
	})
	return ret, nil
}

func countDefined(r *request, _ *xdr.Void) (ret protocol.ConnectNumOfDefinedDomainsRet, err error) {
	r.each(func(_ *domain, v *view) {
		if !v.state.active() {
			ret.Num++
		}
	})
	return ret, nil
}

func lookupByName(r *request, a *protocol.DomainLookupByNameArgs) (ret protocol.DomainLookupByNameRet, err error) {
	d := r.drv.domains.lookupName(a.Name)
	if d == nil {
		return ret, errorf(protocol.ErrNoDomain, "no domain with matching name '%s'", a.Name)
	}
	ret.Dom = d.ref(d.view())
	return ret, r.allow(d, a)
}

func lookupByUUID(r *request, a *protocol.DomainLookupByUUIDArgs) (ret protocol.DomainLookupByUUIDRet, err error) {
	d := r.drv.domains.lookup(a.UUID)
	if d == nil {
		return ret, errorf(protocol.ErrNoDomain, "no domain with matching uuid '%s'", a.UUID)
	}
	ret.Dom = d.ref(d.view())
	return ret, r.allow(d, a)
}

func lookupByID(r *request, a *protocol.DomainLookupByIDArgs) (ret protocol.DomainLookupByIDRet, err error) {
	for _, d := range r.drv.domains.all() {
		if v := d.view(); v.state.active() && v.id() == a.ID {
			ret.Dom = d.ref(v)
			return ret, r.allow(d, a)
		}
	}
	return ret, errorf(protocol.ErrNoDomain, "no domain with matching id %d", a.ID)
}
