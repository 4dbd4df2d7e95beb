package relay

import (
	"cmp"
	"errors"
	"fmt"
	"syscall"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// Error is a failure with libvirt's code, VIR_ERR_…: of the way to a daemon,
// or, for the daemon's own calls, what the other one answered.
type Error struct {
	Code   int32
	Detail string

	absent  bool // there is no such driver on this host
	lost    bool // the connection ended before the answer
	missing bool // the daemon answers that a file, such as a socket, is not there
}

func (e *Error) Error() string { return e.Detail }

// kinds are what each driver manages, in a sentence.
var kinds = map[Driver]string{
	Network: "networks", Storage: "storage pools and volumes", NodeDev: "node devices",
	Interface: "host interfaces", Secret: "secrets", NWFilter: "network filters",
}

func errAbsent(d Driver) *Error {
	return &Error{Code: protocol.ErrNoSupport, absent: true, Detail: fmt.Sprintf(
		"%s are managed by libvirt's %s driver, and no daemon on this host has it: install the package %s and start libvirtd or virt%sd",
		kinds[d], d, d.Package(), d)}
}

func errUnreachable(d Driver, socket string, err error) *Error {
	return &Error{Code: protocol.ErrNoConnect, Detail: fmt.Sprintf(
		"the daemon that manages %s does not answer at %s (%v): see whether libvirtd or virt%sd runs", kinds[d], socket, err, d)}
}

func errFull(limit int) *Error {
	return &Error{Code: protocol.ErrResourceBusy, Detail: fmt.Sprintf(
		"clients have %d connections to the host's libvirt daemons open: close some", limit)}
}

func errLost(socket string, info *protocol.Info) *Error {
	return &Error{Code: protocol.ErrOperationFailed, lost: true, Detail: fmt.Sprintf(
		"the connection to %s broke before %s was answered: look whether it was done, and try again", socket, cmp.Or(info.Function, info.Name))}
}

func errStreamLost(socket string) *Error {
	return &Error{Code: protocol.ErrOperationFailed, Detail: fmt.Sprintf(
		"the connection to %s broke in the middle of the transfer: try again", socket)}
}

// IsLost tells whether err is that of a call whose connection broke.
func IsLost(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.lost
}

// decoded is a daemon's error for the daemon's own use.
func decoded(raw rpc.RawError) *Error {
	var e protocol.Error
	if err := xdr.Unmarshal(raw, &e); err != nil {
		return &Error{Code: protocol.ErrRpc, Detail: fmt.Sprintf("an error came that cannot be decoded: %v", err)}
	}
	ret := &Error{Code: e.Code, Detail: fmt.Sprintf("error %d", e.Code)}
	ret.missing = e.Code == protocol.ErrSystemError && e.Int1 == int32(syscall.ENOENT)
	for _, text := range []*string{e.Message, e.Str2} {
		if text != nil && *text != "" {
			ret.Detail = *text
			break
		}
	}
	return ret
}
