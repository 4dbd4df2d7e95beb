package driver

import (
	"context"
	"errors"
	"fmt"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
	"virtvzd/systemd"
	"virtvzd/xml"
)

// errorDomain is the "domain" field of our errors: VIR_FROM_PARALLELS, the
// number of libvirt's vz driver, so that clients print them as a vz error.
const errorDomain = protocol.FromParallels

// Error is a failure with libvirt's code. The message is the detail; the
// fixed prefix that libvirt prints for the code is added on the wire.
type Error struct {
	Code   int32
	Detail string
}

// errorf makes an Error.
func errorf(code int32, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Error gives the message as libvirt's clients show it.
func (e *Error) Error() string {
	return fmt.Sprintf(template(e.Code), e.Detail)
}

// templates are the texts libvirt puts before the detail (util/virerror.c,
// virErrorMsgStrings): clients and scripts match them. A code that is not
// listed shows the detail alone.
var templates = map[int32]string{
	protocol.ErrInternalError:         "internal error: %s",
	protocol.ErrNoSupport:             "this function is not supported by the connection driver: %s",
	protocol.ErrInvalidArg:            "invalid argument: %s",
	protocol.ErrOperationFailed:       "operation failed: %s",
	protocol.ErrXMLError:              "XML error: %s",
	protocol.ErrXMLDetail:             "%s",
	protocol.ErrDomExist:              "domain %s exists already",
	protocol.ErrOperationDenied:       "operation forbidden: %s",
	protocol.ErrNoDomain:              "Domain not found: %s",
	protocol.ErrAuthFailed:            "authentication failed: %s",
	protocol.ErrAuthUnavailable:       "authentication unavailable: %s",
	protocol.ErrOperationInvalid:      "Requested operation is not valid: %s",
	protocol.ErrConfigUnsupported:     "unsupported configuration: %s",
	protocol.ErrOperationTimeout:      "Timed out during operation: %s",
	protocol.ErrArgumentUnsupported:   "argument unsupported: %s",
	protocol.ErrOperationUnsupported:  "Operation not supported: %s",
	protocol.ErrOperationAborted:      "operation aborted: %s",
	protocol.ErrResourceBusy:          "resource busy: %s",
	protocol.ErrAccessDenied:          "access denied: %s",
	protocol.ErrNoDomainMetadata:      "metadata not found: %s",
	protocol.ErrNoDomainSnapshot:      "Domain snapshot not found: %s",
	protocol.ErrNoServer:              "Server not found: %s",
	protocol.ErrNoClient:              "Client not found: %s",
	protocol.ErrXMLInvalidSchema:      "XML document failed to validate against schema: %s",
	protocol.ErrOverflow:              "numerical overflow: %s",
	protocol.ErrDeviceMissing:         "device not found: %s",
	protocol.ErrInvalidDomainSnapshot: "Invalid domain snapshot: %s",
	protocol.ErrSnapshotRevertRisky:   "revert requires force: %s",
}

func template(code int32) string {
	if t, ok := templates[code]; ok {
		return t
	}
	return "%s"
}

// EncodeError turns any error into what goes over the wire. It is the one
// place where errors of the lower rooms get a libvirt code.
func EncodeError(err error) *protocol.Error {
	e := classify(err)
	text, prefix, detail := e.Error(), template(e.Code), e.Detail
	return &protocol.Error{
		Code:    int32(e.Code),
		Domain:  int32(errorDomain),
		Message: &text,
		Level:   protocol.ErrError,
		Str1:    &prefix,
		Str2:    &detail,
		Int1:    -1,
		Int2:    -1,
	}
}

// classify gives an error of a lower room its libvirt code.
func classify(err error) *Error {
	var own *Error
	var relayed *relay.Error
	var bad *xml.Error
	var unavailable *systemd.UnavailableError
	var nic *runtime.InterfaceError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &relayed):
		return &Error{Code: relayed.Code, Detail: relayed.Detail}
	case errors.As(err, &bad):
		return &Error{Code: xmlCode(bad.Kind), Detail: bad.Error()}
	case errors.Is(err, runtime.ErrBusy):
		return &Error{Code: protocol.ErrOperationFailed, Detail: "Active console session exists for this domain"}
	case errors.Is(err, runtime.ErrFrozen), errors.Is(err, runtime.ErrLeaving), errors.Is(err, runtime.ErrLeft):
		return &Error{Code: protocol.ErrOperationInvalid, Detail: err.Error()}
	case errors.Is(err, runtime.ErrMountBusy), errors.Is(err, runtime.ErrRootBusy):
		return &Error{Code: protocol.ErrResourceBusy, Detail: err.Error()}
	case errors.Is(err, runtime.ErrUnsupported):
		return &Error{Code: protocol.ErrOperationUnsupported, Detail: err.Error()}
	case errors.Is(err, runtime.ErrTooMuchInUse), errors.Is(err, runtime.ErrTooMuchData), errors.Is(err, runtime.ErrNoProcess), errors.Is(err, runtime.ErrTooManyLayers),
		errors.Is(err, runtime.ErrCannotShrink):
		return &Error{Code: protocol.ErrOperationFailed, Detail: err.Error()}
	case errors.As(err, &unavailable), errors.As(err, &nic):
		return &Error{Code: protocol.ErrOperationFailed, Detail: err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: protocol.ErrOperationTimeout, Detail: err.Error()}
	case errors.Is(err, context.Canceled):
		return &Error{Code: protocol.ErrOperationAborted, Detail: err.Error()}
	}
	return &Error{Code: protocol.ErrInternalError, Detail: err.Error()}
}

// xmlCode is the code libvirt's parser uses for each kind of bad XML.
func xmlCode(k xml.ErrorKind) int32 {
	switch k {
	case xml.Malformed:
		return protocol.ErrXMLDetail
	case xml.Unsupported:
		return protocol.ErrConfigUnsupported
	case xml.Missing:
		return protocol.ErrDeviceMissing
	case xml.Schema:
		return protocol.ErrXMLInvalidSchema
	}
	return protocol.ErrXMLError
}
