package protocol

import (
	"fmt"

	"virtvzd/driver/rpc/xdr"
)

// Info is what libvirt's protocol says about one procedure or event.
type Info struct {
	Program, Version uint32
	Number           uint32
	Name             string     // "DOMAIN_CREATE"
	Function         string     // "virDomainCreate", as libvirt's messages call it; empty for authentication, events and the admin program
	Priority         bool       // never waits for a guest, so the workers kept free for such calls may run it
	Access           Access     // what a read-only connection gets
	ACL              []string   // all are needed: "domain:start", "domain:read_secure:VIR_DOMAIN_XML_SECURE" (only with that flag)
	ACLFilter        []string   // checked for each object of a list: "domain:getattr"
	Stream           StreamKind // whether the reply is followed by a stream

	args, ret, msg func() Payload
	refused        func(args any) bool // of a Conditional procedure
}

// Access tells what a read-only connection may do with a procedure. libvirt
// checks it in its public functions, of which a server of its own runs none.
type Access int

// Kinds of Access.
const (
	Allowed     Access = iota
	Refused            // error 29, "read only access prevents virDomainCreate"
	Conditional        // refused with some arguments: see RefusedReadOnly
)

func (a Access) String() string { return [...]string{"allowed", "refused", "conditional"}[a] }

// StreamKind is the direction of a procedure's stream, seen from the client.
type StreamKind int

// Kinds of StreamKind.
const (
	NoStream    StreamKind = iota
	ReadStream             // the server sends; for a console both do
	WriteStream            // the client sends
)

func (k StreamKind) String() string { return [...]string{"", "read", "write"}[k] }

// Payload is a pointer to a generated type, or to xdr.Void.
type Payload interface {
	xdr.Marshaler
	xdr.Unmarshaler
}

// A Procedure is called by clients. Args and Ret are generated struct types or
// xdr.Void; Args travels to the server and Ret back.
type Procedure[Args, Ret any] struct{ *Info }

// An Event is sent by the server without being asked.
type Event[Msg any] struct{ *Info }

// NewArgs returns empty arguments to decode a call into, nil for an event.
func (i *Info) NewArgs() Payload { return made(i.args) }

// NewRet returns an empty result to decode a reply into, nil for an event.
func (i *Info) NewRet() Payload { return made(i.ret) }

// NewMsg returns an empty message to decode an event into, nil for a procedure.
func (i *Info) NewMsg() Payload { return made(i.msg) }

// IsEvent tells an event from a procedure: clients cannot call it.
func (i *Info) IsEvent() bool { return i.msg != nil }

// RefusedReadOnly tells whether a read-only connection must be refused this
// call. args is what NewArgs returned, decoded.
func (i *Info) RefusedReadOnly(args Payload) bool {
	return i.Access == Refused || i.Access == Conditional && i.refused(args)
}

func made(f func() Payload) Payload {
	if f == nil {
		return nil
	}
	return f()
}

// payload is T's pointer, when that is a Payload.
type payload[T any] interface {
	*T
	Payload
}

// fresh makes an empty T. The tables name it for every type, so the compiler
// has seen that each is a Payload, and lays them out ready: every start of an
// environment runs this binary's initialisation once more, for the stub.
func fresh[T any, P payload[T]]() Payload { return P(new(T)) }

// errUnion is the error of a union whose case the protocol does not know.
func errUnion(label any) error {
	return fmt.Errorf("unknown type %v of a typed parameter: use one that libvirt 11.3 knows", label)
}
