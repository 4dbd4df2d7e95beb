package driver

import (
	"math"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

var blockResizing = table{
	modify(protocol.DomainBlockResize, resizeBlock),
}

// resizeBlock changes how much the root may hold: at once where the
// environment runs, and in the saved definition, as the size of an image would
// stay, too.
func resizeBlock(c *change, a *protocol.DomainBlockResizeArgs) error {
	if err := checkFlags(a.Flags, protocol.DomainBlockResizeBytes, protocol.DomainBlockResizeCapacity); err != nil {
		return err
	}
	b, err := c.drv.findBlock(c.domain, a.Disk)
	if err != nil {
		return err
	}
	switch {
	case b.name != rootTarget:
		return errorf(protocol.ErrOperationUnsupported, "the disk '%s' is the host's: resize it there, the environment sees its new size", b.name)
	case a.Flags&protocol.DomainBlockResizeCapacity != 0:
		return errorf(protocol.ErrOperationUnsupported, "the root of an environment is no block device with a capacity of its own: give a size")
	}
	size := a.Size
	if a.Flags&protocol.DomainBlockResizeBytes == 0 {
		if size > math.MaxUint64/1024 {
			return errorf(protocol.ErrOverflow, "size must be less than %d", uint64(math.MaxUint64/1024))
		}
		size *= 1024
	}
	if size == 0 {
		return errorf(protocol.ErrInvalidArg, "size must not be 0: to have no limit, take <space_hard_limit> out of the filesystem")
	}
	v := c.view()
	return c.edit(v.state.active(), v.persistent, func(def *libvirtxml.Domain) error {
		return xml.SetRootSpace(def, size)
	})
}
