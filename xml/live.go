package xml

import (
	"fmt"
	"reflect"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// LiveFacts are what only the running environment can tell.
type LiveFacts struct {
	ID       int               // host PID of init
	IDMap    IDMap             // the ranges in use
	Consoles map[string]string // path of each console's terminal, by ConsoleID

	Interfaces map[string]InterfaceFacts // by MAC

	SecModel string // with SecLabel: the label init runs under
	SecLabel string
}

// InterfaceFacts are what a network interface got when it was made.
type InterfaceFacts struct {
	Target, Guest string // its names on the host and inside
	Bridge, Port  string // of a network: where it is plugged in, and as what
}

// Live makes the definition of a running environment: a copy with its id,
// its id ranges, its consoles' terminals, its security label and every
// device's alias.
func Live(def *libvirtxml.Domain, facts LiveFacts) *libvirtxml.Domain {
	live := Copy(def)
	live.ID = &facts.ID
	if facts.IDMap.Mode != Privileged && live.IDMap == nil && len(facts.IDMap.UIDs) > 0 {
		live.IDMap = &libvirtxml.DomainIDMap{UIDs: xmlRanges(facts.IDMap.UIDs), GIDs: xmlRanges(facts.IDMap.GIDs)}
	}
	for i := range live.Devices.Consoles {
		c := &live.Devices.Consoles[i]
		if path := facts.Consoles[ConsoleID(c)]; path != "" {
			c.TTY = path
			c.Source.Pty.Path = path
		}
	}
	for i := range live.Devices.Interfaces {
		n := &live.Devices.Interfaces[i]
		if f, ok := facts.Interfaces[n.MAC.Address]; ok {
			f.fill(n)
		}
	}
	if facts.SecLabel != "" && len(live.SecLabel) == 0 {
		live.SecLabel = []libvirtxml.DomainSecLabel{{Type: "dynamic", Model: facts.SecModel, Relabel: "yes", Label: facts.SecLabel}}
	}
	eachAlias(live.Devices, func(kind string, n int, a **libvirtxml.DomainAlias) {
		if *a == nil {
			*a = &libvirtxml.DomainAlias{Name: fmt.Sprintf("%s%d", kind, n)}
		}
	})
	return live
}

func (f InterfaceFacts) fill(n *libvirtxml.DomainInterface) {
	if f.Target != "" {
		n.Target = &libvirtxml.DomainInterfaceTarget{Dev: f.Target}
	}
	if n.Guest == nil {
		n.Guest = &libvirtxml.DomainInterfaceGuest{}
	}
	n.Guest.Actual = f.Guest
	if n.Source.Network != nil {
		n.Source.Network.Bridge, n.Source.Network.PortID = f.Bridge, f.Port
	}
}

// generatedName tells a name on the host that was chosen when the interface
// was made (virDomainNetDefParseXML drops the same).
func generatedName(name string) bool {
	for _, prefix := range []string{"vnet", "macvlan"} {
		if n, ok := strings.CutPrefix(name, prefix); ok && n != "" && strings.Trim(n, "0123456789") == "" {
			return true
		}
	}
	return false
}

// aliasNames are the beginnings of libvirt's aliases where they differ from
// the element's name.
var aliasNames = map[string]string{"filesystem": "fs", "interface": "net", "disk": "disk"}

// eachAlias visits the alias of each device. Devices are fields of the
// model's list, each a slice of structs that have an Alias.
func eachAlias(d *libvirtxml.DomainDeviceList, visit func(kind string, n int, a **libvirtxml.DomainAlias)) {
	list := reflect.ValueOf(d).Elem()
	for i := range list.NumField() {
		devices := list.Field(i)
		if devices.Kind() != reflect.Slice {
			continue
		}
		kind, _, _ := strings.Cut(list.Type().Field(i).Tag.Get("xml"), ",")
		if name, ok := aliasNames[kind]; ok {
			kind = name
		}
		for n := range devices.Len() {
			if f := devices.Index(n).FieldByName("Alias"); f.IsValid() {
				visit(kind, n, f.Addr().Interface().(**libvirtxml.DomainAlias))
			}
		}
	}
}

func xmlRanges(ranges []IDRange) (list []libvirtxml.DomainIDMapRange) {
	for _, r := range ranges {
		list = append(list, libvirtxml.DomainIDMapRange{Start: uint(r.Inside), Target: uint(r.Host), Count: uint(r.Count)})
	}
	return list
}

// forgetLive drops what describes a running environment, so that the output
// of dumpxml can be defined again. Aliases that users chose begin with "ua-"
// and stay (libvirt's VIR_DOMAIN_DEVICE_ALIAS_USER_PREFIX), and so does an
// <idmap>: nothing tells whether Live or a user put it there, and the daemon
// formats the saved definition when it is asked for the inactive one.
func forgetLive(def *libvirtxml.Domain) {
	def.ID = nil
	for i := range def.SecLabel {
		if def.SecLabel[i].Type == "dynamic" {
			def.SecLabel[i].Label, def.SecLabel[i].ImageLabel = "", ""
		}
	}
	if def.Devices == nil {
		return
	}
	for i := range def.Devices.Consoles {
		c := &def.Devices.Consoles[i]
		c.TTY = ""
		if c.Source != nil && c.Source.Pty != nil {
			c.Source.Pty.Path = ""
		}
	}
	for i := range def.Devices.Interfaces {
		n := &def.Devices.Interfaces[i]
		if n.Target != nil && generatedName(n.Target.Dev) {
			n.Target = nil
		}
		if n.Guest != nil {
			if n.Guest.Actual = ""; n.Guest.Dev == "" {
				n.Guest = nil
			}
		}
		if n.Source != nil && n.Source.Network != nil {
			n.Source.Network.Bridge, n.Source.Network.PortID = "", ""
		}
	}
	eachAlias(def.Devices, func(_ string, _ int, a **libvirtxml.DomainAlias) {
		if *a != nil && !strings.HasPrefix((*a).Name, "ua-") {
			*a = nil
		}
	})
}
