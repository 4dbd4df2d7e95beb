package driver

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// Config is what the administrator decides; virtvzd.conf explains it.
type Config struct {
	ConfigDir string // definitions: /etc/libvirt/vz
	StateDir  string // what lives as long as the host runs: /run/libvirt/vz
	HostRoot  bool   // a domain without a root may have the host's

	AuthUnixRO string // "polkit" or "none", for the read-only socket
	AuthUnixRW string // the same for the socket that may change things

	AccessPolkit bool // ask polkitd for every object and action (access_drivers)

	Relay relay.Config // where the host's networks, storage and so on are managed
}

// Driver is the state all clients share.
type Driver struct {
	config  Config
	log     *slog.Logger
	rt      *runtime.Runtime
	layers  *runtime.Layers // the disks
	host    *host
	store   store
	domains *registry
	events  *events
	relay   *relay.Relay
	facts   func() xml.HostFacts // what definitions are checked and completed with
	polkit  *polkit
	access  access // nil: whoever is authenticated may do all
	admin   adminState
}

// New loads the definitions. Environments are taken over by Recover.
func New(c Config, rt *runtime.Runtime, log *slog.Logger) (*Driver, error) {
	h, err := probeHost()
	if err != nil {
		return nil, err
	}
	drv, err := open(c, h, rt, log, func() xml.HostFacts {
		f := h.facts()
		f.Emulator = rt.Host().OCI
		f.Templates = rt.Templates().Names
		f.HostRoot = c.HostRoot
		return f
	})
	if err == nil {
		drv.layers = rt.Layers()
	}
	return drv, err
}

func open(c Config, h *host, rt *runtime.Runtime, log *slog.Logger, facts func() xml.HostFacts) (*Driver, error) {
	drv := &Driver{
		config:  c,
		log:     log,
		rt:      rt,
		host:    h,
		store:   store{configDir: c.ConfigDir, statusDir: filepath.Join(c.StateDir, "status")},
		domains: newRegistry(),
		events:  newEvents(),
		relay:   relay.New(c.Relay),
		facts:   facts,
		polkit:  newPolkit(),
	}
	if c.AccessPolkit {
		drv.access = polkitAccess{drv.polkit}
	}
	if err := drv.store.prepare(); err != nil {
		return nil, err
	}
	return drv, drv.load()
}

// load reads the definitions, several at once: of a thousand, parsing is most
// of the daemon's start. What cannot be read is reported and left where it is:
// it never stops the daemon and is never deleted.
func (drv *Driver) load() error {
	names, err := drv.store.definitions()
	if err != nil {
		return err
	}
	links, err := drv.store.links()
	if err != nil {
		return err
	}
	facts := drv.facts()
	facts.HostRoot = true // it is asked for again at the start
	facts.Templates = nil // a template that is gone must not hide its domains
	defs, errs := make([]*libvirtxml.Domain, len(names)), make([]error, len(names))
	var next atomic.Int64
	var readers sync.WaitGroup
	for range goruntime.GOMAXPROCS(0) {
		readers.Go(func() {
			for n := next.Add(1) - 1; n < int64(len(names)); n = next.Add(1) - 1 {
				defs[n], errs[n] = drv.store.load(names[n], facts)
			}
		})
	}
	readers.Wait()
	for n, name := range names {
		err := errs[n]
		if err == nil {
			err = drv.add(defs[n], links)
		}
		if err != nil {
			drv.log.Error("definition skipped", "file", drv.store.definition(name), "error", err)
		}
	}
	return nil
}

// load reads one definition.
func (s store) load(name string, facts xml.HostFacts) (*libvirtxml.Domain, error) {
	doc, err := readFile(s.definition(name))
	if err != nil {
		return nil, err
	}
	def, err := xml.Parse(string(doc), facts, xml.ParseOptions{Stored: true})
	if err == nil && def.Name != name {
		err = fmt.Errorf("the definition is of domain '%s', which the file's name does not say", def.Name)
	}
	return def, err
}

// add makes a domain of a definition that was read.
func (drv *Driver) add(def *libvirtxml.Domain, links map[string]bool) error {
	id, err := protocol.ParseUUID(def.UUID)
	if err != nil {
		return err
	}
	if other := drv.domains.lookup(id); other != nil {
		return fmt.Errorf("domain '%s' has the same UUID %s", other.view().name, id)
	}
	d, err := drv.domains.claim(drv, id, def.Name)
	if err != nil {
		return err
	}
	c := d.changeAlways("load")
	defer c.done()
	c.loadSnapshots()
	c.publish(func(v *view) {
		v.config, v.persistent = def, true
		v.autostart = links[drv.store.autostartLink(def.Name)]
		v.once = links[drv.store.onceLink(def.Name)]
	})
	return nil
}

