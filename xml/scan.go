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

// scanner reads the tokens of a document and holds what must be true of each:
// bounded size, depth and number of elements, no document type (and so no
// entities of its own), one root element and nothing beside it. Of a domain
// each child occurs once: two names would let the access check see one and
// the definition have the other.
//
// It is an [xml.TokenReader], so that a document is read only once for this
// and for the model.
type scanner struct {
	doc, root       string
	d               *xml.Decoder
	err             error // what was refused; io.EOF when all was read
	depth, elements int
	stray           bool
	seen            map[string]bool // children of the root
	metadata        struct {        // bounds of what is inside <metadata>
		start, end int64
		open       bool
	}
}

func newScanner(doc, root string) *scanner {
	s := &scanner{doc: doc, root: root, d: xml.NewDecoder(strings.NewReader(doc)), seen: map[string]bool{}}
	if len(doc) > maxDocument {
		s.err = malformed("the document has %d bytes, the limit is %d", len(doc), maxDocument)
	}
	return s
}

// Token implements xml.TokenReader.
func (s *scanner) Token() (token xml.Token, err error) {
	if s.err != nil {
		return nil, s.err
	}
	before := s.d.InputOffset()
	token, err = s.d.RawToken()
	switch {
	case errors.Is(err, io.EOF):
		s.err = s.end()
	case err != nil:
		s.err = malformed("the document is not well-formed XML: %v", err)
	default:
		s.err = s.check(token, before)
	}
	if s.err != nil {
		return nil, s.err
	}
	return token, nil
}

// rest reads on to the end.
func (s *scanner) rest() error {
	for s.err == nil {
		s.Token()
	}
	if s.err == io.EOF {
		return nil
	}
	return s.err
}

// scan reads a document only for what a scanner holds.
func scan(doc, root string) error { return newScanner(doc, root).rest() }

// end is what Token returns when nothing is left.
func (s *scanner) end() error {
	switch {
	case s.elements == 0:
		return malformed("the document is empty: a <%s> is needed", s.root)
	case s.depth > 0:
		return malformed("the document is not well-formed XML: it ends before <%s> does", s.root)
	case s.stray:
		return malformed("the document has text outside of <%s>", s.root)
	}
	return io.EOF
}

func (s *scanner) check(token xml.Token, before int64) error {
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
		if m := &s.metadata; m.open && s.depth == 1 {
			m.end, m.open = before, false
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
	if s.depth == 1 && name.Local == "metadata" {
		s.metadata.start, s.metadata.open = s.d.InputOffset(), true
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
