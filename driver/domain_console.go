package driver

import (
	"errors"
	"io"
	"strconv"
	"strings"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

var consoles = table{
	query(protocol.DomainOpenConsole, openConsole),
}

// openConsole connects the client's stream to a console of the environment.
// What was printed while nobody was looking comes first.
func openConsole(r *request, d *domain, a *protocol.DomainOpenConsoleArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags, protocol.DomainConsoleForce, protocol.DomainConsoleSafe); err != nil {
		return v, err
	}
	inst := d.view().instance
	if inst == nil {
		return v, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	n, err := consoleNumber(text(a.DevName))
	if err != nil {
		return v, err
	}
	console, err := inst.Console(n)
	if errors.Is(err, runtime.ErrNoConsole) {
		return v, errorf(protocol.ErrInternalError, "cannot find console device '%s'", text(a.DevName))
	}
	if err != nil {
		return v, err
	}
	tty, err := console.Attach(a.Flags&protocol.DomainConsoleForce != 0)
	if err != nil {
		return v, err
	}
	go splice(r.call.OpenStream(), tty)
	return v, nil
}

// consoleNumber reads a device alias; none means the first console.
func consoleNumber(alias string) (int, error) {
	if alias == "" {
		return 0, nil
	}
	digits, ok := strings.CutPrefix(alias, "console")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 0 {
		return 0, errorf(protocol.ErrInternalError, "cannot find console device '%s'", alias)
	}
	return n, nil
}

// splice carries bytes both ways until either side ends.
func splice(stream *rpc.Stream, tty io.ReadWriteCloser) {
	defer tty.Close()
	go func() {
		io.Copy(tty, stream)
		tty.Close() // the client is gone: wake the copy below
	}()
	if _, err := io.Copy(stream, tty); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		stream.Abort(err)
		return
	}
	stream.Finish()
}
