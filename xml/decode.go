package xml

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// decode reads a scanned document into the model. The model's readers were
// written for documents from libvirt; one that trips over a stranger's must
// not take the daemon with it.
func decode(doc string, into any) (err error) {
	d := xml.NewDecoder(strings.NewReader(doc))
	defer func() {
		if r := recover(); r != nil {
			err = malformed("the document cannot be read at %s: %v", pathAt(doc, d.InputOffset()), r)
		}
	}()
	err = d.Decode(into)
	var syntax *xml.SyntaxError
	var number *strconv.NumError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return malformed("the document is not well-formed XML: %v", err)
	case errors.As(err, &number) && errors.Is(number.Err, strconv.ErrRange):
		return invalid(pathAt(doc, d.InputOffset()), "has the number '%s', which is out of range", shorten(number.Num))
	case errors.As(err, &number):
		return invalid(pathAt(doc, d.InputOffset()), "has '%s' where a number is needed that is not negative", shorten(number.Num))
	}
	if strings.Contains(err.Error(), "did not consume") { // the model looked at a type and left it
		return invalid(pathAt(doc, d.InputOffset()), "belongs to an element of a type that is not known")
	}
	return invalid(pathAt(doc, d.InputOffset()), "cannot be read: %v", err)
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
