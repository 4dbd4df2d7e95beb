package driver

import (
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// TestListFilters: flags of one group add up, groups narrow each other down.
func TestListFilters(t *testing.T) {
	snapshot := snapshots{all: []*xml.Snapshot{{}}}
	domains := []view{
		{name: "run", state: Running, persistent: true, autostart: true},
		{name: "frozen", state: Paused, snapshots: snapshot, persistent: true},
		{name: "ending", state: Stopping},
		{name: "off", state: Shutoff, persistent: true, saved: true},
	}
	for _, c := range []struct {
		flags uint32
		want  string
	}{
		{0, "run frozen ending off"},
		{protocol.ConnectListDomainsActive, "run frozen ending"},
		{protocol.ConnectListDomainsInactive, "off"},
		{protocol.ConnectListDomainsActive | protocol.ConnectListDomainsInactive, "run frozen ending off"},
		{protocol.ConnectListDomainsPersistent, "run frozen off"},
		{protocol.ConnectListDomainsTransient, "ending"},
		{protocol.ConnectListDomainsRunning, "run"},
		{protocol.ConnectListDomainsPaused, "frozen"},
		{protocol.ConnectListDomainsShutoff, "off"},
		{protocol.ConnectListDomainsOther, "ending"},
		{protocol.ConnectListDomainsRunning | protocol.ConnectListDomainsShutoff, "run off"},
		{protocol.ConnectListDomainsManagedsave, "off"},
		{protocol.ConnectListDomainsNoManagedsave, "run frozen ending"},
		{protocol.ConnectListDomainsAutostart, "run"},
		{protocol.ConnectListDomainsNoAutostart, "frozen ending off"},
		{protocol.ConnectListDomainsHasSnapshot, "frozen"},
		{protocol.ConnectListDomainsNoSnapshot, "run ending off"},
		{protocol.ConnectListDomainsHasCheckpoint, ""},
		{protocol.ConnectListDomainsNoCheckpoint, "run frozen ending off"},
		{protocol.ConnectListDomainsActive | protocol.ConnectListDomainsPersistent | protocol.ConnectListDomainsNoAutostart, "frozen"},
		{protocol.ConnectListDomainsRunning | protocol.ConnectListDomainsInactive, ""},
	} {
		var got []string
		for _, v := range domains {
			if matches(&v, c.flags) {
				got = append(got, v.name)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("flags %#x list %q, want %q", c.flags, got, c.want)
		}
	}
}
