package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var snapshotting = table{
	reply(protocol.DomainSnapshotCreateXML, createSnapshot),
	modify(protocol.DomainSnapshotDelete, deleteSnapshot),
	modify(protocol.DomainRevertToSnapshot, revertToSnapshot),

	get(protocol.DomainSnapshotGetXMLDesc, describeSnapshot),
	get(protocol.DomainSnapshotNum, func(d *domain, a *protocol.DomainSnapshotNumArgs) (ret protocol.DomainSnapshotNumRet, err error) {
		list, err := d.view().snapshots.list(nil, a.Flags)
		return protocol.DomainSnapshotNumRet{Num: int32(len(list))}, err
	}),
	get(protocol.DomainSnapshotListNames, func(d *domain, a *protocol.DomainSnapshotListNamesArgs) (ret protocol.DomainSnapshotListNamesRet, err error) {
		list, err := d.view().snapshots.list(nil, a.Flags)
		return protocol.DomainSnapshotListNamesRet{Names: snapshotNames(list, a.Maxnames)}, err
	}),
	get(protocol.DomainListAllSnapshots, func(d *domain, a *protocol.DomainListAllSnapshotsArgs) (ret protocol.DomainListAllSnapshotsRet, err error) {
		list, err := d.view().snapshots.list(nil, a.Flags)
		ret.Ret = int32(len(list))
		ret.Snapshots = d.snapshotRefs(list, a.NeedResults)
		return ret, err
	}),
	get(protocol.DomainSnapshotNumChildren, func(d *domain, a *protocol.DomainSnapshotNumChildrenArgs) (ret protocol.DomainSnapshotNumChildrenRet, err error) {
		list, err := d.snapshotsBelow(a.Snap.Name, a.Flags)
		return protocol.DomainSnapshotNumChildrenRet{Num: int32(len(list))}, err
	}),
	get(protocol.DomainSnapshotListChildrenNames, func(d *domain, a *protocol.DomainSnapshotListChildrenNamesArgs) (ret protocol.DomainSnapshotListChildrenNamesRet, err error) {
		list, err := d.snapshotsBelow(a.Snap.Name, a.Flags)
		return protocol.DomainSnapshotListChildrenNamesRet{Names: snapshotNames(list, a.Maxnames)}, err
	}),
	get(protocol.DomainSnapshotListAllChildren, func(d *domain, a *protocol.DomainSnapshotListAllChildrenArgs) (ret protocol.DomainSnapshotListAllChildrenRet, err error) {
		list, err := d.snapshotsBelow(a.Snapshot.Name, a.Flags)
		ret.Ret = int32(len(list))
		ret.Snapshots = d.snapshotRefs(list, a.NeedResults)
		return ret, err
	}),
	get(protocol.DomainSnapshotLookupByName, func(d *domain, a *protocol.DomainSnapshotLookupByNameArgs) (ret protocol.DomainSnapshotLookupByNameRet, err error) {
		ret.Snap, err = d.lookupSnapshot(a.Name, a.Flags)
		return ret, err
	}),
	get(protocol.DomainHasCurrentSnapshot, func(d *domain, a *protocol.DomainHasCurrentSnapshotArgs) (ret protocol.DomainHasCurrentSnapshotRet, err error) {
		ret.Result = number(d.view().snapshots.current != "")
		return ret, checkFlags(a.Flags)
	}),
	get(protocol.DomainSnapshotCurrent, func(d *domain, a *protocol.DomainSnapshotCurrentArgs) (ret protocol.DomainSnapshotCurrentRet, err error) {
		current := d.view().snapshots.current
		if current == "" {
			return ret, errorf(protocol.ErrNoDomainSnapshot, "the domain does not have a current snapshot")
		}
		ret.Snap, err = d.lookupSnapshot(current, a.Flags)
		return ret, err
	}),
	get(protocol.DomainSnapshotGetParent, func(d *domain, a *protocol.DomainSnapshotGetParentArgs) (ret protocol.DomainSnapshotGetParentRet, err error) {
		all := d.view().snapshots
		snap, err := all.get(a.Snap.Name)
		if err != nil {
			return ret, err
		}
		parent := all.parent(snap)
		if parent == nil {
			return ret, errorf(protocol.ErrNoDomainSnapshot, "snapshot '%s' does not have a parent", snap.Name)
		}
		ret.Snap, err = d.lookupSnapshot(parent.Name, a.Flags)
		return ret, err
	}),
	get(protocol.DomainSnapshotIsCurrent, func(d *domain, a *protocol.DomainSnapshotIsCurrentArgs) (ret protocol.DomainSnapshotIsCurrentRet, err error) {
		_, err = d.lookupSnapshot(a.Snap.Name, a.Flags)
		ret.Current = number(d.view().snapshots.current == a.Snap.Name)
		return ret, err
	}),
	get(protocol.DomainSnapshotHasMetadata, func(d *domain, a *protocol.DomainSnapshotHasMetadataArgs) (ret protocol.DomainSnapshotHasMetadataRet, err error) {
		_, err = d.lookupSnapshot(a.Snap.Name, a.Flags)
		ret.Metadata = 1
		return ret, err
	}),
}

