package xml

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// domain reads the document into the model. What the scanner refuses, anywhere
// in the document, is told before what the model cannot read.
func (s *scanner) domain(def *libvirtxml.Domain) error {
	err := decodeFrom(s.doc, xml.NewTokenDecoder(&lentRoutes{from: s.Token}), s.d, def)
	if refused := s.rest(); refused != nil {
		return refused
	}
	if err == nil && def.Metadata != nil {
		// The model takes this from the bytes of its reader, which has tokens.
		def.Metadata.XML = strings.Clone(s.doc[s.metadata.start:s.metadata.end])
	}
	return err
}

// decode reads a scanned document into a value.
func decode(doc string, into any) error {
	d := xml.NewDecoder(strings.NewReader(doc))
	return decodeFrom(doc, d, d, into)
}

// decodeFrom has d, whose tokens come from source, read a value. The model's
// readers were written for documents from libvirt; one that trips over a
// stranger's must not take the daemon with it.
func decodeFrom(doc string, d, source *xml.Decoder, into any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = malformed("the document cannot be read at %s: %v", pathAt(doc, source.InputOffset()), r)
		}
	}()
	err = d.Decode(into)
	at := func() string { return pathAt(doc, source.InputOffset()) }
	var refused *Error
	var syntax *xml.SyntaxError
	var number *strconv.NumError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &syntax):
		syntax.Line, _ = source.InputPos()
		return malformed("the document is not well-formed XML: %v", syntax)
	case errors.As(err, &number) && errors.Is(number.Err, strconv.ErrRange):
		return invalid(at(), "has the number '%s', which is out of range", shorten(number.Num))
	case errors.As(err, &number):
		return invalid(at(), "has '%s' where a number is needed that is not negative", shorten(number.Num))
	}
	if strings.Contains(err.Error(), "did not consume") { // the model looked at a type and left it
		return invalid(at(), "belongs to an element of a type that is not known")
	}
	return invalid(at(), "cannot be read: %v", err)
}

// pathAt names the element a reader was in when it stopped: that of the last
// tag before offset.
func pathAt(doc string, offset int64) string {
	d := xml.NewDecoder(strings.NewReader(doc[:offset]))
	var path []string
	last := ""
	for {
		token, err := d.RawToken()
		if err != nil {
			return fmt.Sprintf("<%s>", last)
		}
		switch t := token.(type) {
		case xml.StartElement:
			path = append(path, shorten(t.Name.Local))
			last = strings.Join(path[max(0, len(path)-2):], "><")
		case xml.EndElement:
			if len(path) > 0 {
				path = path[:len(path)-1]
			}
		}
	}
}
