package main

import (
	"strings"

	"libvirt.org/go/libvirt"
)

// migrate moves a container to another host, as vzmigrate(8) does: its disk, its
// template where that is missing, and, if it runs, its processes. The host's
// daemon does it, which reaches the other as root by ssh unless a whole URI says
// how. With --online it runs on until little is left to send; without, it stands
// still until it is there. It is gone from here afterwards, unless --keep-src
// keeps its definition and its disk.
func migrate(s *session, dom *libvirt.Domain, args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return failf(exitParameter, "migrate needs the host to go to: vzctl migrate CTID HOST")
	}
	host, args := args[0], args[1:]
	o, err := parseOptions(args, []string{"name"}, []string{"online", "live", "keep-src"})
	if err != nil {
		return err
	}
	active, err := dom.IsActive()
	if err != nil {
		return err
	}
	flags := libvirt.MIGRATE_PEER2PEER | libvirt.MIGRATE_PERSIST_DEST
	if !o.has("keep-src") {
		flags |= libvirt.MIGRATE_UNDEFINE_SOURCE
	}
	switch {
	case !active:
		flags |= libvirt.MIGRATE_OFFLINE
	case o.has("online") || o.has("live"):
		flags |= libvirt.MIGRATE_LIVE
	}
	params := &libvirt.DomainMigrateParameters{}
	if o.has("name") {
		params.DestNameSet, params.DestName = true, o.last("name")
	}
	if err := dom.MigrateToURI3(destination(host), params, flags); err != nil {
		return failf(exitSystem, "Container was not migrated: %s", message(err))
	}
	s.say("Container was migrated to %s", host)
	return nil
}

// destination is the URI of a host, or the one that was given.
func destination(host string) string {
	if strings.Contains(host, "://") {
		return host
	}
	if !strings.Contains(host, "@") {
		host = "root@" + host
	}
	return "vz+ssh://" + host + "/system"
}
