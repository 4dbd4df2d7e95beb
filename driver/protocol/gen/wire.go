package main

import "fmt"

// A wire is a type as it travels.
type wire struct {
	kind wireKind
	goer string // the Go type
	max  string // Go expression of the limit
	elem *wire  // of optional and list
	min  int    // bytes that every value takes at least
}

type wireKind int

const (
	word     wireKind = iota // an integer of up to 32 bits, or an enum
	direct                   // what the codec has a method for, named in max
	text                     // string
	packed                   // opaque<>
	chars                    // char<>, a word each
	charsN                   // char[]
	named                    // has EncodeXDR and DecodeXDR itself
	union                    // a Go interface
	optional                 // a flag, then perhaps the value
	list                     // a count, then the values
)

var basic = map[string]wire{
	"int":            {direct, "int32", "Int32", nil, 4},
	"unsigned":       {direct, "uint32", "Uint32", nil, 4},
	"hyper":          {direct, "int64", "Int64", nil, 8},
	"unsigned hyper": {direct, "uint64", "Uint64", nil, 8},
	"double":         {direct, "float64", "Float64", nil, 8},
	"char":           {word, "int8", "", nil, 4},
	"unsigned char":  {word, "uint8", "", nil, 4},
	"unsigned short": {word, "uint16", "", nil, 4},
}

// wireOf resolves a field's type and shape.
func (g *generator) wireOf(p *program, f field) (*wire, error) {
	limit, size := f.size, value{}
	if limit != "" {
		var err error
		if size, err = eval(limit, g.values); err != nil {
			return nil, fmt.Errorf("%s: size of %s: %w", p.file, f.name, err)
		}
		if _, isName := g.values[limit]; isName {
			limit = constName(g.owner[limit], limit)
		}
	}
	switch f.typ + [...]string{"", "*", "[]", "<>"}[f.shape] {
	case "string<>":
		return &wire{text, "string", limit, nil, 4}, nil
	case "opaque<>":
		return &wire{packed, "[]byte", limit, nil, 4}, nil
	case "char<>":
		return &wire{chars, "[]byte", limit, nil, 4}, nil
	case "char[]":
		return &wire{charsN, "[" + limit + "]byte", limit, nil, 4 * int(size.num())}, nil
	}
	base, err := g.named(f.typ)
	if err != nil {
		return nil, fmt.Errorf("%s: field %s: %w", p.file, f.name, err)
	}
	switch f.shape {
	case pointer:
		return &wire{optional, "*" + base.goer, "", base, 4}, nil
	case bounded:
		return &wire{list, "[]" + base.goer, limit, base, 4}, nil
	case fixed:
		return nil, fmt.Errorf("%s: field %s: arrays of %s are new: teach wire.go how they travel", p.file, f.name, f.typ)
	}
	return base, nil
}

// named resolves a type's name, through typedefs.
func (g *generator) named(name string) (*wire, error) {
	if w, ok := basic[name]; ok {
		return &w, nil
	}
	if other := same[name]; other != "" {
		return g.named(other)
	}
	d := g.decls[name]
	if d == nil {
		return nil, fmt.Errorf("type %s is not declared", name)
	}
	goer := typeName(d.prog, name)
	switch d.kind {
	case "enum":
		return &wire{word, goer, "", nil, 4}, nil
	case "union":
		return &wire{union, goer, "", nil, 8}, nil
	case "typedef":
		if f := d.fields[0]; f.typ == "opaque" && f.shape == fixed && f.size == "VIR_UUID_BUFLEN" {
			return &wire{named, "UUID", "", nil, 16}, nil
		}
		return g.wireOf(d.prog, d.fields[0])
	}
	w := &wire{named, goer, "", nil, 0}
	for _, f := range d.fields {
		fw, err := g.wireOf(d.prog, f)
		if err != nil {
			return nil, err
		}
		w.min += fw.min
	}
	return w, nil
}

// encode returns the Go statements that write the value v.
func (w *wire) encode(v string) string {
	switch w.kind {
	case word:
		return fmt.Sprintf("e.Int32(int32(%s))", v)
	case direct:
		return fmt.Sprintf("e.%s(%s)", w.max, v)
	case text:
		return fmt.Sprintf("e.String(%s, %s)", v, w.max)
	case packed:
		return fmt.Sprintf("e.Opaque(%s, %s)", v, w.max)
	case chars:
		return fmt.Sprintf("e.Chars(%s, %s)", v, w.max)
	case charsN:
		return fmt.Sprintf("e.FixedChars(%s[:])", v)
	case union:
		return fmt.Sprintf("encode%s(e, %s)", w.goer, v)
	case optional:
		value := "*" + v
		if w.elem.kind == named {
			value = v
		}
		return fmt.Sprintf("if e.Bool(%s != nil); %s != nil {\n%s\n}", v, v, w.elem.encode(value))
	case list:
		return fmt.Sprintf("e.Count(len(%s), %s)\nfor i := range %s {\n%s\n}", v, w.max, v, w.elem.encode(v+"[i]"))
	}
	return v + ".EncodeXDR(e)"
}

// decode returns the Go statements that read into v, which is addressable.
func (w *wire) decode(v string) string {
	switch w.kind {
	case word:
		return fmt.Sprintf("%s = %s(d.Int32())", v, w.goer)
	case direct:
		return fmt.Sprintf("%s = d.%s()", v, w.max)
	case text:
		return fmt.Sprintf("%s = d.String(%s)", v, w.max)
	case packed:
		return fmt.Sprintf("%s = d.Opaque(%s)", v, w.max)
	case chars:
		return fmt.Sprintf("%s = d.Chars(%s)", v, w.max)
	case charsN:
		return fmt.Sprintf("d.FixedChars(%s[:])", v)
	case union:
		return fmt.Sprintf("%s = decode%s(d)", v, w.goer)
	case optional:
		value := "*" + v
		if w.elem.kind == named {
			value = v
		}
		return fmt.Sprintf("if d.Bool() {\n%s = new(%s)\n%s\n} else {\n%s = nil\n}", v, w.elem.goer, w.elem.decode(value), v)
	case list:
		return fmt.Sprintf("%s = make([]%s, d.Count(%s, %d))\nfor i := range %s {\n%s\n}",
			v, w.elem.goer, w.max, w.elem.min, v, w.elem.decode(v+"[i]"))
	}
	return v + ".DecodeXDR(d)"
}
