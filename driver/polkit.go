package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"virtvzd/driver/protocol"
	"virtvzd/systemd"
)

const (
	// A rule answers at once. It can run a program, though, and polkitd kills that after 10 s.
	policyTimeout = 30 * time.Second
	// A human has to find and type a password. The client may leave earlier, which ends the call's context.
	interactiveTimeout = 3 * time.Minute

	allowUserInteraction = uint32(1) // CheckAuthorizationFlags
)

// Subject is the process that asks for something. StartTime is field 22 of its /proc/PID/stat; with it polkitd
// notices when the process id means another process by now.
type Subject struct {
	PID       uint32
	StartTime uint64
	UID       uint32
}

// polkit asks polkitd. Its methods may be called by any number of goroutines; the connection is made with the first
// question and renewed when it breaks.
type polkit struct {
	bus *systemd.Bus
}

func newPolkit() *polkit { return &polkit{bus: systemd.SystemBus()} }

// outcome is how polkitd refused.
type outcome int

const (
	denied    outcome = iota // the rules say no
	noAgent                  // a password is needed, and there is nothing that could ask for it
	dismissed                // somebody was asked and cancelled
)

// notAuthorised is polkitd's no. Every other error of check means that it could not be asked, which is a no too.
type notAuthorised struct {
	action  string
	outcome outcome
}

// Error is worded as libvirt words it (src/util/virpolkit.c).
func (e *notAuthorised) Error() string {
	switch e.outcome {
	case noAgent:
		return fmt.Sprintf("no polkit agent available to authenticate action '%s'", e.action)
	case dismissed:
		return "user cancelled authentication process"
	}
	return "access denied by policy"
}

// polkitError gives an error of check the code that steers clients: with ErrAuthUnavailable virsh on a terminal starts
// pkttyagent and tries again, with the others it gives up.
func polkitError(err error) error {
	var no *notAuthorised
	if !errors.As(err, &no) {
		return errorf(protocol.ErrAuthFailed, "%v", err)
	}
	switch no.outcome {
	case noAgent:
		return errorf(protocol.ErrAuthUnavailable, "%v", no)
	case dismissed:
		return errorf(protocol.ErrAuthCancelled, "%v", no)
	}
	return errorf(protocol.ErrAuthFailed, "%v", no)
}

// check returns nil if subject may do action, and *notAuthorised if not. As libvirt does it, a user may be asked for a
// password when connecting (org.libvirt.unix.…), but never for a single call (org.libvirt.api.…), whose details
// name the object. It can take as long as a human does: hold no lock.
func (p *polkit) check(ctx context.Context, subject Subject, action string, details map[string]string) error {
	if subject.StartTime == 0 {
		// The process was gone before we looked; its number proves nothing.
		return fmt.Errorf("the start time of client process %d is not known, so polkit cannot be asked about it", subject.PID)
	}
	if details == nil {
		details = map[string]string{}
	}
	call := systemd.Method{
		Service: "org.freedesktop.PolicyKit1",
		Path:    "/org/freedesktop/PolicyKit1/Authority",
		Name:    "org.freedesktop.PolicyKit1.Authority.CheckAuthorization",
		Timeout: policyTimeout,
	}
	flags := uint32(0)
	if strings.HasPrefix(action, "org.libvirt.unix.") {
		flags, call.Timeout = allowUserInteraction, interactiveTimeout
	}
	process := struct {
		Kind    string
		Details map[string]dbus.Variant
	}{"unix-process", map[string]dbus.Variant{
		"pid":        dbus.MakeVariant(subject.PID),
		"start-time": dbus.MakeVariant(subject.StartTime),
		"uid":        dbus.MakeVariant(int32(subject.UID)),
	}}
	var result struct {
		Authorised, Challenge bool
		Details               map[string]string
	}
	err := p.bus.Call(ctx, call, []any{process, action, details, flags, ""}, &result)
	var absent *systemd.UnavailableError
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &absent):
		return fmt.Errorf("polkit cannot be asked about action '%s': %w; install the package polkitd, or connect as root", action, err)
	case err != nil && strings.Contains(err.Error(), "is not registered"):
		return fmt.Errorf("polkit does not know the action '%s': its policy comes with the package libvirt-daemon-common", action)
	case err != nil:
		return fmt.Errorf("polkit cannot decide about action '%s': %w", action, err)
	case result.Authorised:
		return nil
	case result.Details["polkit.dismissed"] == "true":
		return &notAuthorised{action, dismissed}
	case result.Challenge:
		return &notAuthorised{action, noAgent}
	}
	return &notAuthorised{action, denied}
}
