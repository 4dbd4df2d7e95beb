package protocol

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// infos returns every procedure and event of every program.
func infos() []*Info { return slices.Concat(Remote(), Qemu(), Lxc(), Admin()) }

// payloads makes one empty value of every type that is a message's body.
func payloads() map[string]func() Payload {
	all := map[string]func() Payload{
		"MessageHeader":  func() Payload { return new(MessageHeader) },
		"Error":          func() Payload { return new(Error) },
		"StreamHoleBody": func() Payload { return new(StreamHoleBody) },
	}
	for _, i := range infos() {
		for _, f := range []func() Payload{i.NewArgs, i.NewRet, i.NewMsg} {
			if p := f(); p != nil {
				all[reflect.TypeOf(p).Elem().Name()] = f
			}
		}
	}
	return all
}

// forEach runs f for every body, in a fixed order.
func forEach(f func(name string, empty func() Payload)) {
	all := payloads()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f(name, all[name])
	}
}

// unused are the types of libvirt's description that no message contains.
var unused = map[string]bool{
	"AuthType": true, "KeepaliveProcedure": true, // sent as plain numbers
}

// The other tests reach types through messages; this one sees to it that no
// generated type escapes them.
func TestEveryTypeIsReached(t *testing.T) {
	reached := map[string]bool{}
	var visit func(reflect.Type)
	visit = func(rt reflect.Type) {
		if reached[rt.Name()] && rt.Name() != "" {
			return
		}
		reached[rt.Name()] = true
		switch rt.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array:
			visit(rt.Elem())
		case reflect.Struct:
			for f := range rt.Fields() {
				visit(f.Type)
			}
		}
	}
	forEach(func(_ string, empty func() Payload) { visit(reflect.TypeOf(empty())) })
	for _, a := range arms {
		visit(reflect.TypeOf(a))
	}
	files, err := filepath.Glob("*.gen.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, s := range g.Specs {
				n := s.(*ast.TypeSpec).Name.Name
				if !reached[n] && !unused[n] {
					t.Errorf("%s: no message contains %s", name, n)
				}
			}
		}
	}
}
