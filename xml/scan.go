package xml

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"

	"encoding/hex"
)

const (
	maxDocument = 4 << 20 // the wire's string limit
	maxDepth    = 64
	maxElements = 100_000
)

// scan reads a document once for what must hold before it is decoded:
// bounded size, depth and number of elements, no document type (and so no
// entities of its own), one root element.
func scan(doc, root string) error {
	if len(doc) > maxDocument {
		return malformed("the document has %d bytes, the limit is %d", len(doc), maxDocument)
	}
	d := xml.NewDecoder(strings.NewReader(doc))
	depth, elements := 0, 0
	for {
		token, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return malformed("the document is not well-formed XML: %v", err)
		}
		switch t := token.(type) {
		case xml.Directive:
			return malformed("the document has a <!%.20s…> declaration: document types and entities are not read", t)
		case xml.StartElement:
			if depth == 0 && t.Name.Local != root {
				return malformed("the document's root is <%.40s>, it must be <%s>", t.Name.Local, root)
			}
			depth++
			elements++
		case xml.EndElement:
			depth--
		}
		if depth > maxDepth || elements > maxElements {
			return malformed("the document is nested deeper than %d or has more than %d elements", maxDepth, maxElements)
		}
	}
	if elements == 0 {
		return malformed("the document is empty: a <%s> is needed", root)
	}
	return nil
}

// Identity finds the name and UUID a definition claims, for the access check
// that comes before the definition is parsed. The UUID is zero when there is
// none.
func Identity(doc string) (name string, uuid [16]byte, err error) {
	if err := scan(doc, "domain"); err != nil {
		return "", uuid, err
	}
	var id struct {
		Name string `xml:"name"`
		UUID string `xml:"uuid"`
	}
	if err := xml.Unmarshal([]byte(doc), &id); err != nil {
		return "", uuid, malformed("the document is not well-formed XML: %v", err)
	}
	if id.UUID != "" {
		if uuid, err = parseUUID(id.UUID); err != nil {
			return "", uuid, err
		}
	}
	return id.Name, uuid, nil
}

// parseUUID reads 32 hexadecimal digits with or without dashes.
func parseUUID(text string) (uuid [16]byte, err error) {
	digits := strings.ReplaceAll(strings.TrimSpace(text), "-", "")
	if b, err := hex.DecodeString(digits); err == nil && len(b) == len(uuid) {
		copy(uuid[:], b)
		return uuid, nil
	}
	return uuid, invalid("<uuid>", "%q is not a UUID: 32 hexadecimal digits are needed", shorten(text))
}

// shorten keeps an error readable whatever was in the document.
func shorten(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
