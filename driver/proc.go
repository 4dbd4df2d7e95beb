package driver

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// A procedure has one of these shapes. What every procedure of a shape needs
// (decoding, the read-only and access checks, finding the domain, taking its
// job) is written here once; a handler only says what the procedure does.
//
//	call    on the connection or the host; may wait
//	inline  the same, answered from memory at once
//	get     on a domain, answered from memory at once
//	query   on a domain, may ask the kernel; never waits for a job
//	modify  on a domain, holding its job
//	        (modifyAfter: something else comes before that)
//	reply   modify with an answer
//	relayed passed on to the host's daemon of that kind (relayed.go)

// procedure is one entry of a family's table.
type procedure struct {
	info  *protocol.Info
	mode  rpc.Mode
	relay relay.Driver // whose it is, when it is relayed
	serve func(*request) (xdr.Marshaler, error)
}

// table is the procedures of one family; it stands at the top of its file.
type table []procedure

// request is one call on its way to an answer.
type request struct {
	ctx    context.Context
	drv    *Driver
	client *client
	call   *rpc.Call
	info   *protocol.Info
}

// call is a procedure on the connection or the host that may wait.
func call[A, R any](p protocol.Procedure[A, R], fn func(*request, *A) (R, error)) procedure {
	return procedure{info: p.Info, mode: poolMode(p.Info), serve: func(r *request) (xdr.Marshaler, error) {
		var args A
		if err := r.open(payload(&args)); err != nil {
			return nil, err
		}
		if err := r.allow(nil, &args); err != nil {
			return nil, err
		}
		ret, err := fn(r, &args)
		return marshaler(&ret, err)
	}}
}

// inline is a call that is answered from memory: it runs where the request
// was read.
func inline[A, R any](p protocol.Procedure[A, R], fn func(*request, *A) (R, error)) procedure {
	entry := call(p, fn)
	entry.mode = rpc.Inline
	return entry
}

// get answers from a domain's current view, at once.
func get[A, R any](p protocol.Procedure[A, R], fn func(*domain, *A) (R, error)) procedure {
	return inlineQuery(p, func(_ *request, d *domain, a *A) (R, error) { return fn(d, a) })
}

// inlineQuery is a get that needs the request too.
func inlineQuery[A, R any](p protocol.Procedure[A, R], fn func(*request, *domain, *A) (R, error)) procedure {
	entry := query(p, fn)
	entry.mode = rpc.Inline
	return entry
}

// query answers about a domain, asking the kernel or systemd if it must.
func query[A, R any](p protocol.Procedure[A, R], fn func(*request, *domain, *A) (R, error)) procedure {
	dom := domainField[A](p.Info)
	return procedure{info: p.Info, mode: poolMode(p.Info), serve: func(r *request) (xdr.Marshaler, error) {
		var args A
		d, err := r.openDomain(payload(&args), dom)
		if err != nil {
			return nil, err
		}
		ret, err := fn(r, d, &args)
		if err != nil && d.ifDefined() == nil {
			err = noDomain(d.uuid, d.view().name) // it went meanwhile
		}
		return marshaler(&ret, err)
	}}
}

// modify changes a domain.
func modify[A any](p protocol.Procedure[A, xdr.Void], fn func(*change, *A) error) procedure {
	return reply(p, func(c *change, a *A) (v xdr.Void, err error) { return v, fn(c, a) })
}

// reply changes a domain and answers.
func reply[A, R any](p protocol.Procedure[A, R], fn func(*change, *A) (R, error)) procedure {
	return modifyWith(p, func(_ *request, c *change, a *A) (R, error) { return fn(c, a) })
}

// modifyWith is modify for the few that need the request: its descriptors.
func modifyWith[A, R any](p protocol.Procedure[A, R], fn func(*request, *change, *A) (R, error)) procedure {
	return changing(func(*domain) {}, p, fn)
}

// modifyAfter is modify with something to be done before the job is waited for,
// which may be held for long.
func modifyAfter[A any](before func(*domain), p protocol.Procedure[A, xdr.Void], fn func(*change, *A) error) procedure {
	return changing(before, p, func(_ *request, c *change, a *A) (v xdr.Void, err error) { return v, fn(c, a) })
}

