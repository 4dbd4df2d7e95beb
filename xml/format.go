package xml

import (
	"encoding/xml"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// FormatOptions select what a document shows. There is nothing secret in an
// environment's definition today, so Secure changes nothing.
type FormatOptions struct {
	Inactive   bool // without what only a running environment has
	Secure     bool
	Migratable bool
}

// Format makes a document of a definition, with libvirt's indentation.
func Format(def *libvirtxml.Domain, o FormatOptions) (string, error) {
	if o.Inactive || o.Migratable {
		def = Copy(def)
		forgetLive(def)
	}
	doc, err := xml.MarshalIndent(def, "", "  ")
	if err != nil {
		return "", err
	}
	return selfClose(string(doc)) + "\n", nil
}

// selfClose writes empty elements as libvirt does: <a></a> becomes <a/>.
func selfClose(doc string) string {
	var b strings.Builder
	for {
		i := strings.Index(doc, "></")
		if i < 0 {
			b.WriteString(doc)
			return b.String()
		}
		open := strings.LastIndexByte(doc[:i], '<')
		end := strings.IndexByte(doc[i+3:], '>')
		if open >= 0 && end >= 0 && doc[open+1] != '/' && elementName(doc[open+1:i]) == doc[i+3:i+3+end] {
			b.WriteString(doc[:i] + "/>")
			doc = doc[i+3+end+1:]
			continue
		}
		b.WriteString(doc[:i+3])
		doc = doc[i+3:]
	}
}

func elementName(tag string) string {
	if i := strings.IndexAny(tag, " \t\n"); i >= 0 {
		return tag[:i]
	}
	return tag
}

// Copy makes an independent copy of a definition.
func Copy(def *libvirtxml.Domain) *libvirtxml.Domain {
	doc, err := xml.Marshal(def)
	next := &libvirtxml.Domain{}
	if err == nil {
		err = xml.Unmarshal(doc, next)
	}
	if err != nil { // what was parsed once can be written and parsed again
		panic("xml: a definition cannot be copied: " + err.Error())
	}
	return next
}
