package xml

import (
	"encoding/xml"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// maxPrefixes bounds the namespaces that are looked for in each element.
const maxPrefixes = 64

// adopt declares, on each element of metadata, the prefixes that were
// declared around <metadata>: the text is kept as it is, and what stood on
// <domain> is not kept with it.
func adopt(doc string, metadata *libvirtxml.DomainMetadata) error {
	outer, err := outerPrefixes(doc)
	if err != nil || len(outer) == 0 {
		return err
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
				if b.Len() > maxDocument {
					return invalid("<metadata>", "has %d bytes with the namespaces that its elements need, the limit is %d", b.Len(), maxDocument)
				}
			}
		default:
			if depth == 0 {
				b.WriteString(metadata.XML[from:d.InputOffset()])
			}
		}
	}
	metadata.XML = b.String()
	return nil
}

// outerPrefixes are the declarations on <domain> and <metadata>, the last
// first: of one prefix the inner declaration counts.
func outerPrefixes(doc string) (list []xml.Attr, err error) {
	all, err := outerAttributes(doc)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, a := range slices.Backward(all) {
		if a.Name.Space != "xmlns" || a.Value == "" || known[a.Name.Local] {
			continue
		}
		if known[a.Name.Local] = true; len(known) > maxPrefixes {
			return nil, invalid("<metadata>", "and <domain> declare more than %d namespaces: declare those of an element on it", maxPrefixes)
		}
		list = append(list, a)
	}
	return list, nil
}

// outerAttributes are all attributes of <domain> and <metadata>.
func outerAttributes(doc string) (list []xml.Attr, err error) {
	d := xml.NewDecoder(strings.NewReader(doc))
	for depth := 0; ; {
		token, err := d.RawToken()
		if err != nil {
			return nil, err
		}
		switch t := token.(type) {
		case xml.StartElement:
			inner := depth == 1 && t.Name.Local == "metadata"
			if depth == 0 || inner {
				list = append(list, t.Attr...)
			}
			if inner {
				return list, nil
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
	for _, a := range outer {
		if strings.Contains(element, a.Name.Local+":") && !declares(t, a.Name.Local) {
			added += " xmlns:" + a.Name.Local + `="` + attributeEscapes.Replace(a.Value) + `"`
		}
	}
	return element[:at] + added + element[at:]
}
