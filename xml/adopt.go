package xml

import (
	"encoding/xml"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// adopt declares, on each element of metadata, the prefixes that were
// declared around <metadata>: the text is kept as it is, and what stood on
// <domain> is not kept with it.
func adopt(doc string, metadata *libvirtxml.DomainMetadata) {
	outer := outerPrefixes(doc)
	if len(outer) == 0 {
		return
	}
	d := xml.NewDecoder(strings.NewReader(metadata.XML))
	var b strings.Builder
	var top xml.StartElement
	depth, begin := 0, int64(0)
	for {
		from := d.InputOffset()
		token, err := d.RawToken()
		if err != nil {
			break
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth == 0 {
				top, begin = t.Copy(), from
			}
			depth++
		case xml.EndElement:
			if depth--; depth == 0 {
				b.WriteString(declare(metadata.XML[begin:d.InputOffset()], top, outer))
			}
		default:
			if depth == 0 {
				b.WriteString(metadata.XML[from:d.InputOffset()])
			}
		}
	}
	metadata.XML = b.String()
}

// outerPrefixes are the declarations on <domain> and <metadata>.
func outerPrefixes(doc string) (list []xml.Attr) {
	d := xml.NewDecoder(strings.NewReader(doc))
	for depth := 0; ; {
		token, err := d.RawToken()
		if err != nil {
			return list
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth == 0 || depth == 1 && t.Name.Local == "metadata" {
				for _, a := range t.Attr {
					if a.Name.Space == "xmlns" && a.Value != "" {
						list = append(list, a)
					}
				}
			}
			if depth == 1 && t.Name.Local == "metadata" {
				return list
			}
			depth++
		case xml.EndElement:
			depth--
		}
	}
}

// declare adds to an element the declarations it has not got and may need:
// those whose prefix occurs in it.
func declare(element string, t xml.StartElement, outer []xml.Attr) string {
	at := 1 + len(t.Name.Local)
	if t.Name.Space != "" {
		at += len(t.Name.Space) + 1
	}
	added := ""
	done := map[string]bool{}
	for _, a := range slices.Backward(outer) { // the inner declaration counts
		if !done[a.Name.Local] && !declares(t, a.Name.Local) && strings.Contains(element, a.Name.Local+":") {
			added += " xmlns:" + a.Name.Local + `="` + attributeEscapes.Replace(a.Value) + `"`
		}
		done[a.Name.Local] = true
	}
	return element[:at] + added + element[at:]
}
