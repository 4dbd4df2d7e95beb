package driver

import (
	"context"
	"reflect"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
	"virtvzd/xml"
)

// identity is who the access driver is asked about: the peer of the socket,
// or whom a trusted proxy speaks for.
type identity struct {
	PID       uint32
	StartTime uint64 // of PID, in clock ticks since boot: guards against reuse
	UID       uint32

	stated []protocol.TypedParam // what the proxy said, word for word
}

// nobody is the UID of a client that is no user of this host: one that came to
// a proxy over TLS has a certificate's name, or one of SASL.
const nobody = relay.Nobody

func peerIdentity(p rpc.Peer) identity {
	return identity{PID: p.PID, StartTime: p.StartTime, UID: p.UID}
}

// object is what an access check is about.
type object struct {
	kind string // "connect", "domain", …
	name string
	uuid string
}

// access decides fine-grained permissions (libvirt's access_drivers).
type access interface {
	allowed(ctx context.Context, who identity, o object, permission string) error
}

// polkitAccess asks polkitd about org.libvirt.api.<object>.<permission>
// with the details libvirt's policies match on
// (src/access/viraccessdriverpolkit.c).
type polkitAccess struct{ authority *polkit }

func (p polkitAccess) allowed(ctx context.Context, who identity, o object, permission string) error {
	action := "org.libvirt.api." + strings.ReplaceAll(o.kind, "_", "-") + "." + strings.ReplaceAll(permission, "_", "-")
	details := map[string]string{"connect_driver": driverName}
	if o.kind == "domain" {
		details["domain_name"], details["domain_uuid"] = o.name, o.uuid
	}
	if who.UID == nobody {
		return errorf(protocol.ErrAccessDenied, "'%s' denied access: the client is no user of this host, whom polkit could decide about", action)
	}
	err := p.authority.check(ctx, Subject{PID: who.PID, StartTime: who.StartTime, UID: who.UID}, action, details)
	if err != nil {
		return errorf(protocol.ErrAccessDenied, "'%s' denied access: %v", action, err)
	}
	return nil
}

// flagConditions are the flags that an ACL entry can depend on.
var flagConditions = map[string]uint32{
	"VIR_DOMAIN_AFFECT_CONFIG":           protocol.DomainAffectConfig,
	"VIR_DOMAIN_AFFECT_LIVE":             protocol.DomainAffectLive,
	"VIR_DOMAIN_XML_SECURE":              protocol.DomainXMLSecure,
	"VIR_DOMAIN_XML_MIGRATABLE":          protocol.DomainXMLMigratable,
	"VIR_DOMAIN_SNAPSHOT_XML_SECURE":     protocol.DomainSnapshotXMLSecure,
	"VIR_DOMAIN_SAVE_IMAGE_XML_SECURE":   protocol.DomainSaveImageXMLSecure,
	"VIR_DOMAIN_REBOOT_GUEST_AGENT":      protocol.DomainRebootGuestAgent,
	"VIR_DOMAIN_SHUTDOWN_GUEST_AGENT":    protocol.DomainShutdownGuestAgent,
	"VIR_DOMAIN_VCPU_GUEST":              protocol.DomainVcpuGuest,
	"VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE": protocol.DomainSnapshotCreateQuiesce,
}

// allow checks the permissions a procedure needs, d being the domain it is
// about or nil. A definition's own permissions are checked by allowNew.
func (r *request) allow(d *domain, args any) error {
	if r.drv.access == nil {
		return nil
	}
	for _, entry := range r.info.ACL {
		kind, permission, condition := splitACL(entry)
		o := object{kind: kind}
		if kind == "domain" {
			if d == nil {
				continue
			}
			o.name, o.uuid = d.view().name, d.uuid.String()
		}
		if kind == "none" || !applies(condition, args) {
			continue
		}
		if err := r.drv.access.allowed(r.ctx, r.client.who(), o, permission); err != nil {
			return err
		}
	}
	return nil
}

