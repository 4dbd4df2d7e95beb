package xml

import (
	"encoding/xml"

	"libvirt.org/go/libvirtxml"
)

// FormatOptions select what a document shows. There is nothing secret in an
// environment's definition today, so Secure changes nothing.
type FormatOptions struct {
	Inactive   bool // without what only a running environment has
	Secure     bool
	Migratable bool
}

// Format makes a document of a definition, in libvirt's order and layout. It
// fails on a definition whose document Parse would refuse for its size, so
// that nothing is ever saved that cannot be loaded again.
func Format(def *libvirtxml.Domain, o FormatOptions) (string, error) {
	if o.Inactive || o.Migratable {
		def = Copy(def)
		forgetLive(def)
	}
	shown, metadata := *def, ""
	if def.Metadata != nil {
		metadata = def.Metadata.XML
		shown.Metadata = &libvirtxml.DomainMetadata{}
	}
	doc, err := xml.Marshal(&shown)
	if err != nil {
		return "", err
	}
	out, err := write(unfoldRoutes(productFirst().ReplaceAllString(string(doc), "$2$1")), metadata)
	if err != nil {
		return "", err
	}
	if metadata == "" && len(out) <= smallDocument {
		return out, nil
	}
	if len(out) > maxDocument-fileHeader {
		return "", malformed("the definition has %d bytes, the limit is %d", len(out), maxDocument-fileHeader)
	}
	return out, scan(out, "domain")
}

// productFirst is how the model has an USB device, which libvirt's schema
// wants the other way round.
var productFirst = pattern(`(<product id="[^"]*"></product>)(<vendor id="[^"]*"></vendor>)`)

// A document this small without metadata is within every bound: its depth is
// the model's.
const smallDocument = 64 << 10

// fileHeader is room for the comment above a definition in its file.
const fileHeader = 4096