func changing[A, R any](before func(*domain), p protocol.Procedure[A, R], fn func(*request, *change, *A) (R, error)) procedure {
	dom := domainField[A](p.Info)
	return procedure{info: p.Info, mode: poolMode(p.Info), serve: func(r *request) (xdr.Marshaler, error) {
		var args A
		d, err := r.openDomain(payload(&args), dom)
		if err != nil {
			return nil, err
		}
		before(d)
		c, err := d.change(r.ctx, r.client, functionName(r.info))
		if err != nil {
			return nil, err
		}
		defer c.done()
		ret, err := fn(r, c, &args)
		if err != nil {
			r.drv.log.Warn("change refused", "domain", d.view().name, "procedure", r.info.Name, "error", err,
				"took", time.Since(c.started).Round(time.Millisecond))
		}
		return marshaler(&ret, err)
	}}
}

// open decodes the arguments, between the checks that need none of them and
// that of a read-only connection's flags.
func (r *request) open(args protocol.Payload) error {
	if err := r.client.admit(r.info); err != nil {
		return err
	}
	if err := xdr.Unmarshal(r.call.Payload, args); err != nil {
		return errorf(protocol.ErrRpc, "unable to decode the arguments of %s: %v", r.info.Name, err)
	}
	if r.client.readOnly.Load() && r.info.RefusedReadOnly(args) {
		return readOnlyError(r.info)
	}
	return nil
}

// openDomain decodes the arguments and finds the domain they name.
func (r *request) openDomain(args protocol.Payload, field []int) (*domain, error) {
	if err := r.open(args); err != nil {
		return nil, err
	}
	ref := reflect.ValueOf(args).Elem().FieldByIndex(field).Addr().Interface().(*protocol.NonnullDomain)
	d := r.drv.domains.lookup(ref.UUID)
	if d == nil {
		return nil, noDomain(ref.UUID, ref.Name)
	}
	if err := r.allow(d, args); err != nil {
		return nil, err
	}
	if d.ifDefined() == nil { // who decides about it may take long
		return nil, noDomain(ref.UUID, ref.Name)
	}
	return d, nil
}

// domainField finds the argument that names the domain, or names a snapshot of it. A table entry of a
// wrong shape stops the daemon's tests, not its users.
func domainField[A any](info *protocol.Info) []int {
	args := reflect.TypeFor[A]()
	for _, name := range []string{"Snap", "Snapshot"} {
		if snap, ok := args.FieldByName(name); ok && snap.Type == reflect.TypeFor[protocol.NonnullDomainSnapshot]() {
			dom, _ := snap.Type.FieldByName("Dom")
			return append(snap.Index, dom.Index...)
		}
	}
	field, ok := args.FieldByName("Dom")
	if !ok || field.Type != reflect.TypeFor[protocol.NonnullDomain]() {
		panic(fmt.Sprintf("%s has no domain argument: it is not a get, query or modify", info.Name))
	}
	return field.Index
}

func marshaler(ret any, err error) (xdr.Marshaler, error) {
	if err != nil {
		return nil, err
	}
	return ret.(xdr.Marshaler), nil
}

// poolMode gives short procedures a worker even when all others are busy.
func poolMode(info *protocol.Info) rpc.Mode {
	if info.Priority {
		return rpc.PoolPriority
	}
	return rpc.Pool
}

// apart keeps a procedure that waits for somebody from the workers that all
// clients share: those it may wait for in one client are bounded.
func apart(p procedure) procedure {
	p.mode = rpc.Apart
	return p
}

// payload is the arguments as what they are known to be: a generated type or
// xdr.Void, by the construction of protocol.Procedure.
func payload[A any](args *A) protocol.Payload { return any(args).(protocol.Payload) }

// functionName is the name of libvirt's public function for a procedure, as
// its users know it.
func functionName(info *protocol.Info) string { return cmp.Or(info.Function, info.Name) }

// checkFlags refuses flags that a procedure does not know, as virCheckFlags.
func checkFlags(flags uint32, known ...uint32) error {
	rest := flags
	for _, f := range known {
		rest &^= f
	}
	if rest != 0 {
		return errorf(protocol.ErrInvalidArg, "unsupported flags (0x%x)", rest)
	}
	return nil
}
