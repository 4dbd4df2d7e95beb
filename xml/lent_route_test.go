package xml

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

// TestLentRoutes: the routes of a lent interface are as the document has them,
// and stay so, however the device gets into a definition.
func TestLentRoutes(t *testing.T) {
	const lent = `<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source>` +
		`<ip family='ipv4' address='10.1.2.3' prefix='20'/>` +
		`<route family='ipv4' address='10.64.0.0' prefix='10' gateway='10.1.0.1'/>` +
		`<route family='ipv4' address='172.16.0.0' netmask='255.240.0.0' gateway='10.1.0.2' metric='7'/>` +
		`<route family='ipv4' address='0.0.0.0' prefix='0' gateway='10.1.0.3'/>` +
		`<route family='ipv6' gateway='2001:db8::1' metric='9'/>` +
		`</hostdev>`
	gateway := netip.MustParseAddr
	want := []Route{
		{netip.MustParsePrefix("10.64.0.0/10"), gateway("10.1.0.1"), 0},
		{netip.MustParsePrefix("172.16.0.0/12"), gateway("10.1.0.2"), 7},
		{netip.MustParsePrefix("0.0.0.0/0"), gateway("10.1.0.3"), 0},
		{netip.MustParsePrefix("::/0"), gateway("2001:db8::1"), 9},
	}
	defined, err := Parse(strings.Replace(minimal, "</devices>", lent+"</devices>", 1), host, ParseOptions{Validate: true})
	if err != nil {
		t.Fatal(err)
	}
	attached, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	device, err := ParseDevice(lent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := device.Attach(attached, false); err != nil {
		t.Fatal(err)
	}
	doc, err := Format(defined, FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, route := range []string{
		"<route family='ipv4' address='10.64.0.0' prefix='10' gateway='10.1.0.1'/>",
		"<route family='ipv4' address='172.16.0.0' prefix='12' metric='7' gateway='10.1.0.2'/>",
		"<route family='ipv4' address='0.0.0.0' gateway='10.1.0.3'/>",
		"<route family='ipv6' metric='9' gateway='2001:db8::1'/>",
	} {
		if !strings.Contains(doc, route) {
			t.Errorf("%s is not in\n%s", route, doc)
		}
	}
	again, err := Parse(doc, host, ParseOptions{Validate: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, def := range map[string]*libvirtxml.Domain{"defined": defined, "attached": attached, "read again": again} {
		env, err := NewEnvironment(def)
		if err != nil {
			t.Fatal(err)
		}
		if got := env.Interfaces[len(env.Interfaces)-1].Routes; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if second, _ := Format(again, FormatOptions{}); second != doc {
		t.Errorf("written again it is\n%s\nand was\n%s", second, doc)
	}
}

// TestMetadataRoutes: what lies in <metadata> is the user's own, whatever it is
// called.
func TestMetadataRoutes(t *testing.T) {
	const own = `<metadata><a:hosts xmlns:a='urn:a'><a:hostdev><a:route prefix='any' metric='high'/></a:hostdev><hostdev><route netmask='none'/></hostdev></a:hosts></metadata>`
	def, err := Parse(strings.Replace(minimal, "<memory>", own+"<memory>", 1), host, ParseOptions{Validate: true})
	if err != nil {
		t.Fatal(err)
	}
	if doc, err := Format(def, FormatOptions{}); err != nil || !strings.Contains(doc, "prefix='any' metric='high'") {
		t.Errorf("%v\n%s", err, doc)
	}
}
