package xml

import (
	"encoding/xml"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"libvirt.org/go/libvirtxml"
)

// Metadata gives the element of <metadata> with a namespace, as it was
// before SetMetadata put it into that namespace
// (libvirt's virXMLExtractNamespaceXML).
func Metadata(def *libvirtxml.Domain, uri string) (element string, found bool, err error) {
	element, found, err = namespaced(def, uri)
	if found {
		element = withoutNamespace(element, uri)
	}
	return element, found, err
}

// namespaced gives the element as it stands in the definition.
func namespaced(def *libvirtxml.Domain, uri string) (element string, found bool, err error) {
	if uri == "" {
		return "", false, invalid("<metadata>", "is found by the URI of its namespace, which is missing")
	}
	if def.Metadata == nil {
		return "", false, nil
	}
	start, end, err := findElement(def.Metadata.XML, uri)
	if err != nil || start == end {
		return "", false, err
	}
	return def.Metadata.XML[start:end], true, nil
}

// withoutNamespace takes the prefix of a namespace, and its declaration, off
// an element and those in it.
func withoutNamespace(element, uri string) string {
	d := xml.NewDecoder(strings.NewReader(element))
	token, err := d.RawToken()
	root, ok := token.(xml.StartElement)
	if err != nil || !ok {
		return element
	}
	prefix := ""
	for _, a := range root.Attr {
		if a.Name.Space == "xmlns" && a.Value == uri {
			prefix = a.Name.Local
		}
	}
	if prefix == "" {
		return element
	}
	declaration := regexp.MustCompile(`\s+xmlns:` + regexp.QuoteMeta(prefix) + `\s*=\s*("[^"]*"|'[^']*')`)
	start := element[:d.InputOffset()]
	var b strings.Builder
	b.WriteString(renamed(declaration.ReplaceAllString(start, ""), prefix))
	for {
		from := d.InputOffset()
		token, err := d.RawToken()
		if err != nil {
			return b.String()
		}
		text := element[from:d.InputOffset()]
		switch token.(type) {
		case xml.StartElement, xml.EndElement:
			text = renamed(text, prefix)
		}
		b.WriteString(text)
	}
}

// renamed takes a prefix off the name of one tag.
func renamed(tag, prefix string) string {
	if rest, ok := strings.CutPrefix(tag, "<"+prefix+":"); ok {
		return "<" + rest
	}
	if rest, ok := strings.CutPrefix(tag, "</"+prefix+":"); ok {
		return "</" + rest
	}
	return tag
}

// SetMetadata replaces the element with a namespace, or removes it when
// element is empty. The new one gets the namespace under the prefix key. Give
// it a copy: on an error the definition may have been changed in part.
func SetMetadata(def *libvirtxml.Domain, element, key, uri string) error {
	if uri == "" || (element != "" && key == "") {
		return invalid("<metadata>", "needs a key and the URI of a namespace")
	}
	if len(uri) > maxURI || !utf8.ValidString(uri) || strings.ContainsFunc(uri, notXML) {
		return invalid("<metadata>", "cannot have the namespace %q: a URI of up to %d bytes without control characters is needed", shorten(uri), maxURI)
	}
	if def.Metadata == nil {
		def.Metadata = &libvirtxml.DomainMetadata{}
	}
	inner := def.Metadata.XML
	start, end, err := findElement(inner, uri)
	if err != nil {
		return err
	}
	if start < end {
		inner = strings.TrimRight(inner[:start], " \t\n") + inner[end:]
	}
	if element != "" {
		named, err := withNamespace(element, key, uri)
		if err != nil {
			return err
		}
		inner = strings.TrimRight(inner, " \t\n") + "\n    " + named
	}
	if strings.TrimSpace(inner) == "" {
		def.Metadata = nil
		return nil
	}
	def.Metadata.XML = strings.TrimRight(inner, " \t\n") + "\n  "
	if uri == VENamespace {
		_, err = parseVE(def)
	}
	return err
}

// findElement gives the bounds of the top element with a namespace; equal
// bounds mean there is none.
func findElement(inner, uri string) (start, end int, err error) {
	d := xml.NewDecoder(strings.NewReader(inner))
	for {
		before := int(d.InputOffset())
		token, err := d.Token()
		if err != nil {
			if d.InputOffset() == int64(len(inner)) {
				return 0, 0, nil
			}
			return 0, 0, malformed("<metadata> is not well-formed XML: %v", err)
		}
		open, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		if err := d.Skip(); err != nil {
			return 0, 0, malformed("<metadata> is not well-formed XML: %v", err)
		}
		if open.Name.Space == uri {
			return before, int(d.InputOffset()), nil
		}
	}
}

const maxURI = 4096

// notXML are the characters XML 1.0 cannot hold in an attribute, even
// escaped, and line ends, which come back as spaces.
func notXML(r rune) bool { return r < 0x20 || r == 0xFFFE || r == 0xFFFF }

const maxPrefix = 256

var prefixPattern = pattern(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// withNamespace puts an element into a namespace: <apps> becomes
// <key:apps xmlns:key="uri">, as virDomainSetMetadata does.
func withNamespace(element, key, uri string) (string, error) {
	element = strings.TrimSpace(element)
	if err := scanElement(element); err != nil {
		return "", err
	}
	if len(key) > maxPrefix || !prefixPattern().MatchString(key) || strings.EqualFold(key, "xml") || strings.EqualFold(key, "xmlns") {
		return "", invalid("<metadata>", "cannot have the key %q: a namespace prefix is needed, a letter and then letters, digits, '-', '_' and '.'", shorten(key))
	}
	d := xml.NewDecoder(strings.NewReader(element))
	var b strings.Builder
	var names []string
	depth := 0
	for {
		from := d.InputOffset()
		token, err := d.RawToken()
		if err != nil {
			break
		}
		text := element[from:d.InputOffset()]
		switch t := token.(type) {
		case xml.StartElement:
			name := t.Name.Local
			if t.Name.Space == "" {
				text = "<" + key + ":" + text[1:]
				name = key + ":" + name
			} else {
				name = t.Name.Space + ":" + name
			}
			if depth == 0 && t.Name.Space != "" && t.Name.Space != key || slices.ContainsFunc(t.Attr, func(a xml.Attr) bool {
				return a.Name.Space == "xmlns" && a.Name.Local == key && a.Value != uri
			}) {
				return "", invalid("<metadata>", "has an element in another namespace than %q, under which it could not be found again", shorten(uri))
			}
			if depth == 0 && !declares(t, key) {
				at := 1 + len(name)
				text = text[:at] + " xmlns:" + key + `="` + attributeEscapes.Replace(uri) + `"` + text[at:]
			}
			names = append(names, name)
			depth++
		case xml.EndElement:
			depth--
			name := names[len(names)-1]
			names = names[:len(names)-1]
			if text != "" { // empty when the element closed itself
				text = "</" + name + ">"
			}
		}
		b.WriteString(text)
	}
	return b.String(), nil
}

func declares(t xml.StartElement, key string) bool {
	for _, a := range t.Attr {
		if a.Name.Space == "xmlns" && a.Name.Local == key {
			return true
		}
	}
	return false
}

// scanElement wants one well-formed element within the usual bounds.
func scanElement(element string) error {
	d := xml.NewDecoder(strings.NewReader(element))
	token, err := d.RawToken()
	open, ok := token.(xml.StartElement)
	if err != nil || !ok {
		return malformed("the metadata is not an XML element")
	}
	if err := scan(element, open.Name.Local); err != nil {
		return err
	}
	var any struct {
		Inner string `xml:",innerxml"`
	}
	return decode(element, &any)
}
