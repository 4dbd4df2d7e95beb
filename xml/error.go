package xml

import "fmt"

// ErrorKind tells what is wrong, for libvirt's error codes.
type ErrorKind int

const (
	Malformed   ErrorKind = iota // not XML, or larger or deeper than is read
	Invalid                      // an element has a value it cannot have
	Unsupported                  // an environment cannot have this
	Schema                       // not in libvirt's schema (only with Validate)
	Missing                      // the device that is to be changed is not there
)

// Error is a definition that is refused: a sentence that names the element
// and tells what is accepted.
type Error struct {
	Kind    ErrorKind
	Element string // "<memory>"; empty for the document as a whole
	Problem string
}

func (e *Error) Error() string {
	if e.Element == "" {
		return e.Problem
	}
	return e.Element + " " + e.Problem
}

func invalid(element, format string, args ...any) error {
	return &Error{Invalid, element, fmt.Sprintf(format, args...)}
}

func unsupported(element, format string, args ...any) error {
	return &Error{Unsupported, element, fmt.Sprintf(format, args...)}
}

func malformed(format string, args ...any) error {
	return &Error{Malformed, "", fmt.Sprintf(format, args...)}
}
