package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// create defines a container by way of its CTID.conf, as the daemon reads it.
func (s *session) create(ctid string, args []string) error {
	o, err := parseOptions(args, append(parameterNames(), "config", "name", "onboot", "root", "layout"), nil)
	if err != nil {
		return err
	}
	if dom, err := s.lookup(ctid); err == nil {
		dom.Free()
		return failf(exitExists, "Container %s exists already", ctid)
	}
	sample, err := readSample(o)
	if err != nil {
		return err
	}
	config, err := configuration(ctid, o, sample)
	if err != nil {
		return err
	}
	doc, err := s.conn.DomainXMLFromNative("openvz", config, 0)
	if err != nil {
		return err
	}
	notes, doc := splitNotes(doc)
	if notes != "" {
		fmt.Fprint(os.Stderr, notes)
	}
	if doc, err = renamed(doc, ctid, o.last("name")); err != nil {
		return err
	}
	dom, err := s.conn.DomainDefineXML(doc)
	if err != nil {
		return err
	}
	defer dom.Free()
	if o.has("onboot") {
		if err := dom.SetAutostart(o.last("onboot") == "yes"); err != nil {
			return err
		}
	}
	s.say("Container %s was created", ctid)
	return nil
}

// splitNotes takes the comment off a converted definition.
func splitNotes(doc string) (notes, rest string) {
	if comment, rest, ok := strings.Cut(doc, "-->\n"); ok && strings.HasPrefix(comment, "<!--\n") {
		return strings.TrimPrefix(comment, "<!--\n"), rest
	}
	return "", doc
}

// renamed gives a definition the CTID as its name, and the name as its title.
func renamed(doc, ctid, name string) (string, error) {
	def := &libvirtxml.Domain{}
	if err := def.Unmarshal(doc); err != nil {
		return "", err
	}
	def.Name = ctid
	if name != "" {
		def.Title = name
	}
	return def.Marshal()
}

// status prints the line other tools parse: five words, and perhaps a sixth.
func (s *session) status(ctid string, dom *libvirt.Domain, err error) error {
	if err != nil {
		var none *failure
		if !errors.As(err, &none) {
			return err
		}
		fmt.Printf("CTID %s deleted unmounted down\n", ctid)
		return nil
	}
	defer dom.Free()
	state, _, err := dom.GetState()
	if err != nil {
		return err
	}
	fmt.Println(statusLine(ctid, state))
	return nil
}

func statusLine(ctid string, state libvirt.DomainState) string {
	words := map[libvirt.DomainState]string{
		libvirt.DOMAIN_RUNNING: "mounted running", libvirt.DOMAIN_SHUTDOWN: "mounted running", libvirt.DOMAIN_PAUSED: "mounted paused",
	}
	if words[state] == "" {
		return "CTID " + ctid + " exist unmounted down"
	}
	return "CTID " + ctid + " exist " + words[state]
}

func none(args []string) error {
	_, err := parseOptions(args, nil, []string{"wait", "force", "skip-umount"})
	return err
}

func start(s *session, dom *libvirt.Domain, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if active {
		return failf(exitRunning, "Container is already running")
	}
	s.say("Starting container ...")
	if err := dom.Create(); err != nil {
		return err
	}
	s.say("Container start in progress...")
	return nil
}

// stopTimeout is how long an init has to end, as in OpenVZ's vzctl.
const stopTimeout = 2 * time.Minute

// stop asks init to end, and ends what has not after two minutes.
func stop(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, nil, []string{"fast", "skip-umount"})
	if err != nil {
		return err
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if !active {
		return failf(exitStopped, "Container is not running")
	}
	s.say("Stopping container ...")
	if !o.has("fast") {
		if err := dom.Shutdown(); err != nil {
			return err
		}
		for end := time.Now().Add(stopTimeout); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			if active, err := dom.IsActive(); err != nil || !active {
				s.say("Container was stopped")
				return nil // a transient one is gone
			}
		}
	}
	if err := dom.Destroy(); err != nil {
		return failf(exitStop, "Unable to stop container: %s", message(err))
	}
	s.say("Container was stopped")
	return nil
}

func restart(s *session, dom *libvirt.Domain, args []string) error {
	var stopped *failure
	if err := stop(s, dom, args); errors.As(err, &stopped) && stopped.code == exitStopped {
	} else if err != nil {
		return err
	}
	return start(s, dom, nil)
}

