package xml

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// libvirt's prefixes for the namespaces a definition can have elements of.
var prefixes = map[string]string{lxcNamespace: "lxc"}

const lxcNamespace = "http://libvirt.org/schemas/domain/lxc/1.0"

// write lays a document out as libvirt does: two spaces a level, single
// quotes, text on its element's line, <a/> for what is empty. What metadata
// holds is written as it is, being the user's own.
func write(doc, metadata string) (string, error) {
	w := writer{d: xml.NewDecoder(strings.NewReader(doc)), metadata: metadata, lxc: strings.Contains(doc, lxcNamespace)}
	w.b.Grow(len(doc) + len(metadata))
	for {
		token, err := w.d.Token()
		if errors.Is(err, io.EOF) {
			return w.b.String(), nil
		}
		if err != nil {
			return "", err
		}
		switch t := token.(type) {
		case xml.StartElement:
			w.start(t)
		case xml.CharData:
			w.close(">")
			w.b.WriteString(textEscapes.Replace(string(t)))
			w.inline = true
		case xml.EndElement:
			w.end(t)
		}
	}
}

type writer struct {
	d        *xml.Decoder
	b        strings.Builder
	metadata string
	lxc      bool // has elements in libvirt's lxc namespace
	depth    int
	open     bool // a start tag lacks its ">"
	inline   bool // an end tag belongs on this line
}

func (w *writer) start(t xml.StartElement) {
	w.close(">\n")
	w.indent()
	w.b.WriteString("<" + qualified(t.Name))
	for _, a := range t.Attr {
		if a.Name.Local != "xmlns" && a.Name.Space != "xmlns" {
			w.b.WriteString(" " + a.Name.Local + "='" + attributeEscapes.Replace(a.Value) + "'")
		}
	}
	if w.depth == 0 && w.lxc {
		w.b.WriteString(" xmlns:lxc='" + lxcNamespace + "'")
	}
	w.depth++
	w.open, w.inline = true, false
	if w.depth == 2 && t.Name.Local == "metadata" && w.metadata != "" {
		w.close(">")
		w.b.WriteString(w.metadata)
		w.inline = true
	}
}

func (w *writer) end(t xml.EndElement) {
	w.depth--
	switch {
	case w.open:
		w.close("/>\n")
	case w.inline:
		w.b.WriteString("</" + qualified(t.Name) + ">\n")
	default:
		w.indent()
		w.b.WriteString("</" + qualified(t.Name) + ">\n")
	}
	w.inline = false
}

func (w *writer) indent() {
	for range w.depth {
		w.b.WriteString("  ")
	}
}

func (w *writer) close(with string) {
	if w.open {
		w.b.WriteString(with)
	}
	w.open = false
}

func qualified(n xml.Name) string {
	if p := prefixes[n.Space]; p != "" {
		return p + ":" + n.Local
	}
	return n.Local
}

// Line ends and tabs in attributes, and carriage returns anywhere, would come
// back from a parser as something else.
var (
	textEscapes      = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;", `"`, "&quot;", "\r", "&#13;")
	attributeEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;", `"`, "&quot;", "\r", "&#13;", "\n", "&#10;", "\t", "&#9;")
)
