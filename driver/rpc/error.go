package rpc

import (
	"errors"
	"fmt"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Error is a failure of the protocol itself: libvirt's error 39 of domain 7,
// which clients map to "not supported".
type Error struct{ Text string }

// Errorf makes an Error.
func Errorf(format string, args ...any) *Error { return &Error{fmt.Sprintf(format, args...)} }

func (e *Error) Error() string { return e.Text }

// RawError is an error as another daemon encoded it, to be passed on.
type RawError []byte

// Error gives its message.
func (e RawError) Error() string {
	var decoded protocol.Error
	if err := xdr.Unmarshal(e, &decoded); err != nil || decoded.Message == nil {
		return "an error without a message"
	}
	return *decoded.Message
}

// wireError gives an error the form clients get.
func (s *Server) wireError(err error) xdr.Marshaler {
	var raw RawError
	if errors.As(err, &raw) {
		return Raw(raw)
	}
	var own *Error
	if !errors.As(err, &own) {
		return s.encodeError(err)
	}
	template := "%s"
	return &protocol.Error{
		Code: protocol.ErrRpc, Domain: protocol.FromRpc, Level: protocol.ErrError,
		Message: &own.Text, Str1: &template, Str2: &own.Text, Int1: -1, Int2: -1,
	}
}
