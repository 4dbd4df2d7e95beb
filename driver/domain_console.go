package driver

import (
	"errors"
	"io"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
	"virtvzd/xml"
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
	view := d.view()
	if view.instance == nil {
		return v, errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	id, err := consoleID(view.live, text(a.DevName))
	if err != nil {
		return v, err
	}
	console, err := view.instance.Console(id)
	if errors.Is(err, runtime.ErrNoConsole) { // the daemon died where nobody kept it
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

// consoleID finds the console with an alias; none means the first one.
func consoleID(def *libvirtxml.Domain, alias string) (string, error) {
	for _, c := range def.Devices.Consoles {
		if alias == "" || c.Alias != nil && c.Alias.Name == alias {
			return xml.ConsoleID(&c), nil
		}
	}
	return "", errorf(protocol.ErrInternalError, "cannot find console device '%s'", alias)
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
