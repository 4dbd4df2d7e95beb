package xml

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

// TestUpdateAlias: a device that is updated stays the one that clients know.
func TestUpdateAlias(t *testing.T) {
	id := 7
	def := &libvirtxml.Domain{ID: &id, Devices: &libvirtxml.DomainDeviceList{}}
	device := func(alias string) *DeviceChange {
		t.Helper()
		c, err := ParseDevice("<hostdev mode='capabilities' type='misc'><source><char>/dev/fuse</char></source>" + alias + "</hostdev>")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if alias, err := device("").Attach(def, true); err != nil || alias != "hostdev0" {
		t.Fatal(alias, err)
	}
	for _, same := range []string{"", "<alias name='hostdev0'/>"} {
		if alias, err := device(same).Update(def); err != nil || alias != "hostdev0" {
			t.Errorf("%q: %q, %v", same, alias, err)
		}
	}
	if _, err := device("<alias name='hostdev1'/>").Update(def); err == nil || !strings.Contains(err.Error(), "has the alias 'hostdev0', which cannot be changed") {
		t.Errorf("another alias: %v", err)
	}
	if FindAlias(def, "hostdev0") == nil || FindAlias(def, "hostdev1") != nil {
		t.Errorf("%+v", def.Devices.Hostdevs)
	}
}
