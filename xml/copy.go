package xml

import (
	"reflect"

	"libvirt.org/go/libvirtxml"
)

// Copy makes an independent copy of a definition.
func Copy(def *libvirtxml.Domain) *libvirtxml.Domain {
	next := *def
	separate(reflect.ValueOf(&next).Elem())
	return &next
}

// separate replaces what a shallow copy shares with its original. It follows
// what the model consists of: structs of exported fields, pointers, slices and
// plain values. It is a tree, there are no cycles.
func separate(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			next := reflect.New(v.Type().Elem())
			next.Elem().Set(v.Elem())
			separate(next.Elem())
			v.Set(next)
		}
	case reflect.Slice:
		if !v.IsNil() {
			next := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
			reflect.Copy(next, v)
			for i := range next.Len() {
				separate(next.Index(i))
			}
			v.Set(next)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				separate(f)
			}
		}
	}
}