func snapshotNames(list []*xml.Snapshot, most int32) []string {
	names := make([]string, 0, len(list))
	for _, snap := range list[:min(len(list), max(0, int(most)))] {
		names = append(names, snap.Name)
	}
	return names
}

func (d *domain) snapshotRef(name string) protocol.NonnullDomainSnapshot {
	return protocol.NonnullDomainSnapshot{Name: name, Dom: d.ref(d.view())}
}

func (d *domain) snapshotRefs(list []*xml.Snapshot, need int32) (refs []protocol.NonnullDomainSnapshot) {
	if need == 0 {
		return nil
	}
	for _, snap := range list {
		refs = append(refs, d.snapshotRef(snap.Name))
	}
	return refs
}

func (d *domain) snapshotsBelow(name string, flags uint32) ([]*xml.Snapshot, error) {
	all := d.view().snapshots
	snap, err := all.get(name)
	if err != nil {
		return nil, err
	}
	return all.list(snap, flags)
}

func (d *domain) lookupSnapshot(name string, flags uint32) (ref protocol.NonnullDomainSnapshot, err error) {
	if err := checkFlags(flags); err != nil {
		return ref, err
	}
	snap, err := d.view().snapshots.get(name)
	if err != nil {
		return ref, err
	}
	return d.snapshotRef(snap.Name), nil
}

func describeSnapshot(d *domain, a *protocol.DomainSnapshotGetXMLDescArgs) (ret protocol.DomainSnapshotGetXMLDescRet, err error) {
	if err := checkFlags(a.Flags, protocol.DomainSnapshotXMLSecure); err != nil {
		return ret, err
	}
	snap, err := d.view().snapshots.get(a.Snap.Name)
	if err != nil {
		return ret, err
	}
	ret.XML, err = xml.FormatSnapshot(snap, xml.FormatOptions{Secure: a.Flags&protocol.DomainSnapshotXMLSecure != 0})
	return ret, err
}

// loadSnapshots reads what is known of a domain that is new to the daemon.
func (c *change) loadSnapshots() {
	found := c.drv.storedSnapshots(c.uuid, func(file string, err error) {
		c.drv.log.Error("snapshot skipped", "file", file, "error", err)
	})
	c.publish(func(v *view) { v.snapshots = found })
	c.lookForSaved()
}

func (drv *Driver) storedSnapshots(id protocol.UUID, skip func(file string, err error)) snapshots {
	return drv.store.snapshots(id, func() xml.HostFacts {
		facts := drv.facts()
		facts.Templates, facts.HostRoot = nil, true // as load has it
		return facts
	}, skip)
}

// keepSnapshot saves a snapshot, then makes it known.
func (c *change) keepSnapshot(snap *xml.Snapshot) error {
	if err := c.drv.store.saveSnapshot(c.uuid, snap); err != nil {
		return err
	}
	c.publish(func(v *view) { v.snapshots = v.snapshots.with(snap) })
	return nil
}

func (c *change) setCurrentSnapshot(name string) error {
	if c.view().snapshots.current == name {
		return nil
	}
	if err := c.drv.store.saveCurrentSnapshot(c.uuid, name); err != nil {
		return err
	}
	c.publish(func(v *view) { v.snapshots.current = name })
	return nil
}

// forgetSnapshot removes what is known of a snapshot, and none of its data.
func (c *change) forgetSnapshot(name string) error {
	if err := c.drv.store.removeSnapshot(c.uuid, name); err != nil {
		return err
	}
	c.publish(func(v *view) { v.snapshots = v.snapshots.without(name) })
	return nil
}

// forgetSnapshots is what undefine does with VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA.
func (c *change) forgetSnapshots() error {
	if err := c.setCurrentSnapshot(""); err != nil {
		return err
	}
	for _, snap := range c.view().snapshots.all {
		if err := c.forgetSnapshot(snap.Name); err != nil {
			return err
		}
	}
	return nil
}
