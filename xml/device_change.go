package xml

import (
	"encoding/xml"
	"fmt"
	"reflect"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// DeviceChange is one device that a client attaches, detaches or updates.
type DeviceChange struct {
	Kind string // its element: "hostdev"
	one  reflect.Value
	list int // its field in the model's list of devices
}

// changeable are the devices a definition can have any number of.
var changeable = []string{"disk", "filesystem", "interface", "console", "hostdev"}

// ParseDevice reads the XML of one device.
func ParseDevice(doc string) (*DeviceChange, error) {
	kind, err := rootElement(doc)
	if err != nil {
		return nil, err
	}
	known := false
	for _, name := range changeable {
		known = known || name == kind
	}
	if !known {
		return nil, unsupported("<"+shorten(kind)+">", "cannot be attached or detached: %s can", strings.Join(changeable, ", "))
	}
	if err := scan(doc, kind); err != nil {
		return nil, err
	}
	devices := &libvirtxml.DomainDeviceList{}
	doc = "<devices>" + withoutDeclaration(doc) + "</devices>"
	d := xml.NewDecoder(strings.NewReader(doc))
	if err := decodeFrom(doc, xml.NewTokenDecoder(&lentRoutes{from: d.RawToken}), d, devices); err != nil {
		return nil, err
	}
	list := reflect.ValueOf(devices).Elem()
	for n := range list.NumField() {
		if f := list.Field(n); f.Kind() == reflect.Slice && f.Len() == 1 {
			return &DeviceChange{kind, f.Index(0), n}, nil
		}
	}
	return nil, malformed("the document holds no device")
}

func rootElement(doc string) (string, error) {
	if len(doc) > maxDocument {
		return "", malformed("the document has %d bytes, the limit is %d", len(doc), maxDocument)
	}
	d := xml.NewDecoder(strings.NewReader(doc))
	for {
		token, err := d.RawToken()
		if err != nil {
			return "", malformed("the document is not well-formed XML: %v", err)
		}
		if t, ok := token.(xml.StartElement); ok {
			return t.Name.Local, nil
		}
	}
}

// withoutDeclaration drops <?xml …?>, which may stand at the beginning only.
func withoutDeclaration(doc string) string {
	doc = strings.TrimSpace(doc)
	if rest, ok := strings.CutPrefix(doc, "<?xml"); ok {
		if _, after, ok := strings.Cut(rest, "?>"); ok {
			return after
		}
	}
	return doc
}

// FindAlias is the device of a definition that has an alias.
func FindAlias(def *libvirtxml.Domain, alias string) (found *DeviceChange) {
	list := reflect.ValueOf(def.Devices).Elem()
	for n := range list.NumField() {
		f := list.Field(n)
		if f.Kind() != reflect.Slice {
			continue
		}
		for i := range f.Len() {
			if a := aliasOf(f.Index(i)); a != nil && *a != nil && (*a).Name == alias {
				kind, _, _ := strings.Cut(list.Type().Field(n).Tag.Get("xml"), ",")
				return &DeviceChange{kind, f.Index(i), n}
			}
		}
	}
	return nil
}

func aliasOf(device reflect.Value) **libvirtxml.DomainAlias {
	if f := device.FieldByName("Alias"); f.IsValid() && f.CanAddr() {
		return f.Addr().Interface().(**libvirtxml.DomainAlias)
	}
	return nil
}

// Attach adds the device to a definition; a running one's gets an alias.
func (c *DeviceChange) Attach(def *libvirtxml.Domain, live bool) (alias string, err error) {
	devices := reflect.ValueOf(def.Devices).Elem().Field(c.list)
	if n, ok := c.one.Addr().Interface().(*libvirtxml.DomainInterface); ok {
		completeMAC(n) // once: it is one interface, in the running definition and the saved one
	}
	if n := c.find(devices); n >= 0 && identity(c.one) != "" {
		return "", invalid("<"+c.Kind+">", "%s is there already", identity(c.one))
	}
	devices.Set(reflect.Append(devices, c.one))
	last := devices.Index(devices.Len() - 1)
	separate(last)
	if a := aliasOf(last); a != nil {
		if *a == nil && live {
			*a = &libvirtxml.DomainAlias{Name: c.freeAlias(devices)}
		}
		if *a != nil {
			alias = (*a).Name
		}
	}
	forgetUnlessLive(def)
	return alias, nil
}

// forgetUnlessLive is for a definition of what does not run: clients bring devices
// as they found them in a running one, with names that only that has.
func forgetUnlessLive(def *libvirtxml.Domain) {
	if def.ID == nil {
		forgetLive(def)
	}
}

func (c *DeviceChange) freeAlias(devices reflect.Value) string {
	kind := c.Kind
	if name, ok := aliasNames[kind]; ok {
		kind = name
	}
	used := map[string]bool{}
	for n := range devices.Len() {
		if a := aliasOf(devices.Index(n)); a != nil && *a != nil {
			used[(*a).Name] = true
		}
	}
	for n := 0; ; n++ {
		if name := fmt.Sprintf("%s%d", kind, n); !used[name] {
			return name
		}
	}
}

// Detach takes the device out of a definition.
func (c *DeviceChange) Detach(def *libvirtxml.Domain) (alias string, err error) {
	devices := reflect.ValueOf(def.Devices).Elem().Field(c.list)
	n := c.find(devices)
	if n < 0 {
		return "", c.missing()
	}
	if a := aliasOf(devices.Index(n)); a != nil && *a != nil {
		alias = (*a).Name
	}
	rest := reflect.MakeSlice(devices.Type(), 0, devices.Len()-1)
	rest = reflect.AppendSlice(rest, devices.Slice(0, n))
	devices.Set(reflect.AppendSlice(rest, devices.Slice(n+1, devices.Len())))
	return alias, nil
}

// Update puts the device in the place of the one with the same identity.
func (c *DeviceChange) Update(def *libvirtxml.Domain) (alias string, err error) {
	devices := reflect.ValueOf(def.Devices).Elem().Field(c.list)
	n := c.find(devices)
	if n < 0 {
		return "", c.missing()
	}
	old := aliasOf(devices.Index(n))
	next := reflect.New(devices.Type().Elem()).Elem()
	next.Set(c.one)
	separate(next)
	if a := aliasOf(next); a != nil && old != nil && *old != nil {
		if *a == nil {
			*a = *old
		}
		if def.ID != nil && (*a).Name != (*old).Name { // by which clients know it, and detach it
			return "", invalid("<"+c.Kind+">", "%s has the alias '%s', which cannot be changed: leave <alias> out", identity(c.one), (*old).Name)
		}
	}
	devices.Index(n).Set(next)
	if a := aliasOf(next); a != nil && *a != nil {
		alias = (*a).Name
	}
	forgetUnlessLive(def)
	return alias, nil
}

func (c *DeviceChange) missing() error {
	return &Error{Missing, "<" + c.Kind + ">", fmt.Sprintf("%s is not there", identity(c.one))}
}

// find gives the place of the device with the same identity, or -1.
func (c *DeviceChange) find(devices reflect.Value) int {
	for n := range devices.Len() {
		if id := identity(devices.Index(n)); id == identity(c.one) && id != "" {
			return n
		}
	}
	return -1
}

// identity is what tells a device apart from others of its kind, as in
// libvirt's virDomain*Find functions; "" for one that says nothing of it.
func identity(device reflect.Value) string {
	switch d := device.Addr().Interface().(type) {
	case *libvirtxml.DomainDisk:
		if d.Target != nil {
			return d.Target.Dev
		}
	case *libvirtxml.DomainFilesystem:
		if d.Target != nil {
			return d.Target.Dir
		}
	case *libvirtxml.DomainInterface:
		if d.MAC != nil {
			return strings.ToLower(d.MAC.Address)
		}
	case *libvirtxml.DomainConsole:
		if d.Target != nil && d.Target.Port != nil {
			return ConsoleID(d)
		}
	case *libvirtxml.DomainHostdev:
		switch {
		case d.CapsMisc != nil && d.CapsMisc.Source != nil:
			return d.CapsMisc.Source.Char
		case d.CapsStorage != nil && d.CapsStorage.Source != nil:
			return d.CapsStorage.Source.Block
		case d.CapsNet != nil && d.CapsNet.Source != nil:
			return d.CapsNet.Source.Interface
		}
	}
	return ""
}
