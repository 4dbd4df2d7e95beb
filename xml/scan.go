package xml

import (
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
)

const (
	maxDocument = 4 << 20 // the wire's string limit
	maxDepth    = 64
	maxElements = 100_000
)

// scan reads a document once for what must hold before it is decoded:
// bounded size, depth and number of elements, no document type (and so no
// entities of its own), one root element and nothing beside it. Of a domain
// each child occurs once: two names would let the access check see one and
// the definition have the other.
func scan(doc, root string) error {
	if len(doc) > maxDocument {
		return malformed("the document has %d bytes, the limit is %d", len(doc), maxDocument)
	}
	s := scanner{root: root, seen: map[string]bool{}}
	d := xml.NewDecoder(strings.NewReader(doc))
	for {
		token, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return malformed("the document is not well-formed XML: %v", err)
		}
		if err := s.token(token); err != nil {
			return err
		}
	}
	switch {
	case s.elements == 0:
		return malformed("the document is empty: a <%s> is needed", root)
	case s.depth > 0:
		return malformed("the document is not well-formed XML: it ends before <%s> does", root)
	case s.stray:
		return malformed("the document has text outside of <%s>", root)
	}
	return nil
}

type scanner struct {
	root            string
	depth, elements int
	stray           bool
	seen            map[string]bool // children of the root
}

func (s *scanner) token(token xml.Token) error {
	switch t := token.(type) {
	case xml.Directive:
		return malformed("the document has a <!%.20s…> declaration: document types and entities are not read", t)
	case xml.CharData:
		s.stray = s.stray || s.depth == 0 && strings.TrimSpace(string(t)) != ""
	case xml.StartElement:
		for _, a := range t.Attr {
			if err := wellNamed(a.Name); err != nil {
				return err
			}
		}
		if err := wellNamed(t.Name); err != nil {
			return err
		}
		return s.start(t.Name)
	case xml.EndElement:
		s.depth--
		if s.depth < 0 {
			return malformed("the document is not well-formed XML: </%.40s> ends nothing", t.Name.Local)
		}
	}
	return nil
}

func (s *scanner) start(name xml.Name) error {
	switch {
	case s.depth == 0 && s.elements > 0:
		return malformed("the document has more than one root element")
	case s.depth == 0 && name.Local != s.root:
		return malformed("the document's root is <%.40s>, it must be <%s>", name.Local, s.root)
	case s.depth == 1 && s.root == "domain" && name.Space == "":
		if s.seen[name.Local] && !slices.Contains(repeatable, name.Local) {
			return invalid("<"+shorten(name.Local)+">", "occurs twice: a domain has one")
		}
		s.seen[name.Local] = true
	}
	s.depth++
	s.elements++
	if s.depth > maxDepth || s.elements > maxElements {
		return malformed("the document is nested deeper than %d or has more than %d elements", maxDepth, maxElements)
	}
	return nil
}

// wellNamed refuses what encoding/xml takes for a name although Namespaces in
// XML does not: a colon that has nothing before or after it.
func wellNamed(name xml.Name) error {
	if strings.Contains(name.Local, ":") {
		return malformed("the document is not well-formed XML: '%.40s' is no name", name.Local)
	}
	return nil
}

// repeatable are the children a domain can have several of.
var repeatable = []string{"seclabel", "sysinfo"}

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
	if err := decode(doc, &id); err != nil {
		return "", uuid, err
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
	if len(s) <= 60 {
		return s
	}
	return strings.ToValidUTF8(s[:60], "") + "…"
}