// allowNew checks a procedure that brings a domain's definition with it,
// before that definition is parsed.
func (r *request) allowNew(name string, id protocol.UUID) error {
	if r.drv.access == nil {
		return nil
	}
	for _, entry := range r.info.ACL {
		kind, permission, _ := splitACL(entry)
		if kind != "domain" {
			continue
		}
		o := object{kind: kind, name: name, uuid: id.String()}
		if err := r.drv.access.allowed(r.ctx, r.client.who(), o, permission); err != nil {
			return err
		}
	}
	return nil
}

// allowClone checks that the client may have a copy of the disk that a
// definition asks for, unless the one that it had before asks for the same. From
// then on any start makes that copy, whoever may start it, and when nobody asks.
func (c *change) allowClone(before, def *libvirtxml.Domain) error {
	if c.drv.access == nil || c.client == nil {
		return nil
	}
	env, err := xml.NewEnvironment(def)
	if err != nil || env.CloneOf == [16]byte{} || env.CloneOf == cloneOf(before) {
		return err
	}
	return c.allowDisk(protocol.UUID(env.CloneOf))
}

// cloneOf is whose disk a definition asks for; zero: nobody's.
func cloneOf(def *libvirtxml.Domain) [16]byte {
	if def == nil {
		return [16]byte{}
	}
	env, err := xml.NewEnvironment(def)
	if err != nil {
		return [16]byte{}
	}
	return env.CloneOf
}

// allowDisk checks that the client may have a copy of an environment's disk: who
// may write to a domain can read all that is in it. Where there is no domain, a
// disk may be left of one that was undefined, or come with one that moves here:
// that is the host's.
func (c *change) allowDisk(of protocol.UUID) error {
	if c.drv.access == nil || c.client == nil {
		return nil
	}
	o := object{kind: "connect"}
	if d := c.drv.domains.lookup(of); d != nil {
		o = object{kind: "domain", name: d.view().name, uuid: of.String()}
	}
	if err := c.drv.access.allowed(c.ctx, c.client.who(), o, "write"); err != nil {
		return errorf(protocol.ErrAccessDenied, "the disk of %s is not for this client: take <disk:disk> and <ve:clone> out of the definition: %s", of, classify(err).Detail)
	}
	return nil
}

// maySee tells whether a client gets a domain in its lists and events.
func (c *client) maySee(ctx context.Context, d *domain) bool {
	if c.drv.access == nil {
		return true
	}
	v := d.view()
	o := object{kind: "domain", name: v.name, uuid: d.uuid.String()}
	return c.drv.access.allowed(ctx, c.who(), o, "getattr") == nil
}

// passes tells whether a domain is left in the answer to a procedure that
// gives more of each domain than its name.
func (r *request) passes(d *domain) bool {
	if r.drv.access == nil {
		return true
	}
	o := object{kind: "domain", name: d.view().name, uuid: d.uuid.String()}
	for _, entry := range r.info.ACLFilter {
		if _, permission, _ := splitACL(entry); r.drv.access.allowed(r.ctx, r.client.who(), o, permission) != nil {
			return false
		}
	}
	return true
}

func (c *client) who() identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.identity
}

// splitACL takes apart "object:permission[:flags]" of the protocol
// description's @acl annotations.
func splitACL(entry string) (kind, permission, condition string) {
	parts := strings.SplitN(entry, ":", 3)
	parts = append(parts, "", "")
	return parts[0], parts[1], parts[2]
}

// applies tells whether an entry's condition holds for the call's flags.
// "FLAG" holds when it is set, "!FLAG|OTHER" when FLAG is not set or OTHER
// is. A condition that is not about flags always holds: asking for more
// than needed is the safe side, and so it is for arguments that are not known.
func applies(condition string, args any) bool {
	if condition == "" || strings.HasPrefix(condition, ":") || args == nil {
		return true
	}
	field := reflect.ValueOf(args).Elem().FieldByName("Flags")
	if !field.IsValid() || !field.CanUint() {
		return true
	}
	flags := uint32(field.Uint())
	return slices.ContainsFunc(strings.Split(condition, "|"), func(term string) bool {
		name, negated := strings.CutPrefix(term, "!")
		bit, known := flagConditions[name]
		return !known || (flags&bit != 0) != negated
	})
}
