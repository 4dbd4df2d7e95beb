package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// status prints the line other tools parse: five words, and "suspended" as the
// sixth of one that resume goes on with.
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
	line := statusLine(ctid, state)
	if saved, err := dom.HasManagedSaveImage(0); err == nil && saved {
		line += " suspended"
	}
	fmt.Println(line)
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

// start of one that cannot be disabled, as all here, is what --force is for.
func start(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, nil, []string{"wait", "force"})
	if err != nil {
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
	if !o.has("wait") {
		return nil
	}
	var over exitCode
	if err = inside(dom, []string{"-c", bootedScript}, nil); errors.As(err, &over) {
		err = failf(exitWait, "Container has started, but is not at the end of its boot after five minutes")
	}
	return err
}

// bootedScript waits until systemd has started all, or init is in a run level.
// Other inits have none.
const bootedScript = `n=0
while [ $n -lt 300 ]; do
	if [ -d /run/systemd/system ]; then
		case $(systemctl is-system-running 2>/dev/null) in running | degraded | maintenance) exit 0 ;; esac
	elif grep -qs '^[^#]*:initdefault:' /etc/inittab; then
		case $(runlevel) in *[2-5S]) exit 0 ;; esac
	else
		exit 0
	fi
	n=$((n+1))
	sleep 1
done
exit 1`

// stopTimeout is how long an init has to end, as in OpenVZ's vzctl.
const stopTimeout = 2 * time.Minute

func stop(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, nil, []string{"fast"})
	if err != nil {
		return err
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if !active { // which is no failure, as in OpenVZ's vzctl
		fmt.Fprintln(os.Stderr, "Unable to stop: container is not running")
		return nil
	}
	s.say("Stopping container ...")
	if err := end(dom, o.has("fast"), stopTimeout); err != nil {
		return err
	}
	s.say("Container was stopped")
	return nil
}

// running is a domain that is to end.
type running interface {
	GetState() (libvirt.DomainState, int, error)
	IsActive() (bool, error)
	Resume() error
	Shutdown() error
	Destroy() error
}

// end asks init to end, and ends what has not when the time is over. An init
// that is paused goes on, or it would not hear.
func end(dom running, fast bool, patience time.Duration) error {
	if !fast {
		if state, _, err := dom.GetState(); err != nil {
			return err
		} else if state == libvirt.DOMAIN_PAUSED {
			if err := dom.Resume(); err != nil {
				return err
			}
		}
		if err := dom.Shutdown(); err != nil {
			return err
		}
		for over := time.Now().Add(patience); time.Now().Before(over); time.Sleep(min(patience, 200*time.Millisecond)) {
			if active, err := dom.IsActive(); err != nil || !active {
				return nil // a transient one is gone
			}
		}
	}
	if err := dom.Destroy(); err != nil {
		return failf(exitStop, "Unable to stop container: %s", message(err))
	}
	return nil
}

func restart(s *session, dom *libvirt.Domain, args []string) error {
	var fast, other []string
	for _, arg := range args {
		if arg == "--fast" {
			fast = append(fast, arg)
		} else {
			other = append(other, arg)
		}
	}
	if _, err := parseOptions(other, nil, []string{"wait", "force"}); err != nil {
		return err // before anything is stopped
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if active {
		if err := stop(s, dom, fast); err != nil {
			return err
		}
	}
	return start(s, dom, other)
}

// destroy removes the definition, and here on this host the layer of its own
// that an environment of a template has. A directory that was given stays.
func destroy(s *session, dom *libvirt.Domain, args []string) error {
	if _, err := parseOptions(args, nil, nil); err != nil {
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
	if !s.local() {
		fmt.Fprintf(os.Stderr, "The private area stays on the other host: 'virtvzd root rm %s' there deletes it\n", id)
		return nil
	}
	if err := removeRoot(id); err != nil {
		return failf(exitSystem, "The definition is gone, the private area is not: %v", err)
	}
	s.say("Container private area was destroyed")
	return nil
}

// removeRoot deletes what there is of a disk, its snapshots as well.
func removeRoot(uuid string) error {
	list, err := virtvzd("root", "list")
	if err != nil || !strings.Contains("\n"+list, "\n"+uuid) {
		return err
	}
	_, err = virtvzd("root", "rm", uuid)
	return err
}

func virtvzdPath() string {
	if path, err := exec.LookPath("virtvzd"); err == nil {
		return path
	}
	return "/usr/sbin/virtvzd" // which a user's PATH need not have
}

func virtvzd(args ...string) (string, error) {
	var said strings.Builder
	cmd := exec.Command(virtvzdPath(), args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("virtvzd %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), err
}

// local tells whether the URI is of this host.
func (s *session) local() bool {
	u, err := url.Parse(s.uri)
	return err == nil && u.Host == ""
}

// mount is not done, nor is umount: on a path of the host, links that the
// container has made lead into the host, for root there who follows them, and
// its setuid programs are for all. What it was for, repairing what does not
// boot, is done from inside.
func mount(*session, *libvirt.Domain, []string) error {
	return failf(exitSystem, "A container's root is mounted while it runs, and for nobody outside, where its links would lead into the host. "+
		"To repair one that does not boot, have it start with another init: virt-xml CTID --edit --boot init=/bin/sh; vzctl start CTID; "+
		"exec, runscript and fleet copy do the rest")
}

// suspend writes the processes to a file, and ends the container: resume goes
// on from there, also after the host was started anew. Without --dumpfile the
// daemon keeps the file, and start goes on from there, too. --suspend only stops
// the processes, and --resume lets them go on.
func suspend(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, []string{"dumpfile"}, []string{"suspend", "resume"})
	if err != nil {
		return err
	}
	switch {
	case o.has("suspend"):
		err = dom.Suspend()
	case o.has("resume"):
		err = dom.Resume()
	case o.has("dumpfile"):
		err = saveTo(dom, o.last("dumpfile"))
	default:
		err = dom.ManagedSave(0)
	}
	if err != nil {
		return failf(exitSuspend, "%s", message(err))
	}
	s.say("Container was suspended")
	return nil
}

func saveTo(dom *libvirt.Domain, file string) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	return dom.Save(path)
}

func resume(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, []string{"dumpfile"}, nil)
	if err != nil {
		return err
	}
	if err := resumeFrom(s, dom, o); err != nil {
		return failf(exitResume, "%s", message(err))
	}
	s.say("Container was resumed")
	return nil
}

// resumeFrom goes on from a file, with the processes that were only stopped, or
// from the file that the daemon keeps.
func resumeFrom(s *session, dom *libvirt.Domain, o options) error {
	if o.has("dumpfile") {
		path, err := filepath.Abs(o.last("dumpfile"))
		if err != nil {
			return err
		}
		return s.conn.DomainRestore(path)
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if active {
		return dom.Resume()
	}
	if saved, err := dom.HasManagedSaveImage(0); err != nil {
		return err
	} else if !saved {
		return errors.New("it was not suspended: --dumpfile names the file, if there is one")
	}
	return dom.Create()
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
	if n := slices.Index(args, "-H"); n >= 0 {
		args[n] = "--no-header"
	}
	o, err := parseOptions(args, nil, []string{"no-header"})
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
