package relay

import (
	"path"
	"slices"
	"strings"

	"virtvzd/driver/protocol"
)

// Driver is one of libvirt's secondary drivers, by the name it has in URIs,
// sockets and packages.
type Driver string

// The drivers whose procedures are relayed.
const (
	Network   Driver = "network"
	Storage   Driver = "storage"
	NodeDev   Driver = "nodedev"
	Interface Driver = "interface"
	Secret    Driver = "secret"
	NWFilter  Driver = "nwfilter"
)

// URI is what the driver is opened by.
func (d Driver) URI() string { return string(d) + ":///system" }

// Package is what installs the driver, by its name in most distributions.
func (d Driver) Package() string { return "libvirt-daemon-driver-" + string(d) }

// sockets are where the driver may be found: in a daemon of its own, or in
// the one that has all.
func (d Driver) sockets() []string { return []string{"virt" + string(d) + "d-sock", "libvirt-sock"} }

// owners tell by the name of a procedure or event whose it is.
var owners = []struct {
	pattern string
	driver  Driver
}{
	{"NETWORK_*", Network},
	{"CONNECT_*NETWORK*", Network},
	{"STORAGE_*", Storage},
	{"CONNECT_*STORAGE_POOL*", Storage},
	{"NODE_DEVICE_*", NodeDev},
	{"NODE_LIST_DEVICES", NodeDev},
	{"NODE_NUM_OF_DEVICES", NodeDev},
	{"CONNECT_*NODE_DEVICE*", NodeDev},
	{"INTERFACE_*", Interface},
	{"CONNECT_*INTERFACES", Interface},
	{"SECRET_*", Secret},
	{"CONNECT_*SECRET*", Secret},
	{"NWFILTER_*", NWFilter},
	{"CONNECT_*NWFILTER*", NWFilter},
}

// hypervisors are procedures on devices that a hypervisor's driver answers,
// not the node device driver.
var hypervisors = []string{
	"NODE_DEVICE_DETTACH", "NODE_DEVICE_DETACH_FLAGS", "NODE_DEVICE_RE_ATTACH", "NODE_DEVICE_RESET",
}

// Owner tells which driver a procedure or event of the remote program belongs
// to; false means to none of them.
func Owner(info *protocol.Info) (Driver, bool) {
	if slices.Contains(hypervisors, info.Name) {
		return "", false
	}
	for _, o := range owners {
		if ok, _ := path.Match(o.pattern, info.Name); ok {
			return o.driver, true
		}
	}
	return "", false
}

// Procedures that need more than to be passed on are known by their names.

func isRegister(i *protocol.Info) bool   { return strings.HasSuffix(i.Name, "_EVENT_REGISTER_ANY") }
func isDeregister(i *protocol.Info) bool { return strings.HasSuffix(i.Name, "_EVENT_DEREGISTER_ANY") }

// isList tells the procedures that ask what there is. Without a daemon the
// answer is: nothing.
func isList(i *protocol.Info) bool {
	for _, prefix := range []string{"CONNECT_NUM_OF_", "CONNECT_LIST_", "NODE_NUM_OF_", "NODE_LIST_"} {
		if strings.HasPrefix(i.Name, prefix) {
			return true
		}
	}
	return false
}

// event finds what a daemon announces by its number.
var events = func() map[uint32]*protocol.Info {
	all := map[uint32]*protocol.Info{}
	for _, i := range protocol.Remote() {
		if _, ok := Owner(i); ok && i.IsEvent() {
			all[i.Number] = i
		}
	}
	return all
}()
