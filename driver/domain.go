package driver

import (
	"context"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// domain is one environment known to libvirt's clients. Everything that can
// change lives in the current view.
type domain struct {
	drv  *Driver
	uuid protocol.UUID
	job  *job

	agent   agentOf
	current atomic.Pointer[view]

	leaving   atomic.Pointer[departure] // to another host
	arriving  atomic.Pointer[arriving]  // from another host
	migration atomic.Pointer[migrationSettings]
}

// view is all that is known of a domain at one moment. It is never changed
// once published, nor are the definitions it points to; a change copies it.
type view struct {
	name       string
	state      State
	reason     int32
	persistent bool
	updated    bool // the running definition was changed since it started
	autostart  bool
	once       bool // autostart at the next start of the host only
	saved      bool // the next start goes on from the managed save image

	config *libvirtxml.Domain // what the next start uses; nil when transient
	live   *libvirtxml.Domain // what runs; nil when shut off
	last   *libvirtxml.Domain // what it had when it went, for answers in flight

	snapshots   snapshots
	instance    *runtime.Instance // nil when shut off
	autodestroy *client           // destroyed when this client goes
	rebooting   bool              // init was asked to reboot and has not ended yet
	restarting  bool              // its environment is being replaced by a new one
	restarts    int               // in a row by itself, each soon after the one before
	removed     bool              // no longer in the registry: an answer in flight must fail
}

// id is libvirt's domain id: the host PID of the environment's init, because
// lxc-enter-namespace takes it for that; -1 when shut off.
func (v *view) id() int32 {
	if v.instance == nil {
		return -1
	}
	return int32(v.instance.Init())
}

// definition is what a client sees: the running one, unless asked for the
// inactive one of a persistent domain.
func (v *view) definition(inactive bool) *libvirtxml.Domain {
	switch {
	case v.live != nil && (!inactive || v.config == nil):
		return v.live
	case v.config != nil:
		return v.config
	}
	return v.last
}

// undefined tells that the domain has no definition yet, or none any more.
func (v *view) undefined() bool { return v.live == nil && v.config == nil }

// ref names the domain on the wire.
func (d *domain) ref(v *view) protocol.NonnullDomain {
	return protocol.NonnullDomain{Name: v.name, UUID: d.uuid, ID: v.id()}
}

func (d *domain) view() *view { return d.current.Load() }

// environment gives what to run for the domain's next start.
func (v *view) environment() (*xml.Environment, error) {
	return xml.NewEnvironment(v.definition(true))
}

// change is a domain whose job is held: the only way to alter it.
type change struct {
	*domain
	ctx       context.Context
	client    *client // nil when the daemon itself changes it
	procedure string
	started   time.Time
}

// change takes the domain's job. The caller must call done.
func (d *domain) change(ctx context.Context, who *client, procedure string) (*change, error) {
	if err := d.job.begin(ctx, procedure); err != nil {
		return nil, err
	}
	if d.view().removed {
		d.job.end()
		return nil, noDomain(d.uuid, d.view().name)
	}
	// A client that hangs up does not leave a change half done.
	return &change{domain: d, ctx: context.WithoutCancel(ctx), client: who, procedure: procedure, started: time.Now()}, nil
}

func (c *change) done() { c.job.end() }

// publish replaces the view by an edited copy. It touches memory only.
func (c *change) publish(edit func(*view)) {
	before := c.view()
	next := *before
	if edit(&next); next.undefined() {
		next.last = before.definition(false)
	}
	c.current.Store(&next)
}

// enter is the one place where a domain's state changes: the view is
// replaced, the status saved for a restart of the daemon, and the change
// logged and announced, so that the three cannot diverge.
func (c *change) enter(state State, reason int32, edit func(*view), events ...event) error {
	before := c.view()
	if !legal(before.state, state) {
		return errorf(protocol.ErrOperationInvalid, "domain is %s and cannot become %s", before.state, state)
	}
	runtime.AtStep("enter")
	c.publish(func(v *view) {
		v.state, v.reason = state, reason
		if edit != nil {
			edit(v)
		}
	})
	err := c.save()
	runtime.AtStep("entered")
	c.drv.log.Info("domain "+state.String(), "domain", before.name, "by", c.procedure,
		"took", time.Since(c.started).Round(time.Millisecond))
	for _, e := range events {
		c.drv.events.emit(c.domain, e)
	}
	// A connection's context ends before its client's domains are looked for, and
	// is asked after the view says whose this is: one of the two sees the other.
	if who := c.view().autodestroy; who != nil && who.conn.Context().Err() != nil {
		go c.drv.autodestroy(who)
	}
	return err
}

// save writes what a restarted daemon needs to know of an active domain, or
// removes it for one that is shut off.
func (c *change) save() error {
	v := c.view()
	if !v.state.active() {
		return c.drv.store.removeStatus(c.uuid)
	}
	return c.saveStatus(v)
}

func (c *change) saveStatus(v *view) error {
	status, err := statusOf(v)
	if err != nil {
		return err
	}
	return c.drv.store.saveStatus(c.uuid, status)
}

func statusOf(v *view) (savedStatus, error) {
	doc, err := xml.Format(v.live, xml.FormatOptions{Secure: true})
	return savedStatus{
		Name: v.name, State: v.state, Reason: v.reason, Persistent: v.persistent,
		Live: doc, Autodestroy: v.autodestroy != nil, Rebooting: v.rebooting, Restarting: v.restarting, Updated: v.updated,
	}, err
}

// requireActive and requireInactive are libvirt's checks with its words.
func (c *change) requireActive() error {
	if !c.view().state.active() {
		return errorf(protocol.ErrOperationInvalid, "domain is not running")
	}
	return nil
}

func (c *change) requireInactive() error {
	if c.view().state.active() {
		return errorf(protocol.ErrOperationInvalid, "domain is already running")
	}
	return nil
}

func (c *change) requirePersistent(what string) error {
	if !c.view().persistent {
		return errorf(protocol.ErrOperationInvalid, "cannot %s a transient domain", what)
	}
	return nil
}

func noDomain(id protocol.UUID, name string) error {
	return errorf(protocol.ErrNoDomain, "no domain with matching uuid '%s' (%s)", id, name)
}
