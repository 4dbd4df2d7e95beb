package xml

import (
	"reflect"

	"libvirt.org/go/libvirtxml"
)

// Copy makes an independent copy of a definition.
func Copy(def *libvirtxml.Domain) *libvirtxml.Domain {
	return deepCopy(reflect.ValueOf(def)).Interface().(*libvirtxml.Domain)
}

// deepCopy follows what the model consists of: structs of exported fields,
// pointers, slices and plain values. It is a tree, there are no cycles.
func deepCopy(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return v
		}
		next := reflect.New(v.Type().Elem())
		next.Elem().Set(deepCopy(v.Elem()))
		return next
	case reflect.Slice:
		if v.IsNil() {
			return v
		}
		next := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			next.Index(i).Set(deepCopy(v.Index(i)))
		}
		return next
	case reflect.Struct:
		next := reflect.New(v.Type()).Elem()
		next.Set(v)
		for i := range v.NumField() {
			if f := next.Field(i); f.CanSet() {
				f.Set(deepCopy(v.Field(i)))
			}
		}
		return next
	}
	return v
}
