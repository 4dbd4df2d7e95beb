package driver

import (
	"os"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// block is what clients know as a block device: the root, or a <disk>.
type block struct {
	name string // target: "/" or "vda"
	path string // on the host; "" of a volume that is not in use
	kind blockKind

	qcow2  bool           // path is a qcow2 image
	device runtime.Device // of a rootImage that is mounted, or a diskImage that is attached
	volume string         // POOL/VOLUME
}

type blockKind int

const (
	rootLayer     blockKind = iota // the environment's own layer over a template
	rootDirectory                  // a directory that is its root
	rootImage                      // a file, block device or volume that its root is in
	diskDevice
	diskImage // a file, or a volume
)

// rootTarget is the name of an environment's root among its block devices,
// the target of its <filesystem>. It is not a device of its own: its numbers
// are those of the environment on the disk it lies on.
const rootTarget = "/"

// blocks lists the root and the disks.
func (drv *Driver) blocks(d *domain, v *view) []block {
	return drv.blocksOf(d, v, v.definition(false))
}

// blocksOf lists those of the running definition or the saved one.
func (drv *Driver) blocksOf(d *domain, v *view, def *libvirtxml.Domain) []block {
	root := drv.rootOf(d, def)
	if root.kind == rootImage && v.instance != nil && root == drv.rootOf(d, v.live) {
		if path, device := v.instance.ImageRoot(); path != "" {
			root.path, root.device = path, device
		}
	}
	list := []block{root}
	for _, disk := range def.Devices.Disks {
		list = append(list, diskBlock(&disk, v))
	}
	return list
}

// diskBlock is a <disk>, with what the environment tells of it if it runs.
func diskBlock(disk *libvirtxml.DomainDisk, v *view) block {
	dev := xml.DiskDevice(disk)
	b := block{name: disk.Target.Dev, path: dev.Source, kind: diskDevice}
	if dev.Image == "" {
		return b
	}
	b.kind, b.qcow2 = diskImage, dev.Image == "qcow2"
	if dev.Volume {
		b.path, b.volume = "", dev.Source
	}
	if v.instance != nil {
		if path, device := v.instance.Disk(dev); path != "" {
			b.path, b.device = path, device
		}
	}
	return b
}

// rootOf is the root that a definition has.
func (drv *Driver) rootOf(d *domain, def *libvirtxml.Domain) block {
	root := block{name: rootTarget, path: drv.rt.PrivateDir(d.uuid), kind: rootLayer}
	for _, fs := range def.Devices.Filesystems {
		if fs.Target == nil || fs.Target.Dir != rootTarget || fs.Source == nil {
			continue
		}
		switch s := fs.Source; {
		case s.Mount != nil:
			root.path, root.kind = s.Mount.Dir, rootDirectory
		case s.File != nil:
			root.path, root.kind = s.File.File, rootImage
		case s.Block != nil:
			root.path, root.kind = s.Block.Dev, rootImage
		case s.Volume != nil:
			root.path, root.kind, root.volume = "", rootImage, s.Volume.Pool+"/"+s.Volume.Volume
		}
		root.qcow2 = fs.Driver != nil && fs.Driver.Format == "qcow2"
	}
	return root
}

// findBlock finds one by its target, or by its path on the host if only one
// has it (virDomainDiskByName).
func (drv *Driver) findBlock(d *domain, name string) (block, error) {
	v := d.view()
	return drv.findBlockOf(d, v, v.definition(false), name)
}

// findBlockOf is findBlock in the running definition or the saved one.
func (drv *Driver) findBlockOf(d *domain, v *view, def *libvirtxml.Domain, name string) (block, error) {
	var byPath []block
	for _, b := range drv.blocksOf(d, v, def) {
		if b.name == name {
			return b, nil
		}
		if b.path == name && name != "" {
			byPath = append(byPath, b)
		}
	}
	if len(byPath) != 1 {
		return block{}, errorf(protocol.ErrInvalidArg, "invalid path: %s", name)
	}
	return byPath[0], nil
}

// io picks what the environment did on the disk. Where there is no telling
// which disk it is (on btrfs, say), all are meant.
func (b block) io(used []runtime.IOStats) (runtime.IOStats, error) {
	disk := b.device
	if disk == (runtime.Device{}) && b.kind == diskImage {
		return runtime.IOStats{}, errorf(protocol.ErrOperationFailed, "the disk '%s' is not attached", b.name)
	}
	if disk == (runtime.Device{}) {
		var err error
		if disk, err = runtime.DiskOf(b.path); err != nil {
			return runtime.IOStats{}, err
		}
	}
	if disk == (runtime.Device{}) {
		return runtime.TotalIO(used), nil
	}
	for _, s := range used {
		if s.Device == disk {
			return s, nil
		}
	}
	return runtime.IOStats{Device: disk}, nil // not used yet
}

// isDirectory tells whether a block is none: a volume can be a directory, too.
func (b block) isDirectory() bool {
	if b.kind == rootImage {
		info, err := os.Stat(b.path)
		return err == nil && info.IsDir()
	}
	return b.kind == rootLayer || b.kind == rootDirectory
}

func (b block) space() (runtime.Space, error) {
	if b.isDirectory() {
		return runtime.FilesystemSpace(b.path)
	}
	return runtime.ImageSpace(b.path, b.qcow2)
}
