package rpc

import (
	"errors"
	"fmt"

	"virtvzd/driver/protocol"
)

// Error is a failure of the protocol itself: libvirt's error 39 of domain 7,
// which clients map to "not supported".
type Error struct{ Text string }

// Errorf makes an Error.
func Errorf(format string, args ...any) *Error { return &Error{fmt.Sprintf(format, args...)} }

func (e *Error) Error() string { return e.Text }

// wireError gives an error the form clients get.
func (s *Server) wireError(err error) *protocol.Error {
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
