package main

import (
	"fmt"
	"regexp"
	"strings"
)

// A decl is one declaration of a protocol description.
type decl struct {
	prog   *program
	kind   string // const, typedef, struct, union, enum
	name   string
	value  string  // of a const
	fields []field // of a struct; the one of a typedef; the arms of a union
	items  []item  // of an enum
}

// A field is `type name`, with the shape that C puts around the name.
type field struct {
	name, typ string
	shape     shape
	size      string // of fixed and bounded
	label     string // the case of a union's arm
}

type shape int

const (
	plain   shape = iota
	pointer       // *name: may be absent
	fixed         // name[size]
	bounded       // name<size>
)

// An item is one name of an enum, with the comment before it.
type item struct{ name, value, comment string }

var lexeme = regexp.MustCompile(`(?s)/\*.*?\*/|%[^\n]*|[A-Za-z_]\w*|-?\w+|[{}()\[\]<>;=*,:]`)

type scanner struct {
	prog    *program
	toks    []string
	comment string // the last one skipped
	err     error
}

// parse reads one protocol description. It knows the part of the language that
// libvirt uses and stops at anything else.
func parse(prog *program, text string) ([]*decl, error) {
	p := &scanner{prog: prog, toks: lexeme.FindAllString(text, -1)}
	var decls []*decl
	for p.err == nil && p.peek() != "" {
		decls = append(decls, p.decl())
	}
	return decls, p.err
}

func (p *scanner) peek() string {
	for len(p.toks) > 0 {
		t := p.toks[0]
		if strings.HasPrefix(t, "/*") {
			p.comment = t
		} else if t[0] != '%' {
			return t
		}
		p.toks = p.toks[1:]
	}
	return ""
}

func (p *scanner) next() string {
	t := p.peek()
	if t != "" {
		p.toks = p.toks[1:]
	}
	return t
}

func (p *scanner) accept(t string) bool {
	if p.peek() != t {
		return false
	}
	p.next()
	return true
}

func (p *scanner) expect(t string) {
	if got := p.next(); got != t && p.err == nil {
		p.err = fmt.Errorf("%s: found %q, expected %q: teach parse.go the new construct", p.prog.file, got, t)
		p.toks = nil
	}
}

func (p *scanner) decl() *decl {
	d := &decl{prog: p.prog, kind: p.next()}
	switch d.kind {
	case "const":
		d.name = p.next()
		p.expect("=")
		d.value = p.next()
	case "typedef":
		f := p.field()
		d.name, d.fields = f.name, []field{f}
		return d
	case "enum":
		d.name = p.next()
		p.expect("{")
		for p.peek() != "}" && p.err == nil {
			p.item(d)
		}
		p.expect("}")
	case "struct":
		d.name = p.next()
		p.expect("{")
		for p.peek() != "}" && p.err == nil {
			d.fields = append(d.fields, p.field())
		}
		p.expect("}")
	case "union":
		d.name = p.next()
		for _, t := range []string{"switch", "(", "int", "type", ")", "{"} {
			p.expect(t)
		}
		for p.accept("case") {
			label := p.next()
			p.expect(":")
			f := p.field()
			f.label = label
			d.fields = append(d.fields, f)
		}
		p.expect("}")
	default:
		p.expect("a declaration")
	}
	p.expect(";")
	return d
}

func (p *scanner) item(d *decl) {
	it := item{name: p.next(), comment: p.comment}
	p.comment = "" // it belongs to one item only
	p.expect("=")
	it.value = p.next()
	d.items = append(d.items, it)
	if p.peek() != "}" {
		p.expect(",")
	}
}

func (p *scanner) field() field {
	f := field{typ: p.next()}
	if f.typ == "unsigned" {
		switch p.peek() {
		case "int":
			p.next()
		case "char", "short", "hyper":
			f.typ += " " + p.next()
		}
	}
	if p.accept("*") {
		f.shape = pointer
	}
	f.name = p.next()
	switch {
	case p.accept("["):
		f.shape, f.size = fixed, p.next()
		p.expect("]")
	case p.accept("<"):
		f.shape, f.size = bounded, p.next()
		p.expect(">")
	}
	p.expect(";")
	return f
}