// Recover takes over the environments that ran while no daemon did, tells
// which ended meanwhile, and starts what is marked for autostart if this is
// the first start since the host booted. Call it once, before clients come.
func (drv *Driver) Recover(ctx context.Context, stored map[string]*os.File) error {
	running, ended, err := drv.rt.Recover(ctx, stored)
	if err != nil {
		drv.log.Error("cannot take over or clean up after every environment", "error", err)
	}
	byUUID := map[protocol.UUID]*runtime.Instance{}
	for _, inst := range running {
		byUUID[inst.UUID()] = inst
	}
	for _, e := range ended {
		if e.Started {
			drv.log.Warn("environment ended while the daemon was not running", "domain", e.Name, "cause", e.Exit.Cause)
		}
	}
	err = drv.store.statuses(func(id protocol.UUID, s savedStatus) {
		inst := byUUID[id]
		if inst == nil {
			if err := drv.store.removeStatus(id); err != nil {
				drv.log.Error("cannot remove the status of an ended environment", "domain", s.Name, "error", err)
			}
			return
		}
		delete(byUUID, id)
		if err := drv.adopt(id, s, inst); err != nil {
			drv.log.Error("cannot take over a running environment: it runs on, unmanaged", "domain", s.Name, "error", err)
		}
	}, func(path string, err error) {
		drv.log.Error("status skipped", "file", path, "error", err)
	})
	for _, inst := range byUUID {
		drv.adoptWithoutStatus(inst)
	}
	return err
}

// adopt makes a domain of a running environment and its saved status.
func (drv *Driver) adopt(id protocol.UUID, s savedStatus, inst *runtime.Instance) error {
	facts := drv.facts()
	facts.Templates = nil
	live, err := xml.Parse(s.Live, facts, xml.ParseOptions{Stored: true, Live: true})
	if err != nil {
		return err
	}
	d, err := drv.domains.claim(drv, id, s.Name)
	if err != nil {
		return err
	}
	c := d.changeAlways("recover")
	defer c.done()
	if c.view().definition(false) == nil {
		c.loadSnapshots()
	}
	state, reason := s.State, s.Reason
	frozen, err := inst.Frozen()
	if err != nil {
		return err
	}
	// The kernel is right where the saved status is not: a daemon may have
	// been killed between freezing and saving.
	switch paused := frozen || !inst.Started(); {
	case paused && state != Paused:
		state, reason = Paused, protocol.DomainPausedUnknown
	case !paused && state == Paused:
		state, reason = Running, protocol.DomainRunningUnpaused
	}
	err = c.enter(state, reason, func(v *view) {
		v.instance, v.live, v.rebooting = inst, xml.Live(live, liveFacts(inst)), s.Rebooting
	})
	go d.watch(inst)
	if env, err := xml.NewEnvironment(live); err != nil {
		return err
	} else if err := inst.Enforce(c.ctx, env); err != nil {
		drv.log.Error("cannot put the limits in force again that were being changed", "domain", s.Name, "error", err)
	}
	if err == nil && state == Paused && reason == protocol.DomainPausedSnapshot {
		err = c.letGo(true) // the daemon was killed while it copied the disk
	}
	if err == nil && state == Paused {
		err = c.finishSave()
	}
	if err == nil && s.Autodestroy && c.view().state.active() {
		return c.destroy(0) // its client lost the connection with the daemon
	}
	return err
}

// adoptWithoutStatus keeps an environment whose status was lost: its
// definition serves for both, if there is one.
func (drv *Driver) adoptWithoutStatus(inst *runtime.Instance) {
	id := protocol.UUID(inst.UUID())
	d := drv.domains.lookup(id)
	if d == nil {
		drv.log.Error("an environment runs of which no definition is left: it runs on, unmanaged",
			"domain", inst.Name(), "uuid", id, "scope", inst.Scope())
		return
	}
	c := d.changeAlways("recover")
	defer c.done()
	err := c.enter(Running, protocol.DomainRunningUnknown, func(v *view) {
		v.instance, v.live = inst, xml.Live(v.config, liveFacts(inst))
	})
	if err != nil {
		drv.log.Error("cannot save the status of a running environment", "domain", inst.Name(), "error", err)
	}
	go d.watch(inst)
}

// Autostart starts the marked domains, once for each boot of the host: a
// restart of the daemon must not start what somebody shut down since
// (libvirt's virDriverShouldAutostart).
func (drv *Driver) Autostart() error {
	marker := filepath.Join(drv.config.StateDir, "autostarted")
	f, err := os.OpenFile(marker, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if os.IsExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	f.Close()
	drv.startMarked()
	return nil
}

func (drv *Driver) logFault(procedure string, fault any) {
	drv.log.Error("defect: a procedure panicked", "procedure", procedure, "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
}
