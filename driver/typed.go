package driver

import (
	"strings"

	"virtvzd/driver/protocol"
)

// Typed parameters are libvirt's named values of several types.

// named is a small count on its way into a typed parameter.
type named struct {
	name  string
	value int
}

// numbers makes unsigned parameters.
func numbers(list ...named) []protocol.TypedParam {
	params := make([]protocol.TypedParam, 0, len(list))
	for _, n := range list {
		params = append(params, protocol.TypedParam{Field: n.name, Value: protocol.UintValue(n.value)})
	}
	return params
}

// readParams puts parameters where they belong: into maps each accepted name
// to an *int for an unsigned int, *int32, *int64, *uint64 or *string. An unknown or repeated name,
// or another type, is an error, and then nothing may be used
// (virTypedParamsValidate). given tells which there were.
func readParams(params []protocol.TypedParam, into map[string]any) (given map[string]bool, err error) {
	given = map[string]bool{}
	for _, p := range params {
		target, known := into[p.Field]
		if !known {
			return nil, errorf(protocol.ErrInvalidArg, "parameter '%s' is not supported", p.Field)
		}
		if given[p.Field] {
			return nil, errorf(protocol.ErrInvalidArg, "parameter '%s' occurs multiple times", p.Field)
		}
		given[p.Field] = true
		if want := putParam(p.Value, target); want != "" {
			return nil, errorf(protocol.ErrInvalidArg, "parameter '%s' must be of type %s", p.Field, want)
		}
	}
	return given, nil
}

// putParam tells the type that was needed, if it was another. The names are
// those of virTypedParameterTypeToString.
func putParam(value protocol.TypedParamValue, target any) (want string) {
	switch t := target.(type) {
	case *int:
		return put(value, t, func(v protocol.UintValue) int { return int(v) }, "uint")
	case *uint64:
		return put(value, t, func(v protocol.UllongValue) uint64 { return uint64(v) }, "ullong")
	case *int64:
		return put(value, t, func(v protocol.LlongValue) int64 { return int64(v) }, "llong")
	case *int32:
		return put(value, t, func(v protocol.IntValue) int32 { return int32(v) }, "int")
	case *string:
		return put(value, t, func(v protocol.StringValue) string { return string(v) }, "string")
	}
	panic("no type of a parameter")
}

func put[V protocol.TypedParamValue, T any](value protocol.TypedParamValue, target *T, convert func(V) T, name string) string {
	v, ok := value.(V)
	if !ok {
		return name
	}
	*target = convert(v)
	return ""
}

// limited gives as many parameters as a client has room for; with 0 it asks
// how many there are.
func limited(params []protocol.TypedParam, room int32) ([]protocol.TypedParam, int32, error) {
	if room < 0 {
		return nil, 0, errorf(protocol.ErrInvalidArg, "nparams must not be negative")
	}
	if room == 0 {
		return nil, int32(len(params)), nil
	}
	params = params[:min(len(params), int(room))]
	return params, int32(len(params)), nil
}

// typedNumber reads a parameter of any whole type; 0 for other types.
func typedNumber(value protocol.TypedParamValue) uint64 {
	switch v := value.(type) {
	case protocol.IntValue:
		return uint64(v)
	case protocol.UintValue:
		return uint64(v)
	case protocol.LlongValue:
		return uint64(v)
	case protocol.UllongValue:
		return uint64(v)
	}
	return 0
}

// words counts the entries of a list in text form.
func words(text string) uint32 { return uint32(len(strings.Fields(text))) }
