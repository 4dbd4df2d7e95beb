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

// resizeBlock makes a disk that is an image larger, or changes how much the root
// may hold, at once where the environment runs: a limit, which is in the saved
// definition as well, or the size of an image, which need not be in the definition.
func resizeBlock(c *change, a *protocol.DomainBlockResizeArgs) error {
	if err := checkFlags(a.Flags, protocol.DomainBlockResizeBytes, protocol.DomainBlockResizeCapacity); err != nil {
		return err
	}
	b, err := c.drv.findBlock(c.domain, a.Disk)
	if err != nil {
		return err
	}
	whole := a.Flags&protocol.DomainBlockResizeCapacity != 0
	v := c.view()
	limited := xml.RootSpace(v.definition(false)) != 0 || xml.RootSpace(v.definition(true)) != 0
	switch {
	case b.kind == diskImage && whole:
		return errorf(protocol.ErrOperationUnsupported, "the disk '%s' is as large as its image: give a size", b.name)
	case b.kind == diskImage:
	case b.name != rootTarget:
		return errorf(protocol.ErrOperationUnsupported, "the disk '%s' is the host's: resize it there, the environment sees its new size", b.name)
	case whole && b.kind == rootImage && limited:
		return errorf(protocol.ErrOperationUnsupported, "the image has the size that its <space_hard_limit> gives: give a size")
	case whole && b.kind == rootImage:
		return c.growRoot(0)
	case whole:
		return errorf(protocol.ErrOperationUnsupported, "the root of an environment is no block device with a capacity of its own: give a size")
	}
	size := a.Size
	if a.Flags&protocol.DomainBlockResizeBytes == 0 {
		if size > math.MaxUint64/1024 {
			return errorf(protocol.ErrOverflow, "size must be less than %d", uint64(math.MaxUint64/1024))
		}
		size *= 1024
	}
	switch {
	case b.kind == diskImage:
		return c.growDisk(b, size)
	case size == 0 && b.kind == rootImage:
		return errorf(protocol.ErrInvalidArg, "size must not be 0: an image grows only")
	case size == 0:
		return errorf(protocol.ErrInvalidArg, "size must not be 0: to have no limit, take <space_hard_limit> out of the filesystem")
	case b.kind == rootImage:
		if err := c.growRoot(size); err != nil || !limited {
			return err
		}
	}
	return c.edit(v.state.active(), v.persistent, func(def *libvirtxml.Domain) error {
		if b.kind == rootImage && xml.RootSpace(def) == 0 {
			return nil
		}
		return xml.SetRootSpace(def, size)
	})
}

// growDisk makes a disk that is an image larger.
func (c *change) growDisk(b block, size uint64) error {
	v := c.view()
	dev := xml.DiskDevice(diskOf(v.definition(false), b.name))
	return c.drv.rt.GrowDisk(c.ctx, v.instance, dev, size)
}

// growRoot makes an image that is the root larger; 0 is as large as what it is
// in.
func (c *change) growRoot(size uint64) error {
	v := c.view()
	env, err := xml.NewEnvironment(v.definition(false))
	if err != nil {
		return err
	}
	return c.drv.rt.GrowRoot(c.ctx, v.instance, env.Filesystems[0], size)
}
