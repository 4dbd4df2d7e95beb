package driver

import (
	"cmp"
	"slices"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// snapshots are those of one domain. Like the view it is part of it is never
// changed: a change makes another.
type snapshots struct {
	all     []*xml.Snapshot // by name
	current string          // name; "": none
}

// maxSnapshots bounds what is kept of one domain.
const maxSnapshots = 128

func (s snapshots) find(name string) *xml.Snapshot {
	for _, snap := range s.all {
		if snap.Name == name {
			return snap
		}
	}
	return nil
}

// get is find for what a client names.
func (s snapshots) get(name string) (*xml.Snapshot, error) {
	if snap := s.find(name); snap != nil {
		return snap, nil
	}
	return nil, errorf(protocol.ErrNoDomainSnapshot, "no domain snapshot with matching name '%s'", name)
}

// with adds a snapshot, or replaces that of its name.
func (s snapshots) with(snap *xml.Snapshot) snapshots {
	s = s.without(snap.Name)
	s.all = append(s.all, snap)
	slices.SortFunc(s.all, func(a, b *xml.Snapshot) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

func (s snapshots) without(name string) snapshots {
	s.all = slices.DeleteFunc(slices.Clone(s.all), func(snap *xml.Snapshot) bool { return snap.Name == name })
	return s
}

// parent is that of a snapshot; nil for one whose parent is not known, as for
// one that has none.
func (s snapshots) parent(snap *xml.Snapshot) *xml.Snapshot { return s.find(snap.Parent) }

// children are those of a snapshot, or with nil those without a parent.
func (s snapshots) children(of *xml.Snapshot) (list []*xml.Snapshot) {
	for _, snap := range s.all {
		if s.parent(snap) == of {
			list = append(list, snap)
		}
	}
	return list
}

// descendants are the children and theirs, each after its parent.
func (s snapshots) descendants(of *xml.Snapshot) (list []*xml.Snapshot) {
	for _, child := range s.children(of) {
		list = append(append(list, child), s.descendants(child)...)
	}
	return list
}

// checkParent refuses a parent that is not there or descends from the child.
func (s snapshots) checkParent(snap *xml.Snapshot) error {
	if snap.Parent == "" {
		return nil
	}
	if snap.Parent == snap.Name {
		return errorf(protocol.ErrInvalidArg, "cannot set snapshot %s as its own parent", snap.Name)
	}
	parent := s.find(snap.Parent)
	if parent == nil {
		return errorf(protocol.ErrInvalidArg, "parent %s for snapshot %s not found", snap.Parent, snap.Name)
	}
	for ; parent != nil; parent = s.parent(parent) {
		if parent.Name == snap.Name {
			return errorf(protocol.ErrInvalidArg, "parent %s would create cycle to %s", snap.Parent, snap.Name)
		}
	}
	return nil
}

// snapshotFilters are pairs or groups of flags, see filter.
var snapshotFilters = []map[uint32]func(snapshots, *xml.Snapshot) bool{
	{
		protocol.DomainSnapshotListLeaves:   func(s snapshots, snap *xml.Snapshot) bool { return len(s.children(snap)) == 0 },
		protocol.DomainSnapshotListNoLeaves: func(s snapshots, snap *xml.Snapshot) bool { return len(s.children(snap)) > 0 },
	}, {
		protocol.DomainSnapshotListMetadata:   func(snapshots, *xml.Snapshot) bool { return true },
		protocol.DomainSnapshotListNoMetadata: func(snapshots, *xml.Snapshot) bool { return false },
	}, {
		protocol.DomainSnapshotListInactive: func(_ snapshots, snap *xml.Snapshot) bool { return snap.State == xml.SnapshotShutoff },
		protocol.DomainSnapshotListActive:   func(_ snapshots, snap *xml.Snapshot) bool { return snap.HasMemory() },
		protocol.DomainSnapshotListDiskOnly: func(_ snapshots, snap *xml.Snapshot) bool { return snap.State == xml.SnapshotDiskOnly },
	}, {
		protocol.DomainSnapshotListInternal: func(snapshots, *xml.Snapshot) bool { return true },
		protocol.DomainSnapshotListExternal: func(snapshots, *xml.Snapshot) bool { return false },
	},
}

// list gives the snapshots that flags ask for: of all, or of those below one.
// The flag that means "only those without a parent" for the first means "not
// only the children" for the second (virDomainMomentObjListGetNames).
func (s snapshots) list(below *xml.Snapshot, flags uint32) ([]*xml.Snapshot, error) {
	known := uint32(protocol.DomainSnapshotListRoots | protocol.DomainSnapshotListTopological)
	for _, group := range snapshotFilters {
		for flag := range group {
			known |= flag
		}
	}
	if err := checkFlags(flags, known); err != nil {
		return nil, err
	}
	deep := flags&protocol.DomainSnapshotListDescendants != 0
	if below == nil {
		deep = !deep
	}
	list := s.children(below)
	if deep {
		list = s.descendants(below)
	}
	return slices.DeleteFunc(list, func(snap *xml.Snapshot) bool { return !s.passes(snap, flags) }), nil
}

func (s snapshots) passes(snap *xml.Snapshot, flags uint32) bool {
	for _, group := range snapshotFilters {
		asked, passed := false, false
		for flag, test := range group {
			if flags&flag != 0 {
				asked = true
				passed = passed || test(s, snap)
			}
		}
		if asked && !passed {
			return false
		}
	}
	return true
}
