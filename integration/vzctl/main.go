// Vzctl is for those who come from OpenVZ: its verbs, output and exit codes
// on libvirt's API. Called as vzlist it is vzlist. A CTID is a domain's name,
// title (the --name of OpenVZ) or UUID.
//
//	args.go      options and what they make of a CTID.conf; exit codes
//	main.go      verbs and what they call
//	run.go       start, stop, status, destroy, suspend, snapshots
//	migrate.go   to another host
//	exec.go      programs inside, by the verbs of QEMU's guest agent; enter
//	set.go       changes of what runs and of what is defined
//	devices.go   those of devices
//	list.go      vzlist
//	fleet.go     one verb on many environments: options, and who works on what
//	select.go    which environments those are
//	guest.go     programs in one of them, with an end to the time they have
//	copy.go      files into one of them
//	update.go    its packages, by the package manager that is there
//	report.go    what came of it: lines, and the JSON
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"libvirt.org/go/libvirt"
)

const usage = `usage: vzctl [-c URI] [--quiet] VERB CTID …
  create CTID [--ostemplate NAME] [--config SAMPLE] [--private DIR] [OPTION…]
  set CTID [OPTION…] [--save]
  start CTID [--wait]               stop CTID [--fast]               restart CTID [--fast] [--wait]
  status | destroy CTID             mount | umount CTID: tell what to do instead
  exec | exec2 CTID COMMAND…        runscript CTID FILE        enter | console CTID
  suspend | resume CTID [--dumpfile FILE]             suspend --suspend | --resume: without a file
  migrate CTID HOST|URI [--online] [--keep-src] [--name NAME]       to another host
  snapshot CTID [--name NAME] [--description TEXT]    snapshot-list CTID
  snapshot-switch | snapshot-delete CTID --id NAME
  fleet exec | update | copy …    many containers at once: vzctl fleet tells how
options: --hostname --ipadd --ipdel --nameserver --searchdomain --ram --swap --cpus --cpuunits
  --cpulimit --diskspace --name --description --onboot --userpasswd --tag --numproc …
The URI is vz:///system unless -c or LIBVIRT_DEFAULT_URI names another.
`

// session is one call of the program.
type session struct {
	conn  *libvirt.Connect
	uri   string
	uris  []string // all that -c gave, for those verbs that take several
	quiet bool
}

// verbs by their names; each gets the domain, and what is behind the CTID.
var verbs = map[string]func(*session, *libvirt.Domain, []string) error{
	"start": start, "stop": stop, "restart": restart, "destroy": destroy,
	"mount": mount, "umount": mount, "suspend": suspend, "chkpnt": suspend, "resume": resume, "restore": resume,
	"migrate": migrate, "set": set, "exec": execute, "exec2": execute2, "runscript": runScript, "enter": enter, "console": console,
	"snapshot": snapshot, "snapshot-list": snapshotList, "snapshot-switch": snapshotSwitch, "snapshot-delete": snapshotDelete,
}

func main() {
	run := runVzctl
	if strings.HasPrefix(filepath.Base(os.Args[0]), "vzlist") {
		run = runVzlist
	}
	if err := run(os.Args[1:]); err != nil {
		var code exitCode
		if errors.As(err, &code) {
			os.Exit(int(code))
		}
		fmt.Fprintln(os.Stderr, message(err))
		os.Exit(codeOf(err))
	}
}

// exitCode ends the program without a word: that of a command of exec2.
type exitCode int

func (exitCode) Error() string { return "" }

func message(err error) string {
	var e libvirt.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// codeOf gives libvirt's errors the codes vzctl has for them.
func codeOf(err error) int {
	var own *failure
	if errors.As(err, &own) {
		return own.code
	}
	var e libvirt.Error
	if errors.As(err, &e) {
		switch e.Code {
		case libvirt.ERR_NO_DOMAIN:
			return exitNoConfig
		case libvirt.ERR_AUTH_FAILED, libvirt.ERR_AUTH_CANCELLED, libvirt.ERR_ACCESS_DENIED, libvirt.ERR_OPERATION_DENIED:
			return exitDenied
		case libvirt.ERR_DOM_EXIST:
			return exitExists
		case libvirt.ERR_INVALID_ARG, libvirt.ERR_XML_ERROR, libvirt.ERR_CONFIG_UNSUPPORTED:
			return exitValue
		}
	}
	return exitSystem
}

// common takes what stands before the verb, or before vzlist's options.
func common(args []string) (s *session, rest []string, err error) {
	s = &session{uri: os.Getenv("LIBVIRT_DEFAULT_URI")}
	if s.uri == "" {
		s.uri = "vz:///system"
	}
	for len(args) > 0 {
		uri, joined := strings.CutPrefix(args[0], "--connect=")
		switch {
		case joined:
			s.uri, s.uris = uri, append(s.uris, uri)
		case args[0] == "--quiet" || args[0] == "-q":
			s.quiet = true
		case args[0] == "--verbose" || args[0] == "-v":
		case (args[0] == "-c" || args[0] == "--connect") && len(args) > 1:
			s.uri, s.uris, args = args[1], append(s.uris, args[1]), args[1:]
		default:
			return s, args, nil
		}
		args = args[1:]
	}
	return s, nil, nil
}

func (s *session) say(format string, args ...any) {
	if !s.quiet {
		fmt.Printf(format+"\n", args...)
	}
}

func runVzctl(args []string) error {
	s, args, err := common(args)
	if err != nil {
		return err
	}
	if len(args) == 1 && (args[0] == "--help" || args[0] == "help") {
		fmt.Print(usage)
		return nil
	}
	if len(args) > 0 && args[0] == "fleet" {
		if len(s.uris) == 0 {
			s.uris = []string{s.uri}
		}
		return runFleet(s.uris, args[1:])
	}
	if len(args) < 2 {
		return failf(exitParameter, "%s", strings.TrimSuffix(usage, "\n"))
	}
	name, ctid, rest := args[0], args[1], args[2:]
	verb := verbs[name]
	if verb == nil && name != "create" && name != "status" {
		return failf(exitParameter, "the verb %q is not known\n%s", name, strings.TrimSuffix(usage, "\n"))
	}
	if s.conn, err = libvirt.NewConnect(s.uri); err != nil {
		return err
	}
	defer s.conn.Close()
	if name == "create" {
		return s.create(ctid, rest)
	}
	dom, err := s.lookup(ctid)
	if name == "status" {
		return s.status(ctid, dom, err)
	}
	if err != nil {
		return err
	}
	defer dom.Free()
	return verb(s, dom, rest)
}

// lookup finds a domain by name, UUID or title.
func (s *session) lookup(ctid string) (*libvirt.Domain, error) {
	dom, err := s.conn.LookupDomainByName(ctid)
	if err == nil {
		return dom, nil
	}
	if dom, e := s.conn.LookupDomainByUUIDString(ctid); e == nil {
		return dom, nil
	}
	all, e := s.conn.ListAllDomains(0)
	if e != nil {
		return nil, e
	}
	var found *libvirt.Domain
	for n := range all {
		title, e := all[n].GetMetadata(libvirt.DOMAIN_METADATA_TITLE, "", 0)
		if e == nil && title == ctid && found == nil {
			found = &all[n]
			continue
		}
		all[n].Free()
	}
	if found == nil {
		return nil, failf(exitNoConfig, "Container %s does not exist: %s", ctid, message(err))
	}
	return found, nil
}
