package xml

import (
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// LiveFacts are what only the running environment can tell.
type LiveFacts struct {
	ID       int      // host PID of init
	IDMap    IDMap    // the ranges in use
	Consoles []string // path of each console's terminal
}

// Live makes the definition of a running environment: a copy with its id,
// its id ranges, its consoles' terminals and every device's alias.
func Live(def *libvirtxml.Domain, facts LiveFacts) *libvirtxml.Domain {
	live := Copy(def)
	live.ID = &facts.ID
	if facts.IDMap.Mode != Privileged && live.IDMap == nil {
		live.IDMap = &libvirtxml.DomainIDMap{UIDs: xmlRanges(facts.IDMap.UIDs), GIDs: xmlRanges(facts.IDMap.GIDs)}
	}
	d := live.Devices
	for i := range d.Consoles {
		c := &d.Consoles[i]
		c.Alias = alias("console", i)
		if i < len(facts.Consoles) {
			c.TTY = facts.Consoles[i]
			c.Source.Pty.Path = facts.Consoles[i]
		}
	}
	for i := range d.Filesystems {
		d.Filesystems[i].Alias = alias("fs", i)
	}
	for i := range d.Interfaces {
		d.Interfaces[i].Alias = alias("net", i)
	}
	for i := range d.Hostdevs {
		d.Hostdevs[i].Alias = alias("hostdev", i)
	}
	return live
}

func alias(kind string, n int) *libvirtxml.DomainAlias {
	return &libvirtxml.DomainAlias{Name: fmt.Sprintf("%s%d", kind, n)}
}

func xmlRanges(ranges []IDRange) (list []libvirtxml.DomainIDMapRange) {
	for _, r := range ranges {
		list = append(list, libvirtxml.DomainIDMapRange{Start: uint(r.Inside), Target: uint(r.Host), Count: uint(r.Count)})
	}
	return list
}

// forgetLive takes out what Live put in. An <idmap> stays: whoever defined
// it must not lose it, and the daemon formats the saved definition, which
// never had another, when it is asked for the inactive one.
func forgetLive(def *libvirtxml.Domain) {
	forget(def)
	d := def.Devices
	for i := range d.Consoles {
		d.Consoles[i].Alias = nil
	}
	for i := range d.Filesystems {
		d.Filesystems[i].Alias = nil
	}
	for i := range d.Interfaces {
		d.Interfaces[i].Alias = nil
	}
	for i := range d.Hostdevs {
		d.Hostdevs[i].Alias = nil
	}
}
