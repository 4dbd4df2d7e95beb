package xml

import (
	"fmt"
	"path"

	"libvirt.org/go/libvirtxml"
)

// DiskNamespace is that of the metadata element that says whose disk the one of
// a definition is, where its root is a template:
//
//	<disk:disk xmlns:disk="http://virtvzd.org/disk/1.0" of="UUID"/>
//
// It is in what virsh dumpxml shows of an environment that has a disk, and in
// no saved definition. Tools that clone containers copy it with the rest of
// the definition and change the UUID: then it names the original.
const DiskNamespace = "http://virtvzd.org/disk/1.0"

type disk struct {
	Of string `xml:"of,attr"`
}

// WithDisk gives a definition that says whose disk it has. def is left as it is.
func WithDisk(def *libvirtxml.Domain, uuid string) (*libvirtxml.Domain, error) {
	next := *def
	next.Metadata = &libvirtxml.DomainMetadata{}
	if def.Metadata != nil {
		*next.Metadata = *def.Metadata
	}
	err := SetMetadata(&next, fmt.Sprintf("<disk of='%s'/>", uuid), "disk", DiskNamespace)
	return &next, err
}

// TakeDisk takes off what WithDisk added, and gives the UUID it had. It is zero
// if there was none.
func TakeDisk(def *libvirtxml.Domain) (uuid [16]byte, err error) {
	uuid, found, err := diskOf(def)
	if err != nil || !found {
		return uuid, err
	}
	return uuid, SetMetadata(def, "", "", DiskNamespace)
}

func diskOf(def *libvirtxml.Domain) (uuid [16]byte, found bool, err error) {
	text, found, err := namespaced(def, DiskNamespace)
	if err != nil || !found {
		return uuid, false, err
	}
	var d disk
	if err := decode(text, &d); err != nil {
		return uuid, false, err
	}
	if uuid, err = parseUUID(d.Of); err != nil {
		return uuid, false, invalid("<disk:disk>", "names '%s', which is not the UUID of an environment", shorten(d.Of))
	}
	return uuid, true, nil
}

// HasTemplateRoot tells whether an environment of this definition has a disk.
func HasTemplateRoot(def *libvirtxml.Domain) bool {
	list := filesystems(def)
	return len(list) > 0 && list[0].Target == "/" && list[0].Type == "template"
}

// OwnRoot names the root of a definition that an environment writes to and
// nobody copies: a directory, image, device or volume of the host's. "" is any
// other.
func OwnRoot(def *libvirtxml.Domain) string {
	for _, f := range def.Devices.Filesystems {
		kind, source := filesystemSource(f)
		if path.Clean(f.Target.Dir) == "/" && f.ReadOnly == nil && kind != "template" {
			return path.Clean(source)
		}
	}
	return ""
}
