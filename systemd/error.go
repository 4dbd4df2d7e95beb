package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// Errors to test for with errors.Is. The error itself says which unit or machine and what systemd answered.
var (
	ErrNoSuchUnit    = errors.New("there is no such unit")
	ErrUnitExists    = errors.New("a unit of that name is running")
	ErrUnitBusy      = errors.New("systemd is about to start or stop the unit")
	ErrJobFailed     = errors.New("systemd could not complete the job")
	ErrNoMachined    = errors.New("systemd-machined is not available: install the package systemd-container to see environments in machinectl")
	ErrMachineExists = errors.New("a machine of that name is registered")
	errNoSuchMachine = errors.New("there is no such machine")
)

// UnavailableError means that D-Bus, or the service behind it, cannot be reached at all. Nothing was changed, or
// it is unknown whether it was. The next call tries again.
type UnavailableError struct {
	Service string // the D-Bus name that was to be reached
	Err     error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("%s cannot be reached over D-Bus (%v): check that the service dbus is running on the host", e.Service, e.Err)
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// JobError is the result of a job that did not end in "done": "failed", "canceled", "timeout", "dependency" or "skipped".
type JobError struct{ Unit, Result string }

func (e *JobError) Error() string {
	return fmt.Sprintf("systemd reports %q for the job of unit %s: see journalctl -u '%s'", e.Result, e.Unit, e.Unit)
}

func (e *JobError) Is(target error) bool { return target == ErrJobFailed }

// Error is a service's refusal that has no meaning of its own here, such as a property that this version of systemd
// does not know. Name is the D-Bus error name.
type Error struct {
	Service, Name, Message string
	kind                   error
}

func (e *Error) Error() string {
	if e.kind != nil {
		return fmt.Sprintf("%v (%s)", e.kind, e.Message)
	}
	return fmt.Sprintf("%s refused: %s (%s)", strings.TrimPrefix(e.Service, "org.freedesktop."), e.Message, e.Name)
}

func (e *Error) Unwrap() error { return e.kind }

var kinds = map[string]error{
	"org.freedesktop.systemd1.NoSuchUnit":      ErrNoSuchUnit,
	"org.freedesktop.systemd1.UnitExists":      ErrUnitExists,
	"org.freedesktop.systemd1.UnitBusy":        ErrUnitBusy,
	"org.freedesktop.machine1.NoSuchMachine":   errNoSuchMachine,
	"org.freedesktop.machine1.MachineExists":   ErrMachineExists,
	"org.freedesktop.DBus.Error.UnknownObject": ErrNoSuchUnit, // an object path is only ever asked for a unit
}

// away are the answers of the bus itself for a peer that is not (any more) on it.
var away = map[string]bool{
	"org.freedesktop.DBus.Error.ServiceUnknown":        true,
	"org.freedesktop.DBus.Error.NameHasNoOwner":        true,
	"org.freedesktop.DBus.Error.NoReply":               true, // the peer left while it owed the answer
	"org.freedesktop.DBus.Error.Disconnected":          true,
	"org.freedesktop.DBus.Error.Spawn.ServiceNotFound": true,
}

func absent(err error) bool {
	var answer dbus.Error
	return errors.As(err, &answer) && away[answer.Name]
}

// disconnected: there is no connection and none could be made.
type disconnected struct{ err error }

func (e *disconnected) Error() string { return e.err.Error() }
func (e *disconnected) Unwrap() error { return e.err }

// lost tells whether err says nothing about the call itself, only that the way to the service broke.
func lost(err error) bool {
	var gone *disconnected
	var answer dbus.Error
	var network *net.OpError
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &gone):
		return true
	case errors.As(err, &answer):
		return absent(err)
	case errors.As(err, &network):
		return true
	}
	for _, broken := range []error{dbus.ErrClosed, io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE, syscall.ECONNRESET, net.ErrClosed} {
		if errors.Is(err, broken) {
			return true
		}
	}
	return false
}

// translate gives the errors of godbus the meaning they have here.
func translate(service string, err error) error {
	var answer dbus.Error
	switch {
	case err == nil:
		return nil
	case lost(err):
		return &UnavailableError{Service: service, Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &UnavailableError{Service: service, Err: fmt.Errorf("no answer in time: %w", err)}
	case errors.As(err, &answer):
		return &Error{Service: service, Name: answer.Name, Message: answer.Error(), kind: kinds[answer.Name]}
	}
	return err
}
