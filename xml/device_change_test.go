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

// TestSavedDevice: a device that is brought as it runs is saved without the names
// that it has only there, which may be another's when it starts again.
func TestSavedDevice(t *testing.T) {
	const running = "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan' portid='4d2c7c0e-3f5c-4b9e-9f6e-0d4f6b1b6a10' bridge='br0'/>" +
		"<target dev='vnet7'/><guest actual='eth0'/><alias name='net0'/></interface>"
	c, err := ParseDevice(running)
	if err != nil {
		t.Fatal(err)
	}
	id := 7
	live, saved := &libvirtxml.Domain{ID: &id, Devices: &libvirtxml.DomainDeviceList{}}, &libvirtxml.Domain{Devices: &libvirtxml.DomainDeviceList{}}
	for _, change := range []func(*libvirtxml.Domain) (string, error){
		func(def *libvirtxml.Domain) (string, error) { return c.Attach(def, def.ID != nil) }, c.Update,
	} {
		for _, def := range []*libvirtxml.Domain{live, saved} {
			if _, err := change(def); err != nil {
				t.Fatal(err)
			}
		}
		if n := saved.Devices.Interfaces[0]; n.Target != nil || n.Guest != nil || n.Alias != nil || n.Source.Network.PortID != "" {
			t.Errorf("saved: %+v %+v", n, n.Source.Network)
		}
		if n := live.Devices.Interfaces[0]; n.Target == nil || n.Alias == nil || n.Source.Network.PortID == "" {
			t.Errorf("running: %+v", n)
		}
	}
}

// TestDiskDevices: what a <disk> is, and whose its limits are.
func TestDiskDevices(t *testing.T) {
	for _, c := range []struct {
		disk string
		want Device
		unit DeviceIO
	}{
		{"<disk type='block'><source dev='/dev/vdb'/>", Device{Source: "/dev/vdb", Target: "/dev/sda", Block: true}, DeviceIO{Path: "/dev/vdb", ReadIOPS: 9}},
		{"<disk type='file' device='disk'><source file='/x.img'/>", Device{Source: "/x.img", Target: "/dev/sda", Block: true, Image: "raw"}, DeviceIO{Disk: "/dev/sda", ReadIOPS: 9}},
		{"<disk type='file'><driver name='loop' type='raw'/><source file='/x.img'/><readonly/>",
			Device{Source: "/x.img", Target: "/dev/sda", Block: true, ReadOnly: true, Image: "raw"}, DeviceIO{Disk: "/dev/sda", ReadIOPS: 9}},
		{"<disk type='file'><driver name='nbd' type='qcow2'/><source file='/x.img'/>", Device{Source: "/x.img", Target: "/dev/sda", Block: true, Image: "qcow2"}, DeviceIO{Disk: "/dev/sda", ReadIOPS: 9}},
		{"<disk type='volume'><driver name='nbd' type='qcow2'/><source pool='p' volume='v'/>",
			Device{Source: "p/v", Target: "/dev/sda", Block: true, Image: "qcow2", Volume: true}, DeviceIO{Disk: "/dev/sda", ReadIOPS: 9}},
	} {
		disk := c.disk + "<target dev='sda'/><iotune><read_iops_sec>9</read_iops_sec></iotune></disk>"
		def, err := Parse(strings.Replace(minimal, "</devices>", disk+"</devices>", 1), host, ParseOptions{})
		if err != nil {
			t.Errorf("%s: %v", disk, err)
			continue
		}
		env, err := NewEnvironment(def)
		if err != nil {
			t.Fatal(err)
		}
		if len(env.Devices) != 1 || env.Devices[0] != c.want || len(env.IO.Devices) != 1 || env.IO.Devices[0] != c.unit {
			t.Errorf("%s: %+v, %+v", disk, env.Devices, env.IO.Devices)
		}
		if list := Unrealised(def, host); len(list) != 0 {
			t.Errorf("%s: %q", disk, list)
		}
		if out, err := Format(def, FormatOptions{}); err != nil || !strings.Contains(out, "<target dev=\"sda\"") && !strings.Contains(out, "<target dev='sda'") {
			t.Errorf("%s: %s, %v", disk, out, err)
		}
	}
}
