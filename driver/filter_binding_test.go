package driver

import (
	"testing"

	"libvirt.org/go/libvirtxml"

	"virtvzd/runtime"
	"virtvzd/xml"
)

// Libvirt tells of a binding in force more than it was asked for; that is no
// reason to take it away and make it again.
func TestSameBinding(t *testing.T) {
	doc := func(parameters string) string {
		return `<filterbinding><owner><name>a</name><uuid>c982527c-b825-4d79-b2ba-c4ee3599d9d4</uuid></owner><portdev name='vnet0'/>
<mac address='52:54:00:00:0a:01'/><filterref filter='clean-traffic'>` + parameters + `</filterref></filterbinding>`
	}
	const ip, mac, other = `<parameter name='IP' value='192.0.2.1'/>`, `<parameter name='MAC' value='52:54:00:00:0a:01'/>`, `<parameter name='IP' value='192.0.2.2'/>`
	b := runtime.Binding{Device: "vnet0", MAC: "52:54:00:00:0a:01", Owner: "a", OwnerUUID: "c982527c-b825-4d79-b2ba-c4ee3599d9d4"}
	for _, c := range []struct {
		asked string
		have  string
		same  bool
	}{
		{"192.0.2.1", ip, true},
		{"192.0.2.1", ip + mac, true},
		{"192.0.2.1", mac + ip, true},
		{"192.0.2.1", other + mac, false},
		{"192.0.2.1", ip + other, false},
		{"192.0.2.1", mac, false},
		{"", ip + mac, true},
		{"", `<parameter name='PORT' value='22'/>`, false},
	} {
		b.Filter = xml.Filter{Name: "clean-traffic"}
		if c.asked != "" {
			b.Filter.Parameters = []xml.FilterParameter{{Name: "IP", Value: c.asked}}
		}
		var have libvirtxml.NWFilterBinding
		if err := have.Unmarshal(doc(c.have)); err != nil {
			t.Fatal(err)
		}
		if got := sameBinding(have, *bindingOf(b)); got != c.same {
			t.Errorf("asked for %q, have %s: the same: %v", c.asked, c.have, got)
		}
		if b.Owner = "b"; sameBinding(have, *bindingOf(b)) {
			t.Errorf("that of another is the same")
		}
		b.Owner = "a"
	}
}