// destroy removes the definition, and here on this host the layer of its own
// that an environment of a template has. A directory that was given stays.
func destroy(s *session, dom *libvirt.Domain, args []string) error {
	if err := none(args); err != nil {
		return err
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if active {
		return failf(exitRunning, "Container is running: stop it first")
	}
	id, err := dom.GetUUIDString()
	if err != nil {
		return err
	}
	flags := libvirt.DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
	if err := dom.UndefineFlags(flags); err != nil {
		return err
	}
	layer := filepath.Join("/var/lib/libvirt/vz/private", id)
	if !s.local() {
		fmt.Fprintf(os.Stderr, "The private area stays on the other host: %s there\n", layer)
	} else if err := os.RemoveAll(layer); err != nil {
		return failf(exitSystem, "The definition is gone, the private area is not: %v", err)
	}
	s.say("Container private area was destroyed")
	return nil
}

// local tells whether the URI is of this host.
func (s *session) local() bool {
	u, err := url.Parse(s.uri)
	return err == nil && u.Host == ""
}

func mount(*session, *libvirt.Domain, []string) error {
	return failf(exitSystem, "A container's root is mounted while it runs, and for nobody outside: use exec, or virtvzd template for its files")
}

func suspend(s *session, dom *libvirt.Domain, args []string) error {
	if err := noDump(args, exitSuspend); err != nil {
		return err
	}
	if err := dom.Suspend(); err != nil {
		return failf(exitSuspend, "%s", message(err))
	}
	s.say("Container was suspended: its processes are stopped, in memory")
	return nil
}

func resume(s *session, dom *libvirt.Domain, args []string) error {
	if err := noDump(args, exitResume); err != nil {
		return err
	}
	if err := dom.Resume(); err != nil {
		return failf(exitResume, "%s", message(err))
	}
	s.say("Container was resumed")
	return nil
}

func noDump(args []string, code int) error {
	o, err := parseOptions(args, []string{"dumpfile"}, nil)
	if err == nil && o.has("dumpfile") {
		return failf(code, "Memory cannot be written to a file: without --dumpfile processes are stopped, and stay in memory")
	}
	return err
}

func snapshot(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, []string{"name", "description", "id"}, []string{"skip-suspend", "skip-config"})
	if err != nil {
		return err
	}
	name := o.last("name")
	if o.has("id") {
		name = o.last("id")
	}
	doc, err := xml.Marshal(struct {
		XMLName     xml.Name `xml:"domainsnapshot"`
		Name        string   `xml:"name,omitempty"`
		Description string   `xml:"description,omitempty"`
	}{Name: name, Description: o.last("description")})
	if err != nil {
		return err
	}
	snap, err := dom.CreateSnapshotXML(string(doc), 0)
	if err != nil {
		return err
	}
	defer snap.Free()
	if name, err = snap.GetName(); err != nil {
		return err
	}
	s.say("Snapshot %s has been successfully created", name)
	return nil
}

func snapshotList(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, nil, []string{"H", "no-header"})
	if err != nil {
		return err
	}
	list, err := dom.ListAllSnapshots(0)
	if err != nil {
		return err
	}
	if !o.has("no-header") {
		fmt.Printf("%-36s C %s\n", "UUID", "NAME")
	}
	for n := range list {
		name, err := list[n].GetName()
		if err != nil {
			return err
		}
		current, mark := false, " "
		if current, err = list[n].IsCurrent(0); err == nil && current {
			mark = "*"
		}
		fmt.Printf("%-36s %s %s\n", name, mark, name)
		list[n].Free()
	}
	return nil
}

// snapshotOf finds the one that --id names.
func snapshotOf(dom *libvirt.Domain, args []string) (*libvirt.DomainSnapshot, error) {
	o, err := parseOptions(args, []string{"id"}, []string{"skip-resume", "must-resume"})
	if err != nil {
		return nil, err
	}
	if !o.has("id") {
		return nil, failf(exitParameter, "--id names the snapshot: snapshot-list shows them")
	}
	return dom.SnapshotLookupByName(o.last("id"), 0)
}

func snapshotSwitch(s *session, dom *libvirt.Domain, args []string) error {
	snap, err := snapshotOf(dom, args)
	if err != nil {
		return err
	}
	defer snap.Free()
	return snap.RevertToSnapshot(0)
}

func snapshotDelete(s *session, dom *libvirt.Domain, args []string) error {
	snap, err := snapshotOf(dom, args)
	if err != nil {
		return err
	}
	defer snap.Free()
	return snap.Delete(0)
}
