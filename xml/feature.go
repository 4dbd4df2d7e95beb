package xml

import (
	"reflect"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// capabilityPolicy reads <features><capabilities>.
func capabilityPolicy(c *libvirtxml.DomainFeatureCapabilities) CapabilityPolicy {
	p := CapabilityPolicy{Policy: c.Policy, States: map[string]bool{}}
	if p.Policy == "" {
		p.Policy = "default"
	}
	for name, state := range capabilityStates(c) {
		p.States[name] = state == "on"
	}
	return p
}

// capabilityStates gives the state of each capability named. The model has a
// field for each, so the element names are read from it.
func capabilityStates(c *libvirtxml.DomainFeatureCapabilities) map[string]string {
	states := map[string]string{}
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		one, ok := v.Field(i).Interface().(*libvirtxml.DomainFeatureCapability)
		if !ok || one == nil {
			continue
		}
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("xml"), ",")
		states[strings.ToLower(name)] = one.State
	}
	return states
}

// capabilityTags are the elements of single capabilities, by the kernel's
// names in lower case.
func capabilityTags() map[string]string {
	tags, t := map[string]string{}, reflect.TypeFor[libvirtxml.DomainFeatureCapabilities]()
	for i := range t.NumField() {
		if t.Field(i).Type == reflect.TypeFor[*libvirtxml.DomainFeatureCapability]() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("xml"), ",")
			tags[strings.ToLower(name)] = name
		}
	}
	return tags
}
