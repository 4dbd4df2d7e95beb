package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// deleteSnapshot deletes a snapshot, its descendants or both. Children that
// stay become those of its parent, with the disk they had.
func deleteSnapshot(c *change, a *protocol.DomainSnapshotDeleteArgs) error {
	if err := checkFlags(a.Flags, protocol.DomainSnapshotDeleteChildren, protocol.DomainSnapshotDeleteChildrenOnly, protocol.DomainSnapshotDeleteMetadataOnly); err != nil {
		return err
	}
	all := c.view().snapshots
	snap, err := all.get(a.Snap.Name)
	if err != nil {
		return err
	}
	only := a.Flags&protocol.DomainSnapshotDeleteChildrenOnly != 0
	var gone []*xml.Snapshot
	if !only {
		gone = append(gone, snap)
	}
	if only || a.Flags&protocol.DomainSnapshotDeleteChildren != 0 {
		gone = append(gone, all.descendants(snap)...)
	} else if err := c.moveChildren(snap); err != nil {
		return err
	}
	if err := c.succeedCurrent(snap, gone, only); err != nil {
		return err
	}
	// From the leaves on: killed in between, what is left is a tree.
	for n := len(gone) - 1; n >= 0; n-- {
		if err := c.dropSnapshot(gone[n], a.Flags&protocol.DomainSnapshotDeleteMetadataOnly != 0); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) moveChildren(snap *xml.Snapshot) error {
	for _, child := range c.view().snapshots.children(snap) {
		moved := *child
		moved.Parent = snap.Parent
		if err := c.keepSnapshot(&moved); err != nil {
			return err
		}
	}
	return nil
}

// succeedCurrent finds another for a current snapshot that goes: the nearest
// that stays.
func (c *change) succeedCurrent(snap *xml.Snapshot, gone []*xml.Snapshot, only bool) error {
	for _, g := range gone {
		if g.Name != c.view().snapshots.current {
			continue
		}
		if only {
			return c.setCurrentSnapshot(snap.Name)
		}
		return c.setCurrentSnapshot(snap.Parent)
	}
	return nil
}

// dropSnapshot gives up the data before the snapshot is forgotten: killed in
// between, it can be deleted once more.
func (c *change) dropSnapshot(snap *xml.Snapshot, metadataOnly bool) error {
	if _, err := c.drv.layers.Of(c.uuid, snap.Layer); err == nil && !metadataOnly && !c.sharesLayer(snap) {
		if err := c.drv.layers.Release(c.uuid, snap.Layer); err != nil {
			return err
		}
	}
	if err := c.forgetSnapshot(snap.Name); err != nil {
		return err
	}
	c.drv.log.Info("snapshot deleted", "domain", c.view().name, "snapshot", snap.Name, "layer", snap.Layer, "data", !metadataOnly)
	return nil
}

// sharesLayer tells whether another snapshot is one of the same state: virsh
// snapshot-edit --clone makes such.
func (c *change) sharesLayer(snap *xml.Snapshot) bool {
	for _, other := range c.view().snapshots.all {
		if other.Name != snap.Name && other.Layer == snap.Layer {
			return true
		}
	}
	return false
}
