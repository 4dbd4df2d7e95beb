package driver

import (
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

	Migration MigrationConfig

	Sleeper Sleeper // logind's; nil: the host cannot be put to sleep

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

	migrations *migrations
	asleep     atomic.Bool   // the host is, or is about to be
	stopping   chan struct{} // closed by Close
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
		f.Transports = []string{"tcp"}
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

		stopping: make(chan struct{}),
	}
	drv.migrations = newMigrations(drv)
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
	if err := drv.store.settleRenames(); err != nil {
		drv.log.Error("a domain that was being renamed may be there under both names", "error", err)
	}
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
	def, err := xml.Parse(string(Definition(doc)), facts, xml.ParseOptions{Stored: true})
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

// Close ends what goes on by itself. Environments go on.
func (drv *Driver) Close() {
	close(drv.stopping)
	drv.migrations.close()
}

func (drv *Driver) logFault(procedure string, fault any) {
	drv.log.Error("defect: a procedure panicked", "procedure", procedure, "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
}
