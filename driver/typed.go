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

// readNumbers puts unsigned parameters where they belong. An unknown or
// repeated name, or another type, is an error, and then nothing may be used.
func readNumbers(params []protocol.TypedParam, into map[string]*int) error {
	seen := map[string]bool{}
	for _, p := range params {
		target, known := into[p.Field]
		if !known {
			return errorf(protocol.ErrInvalidArg, "parameter '%s' is not supported", p.Field)
		}
		if seen[p.Field] {
			return errorf(protocol.ErrInvalidArg, "parameter '%s' occurs multiple times", p.Field)
		}
		seen[p.Field] = true
		value, ok := p.Value.(protocol.UintValue)
		if !ok {
			return errorf(protocol.ErrInvalidArg, "parameter '%s' must be an unsigned int", p.Field)
		}
		*target = int(value)
	}
	return nil
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
