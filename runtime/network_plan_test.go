package runtime

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"virtvzd/xml"
)

func addresses(list ...string) (out []netip.Prefix) {
	for _, a := range list {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}

func TestPlanLink(t *testing.T) {
	rate := xml.Rate{Average: 1 << 20}
	route := xml.Route{To: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.254")}
	bridged := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:09", Routes: []xml.Route{route}}
	for _, c := range []struct {
		name  string
		n     xml.Interface
		plug  Plug
		other []xml.Interface
		want  string
	}{
		{"bridge", xml.Interface{Type: "bridge", Source: "br0", MTU: 1400, Isolated: true, Down: true, Addresses: addresses("192.0.2.2/24")}, Plug{}, nil,
			"bridge M of=br0 host=H guest=G mtu=1400 down=true isolated=true addresses=[192.0.2.2/24]"},
		{"network", xml.Interface{Type: "network", Source: "default"}, Plug{Bridge: "virbr0", Isolated: true, Inbound: rate}, nil,
			"bridge M of=virbr0 host=H guest=G isolated=true in={1048576 0 0 0}"},
		{"network whose rate is not the interface's", xml.Interface{Type: "network", Source: "default", Outbound: rate}, Plug{Bridge: "virbr0", Inbound: rate}, nil,
			"bridge M of=virbr0 host=H guest=G out={1048576 0 0 0}"},
		{"network of macvlans", xml.Interface{Type: "network", Source: "lan"}, Plug{Device: "eth0", Mode: "private"}, nil,
			"direct M of=eth0 mode=private host=H guest=G"},
		{"network of macvlans with a rate", xml.Interface{Type: "network", Source: "lan", Inbound: rate}, Plug{Device: "eth0"}, nil,
			"a <bandwidth> cannot be held for M, which has no end on the host where traffic could be counted: use a bridge"},
		{"direct without a cable", xml.Interface{Type: "direct", Source: "eth0", Down: true}, Plug{}, nil,
			"<link state='down'> cannot be in force for M, which has no end on the host, and root inside could set it up again: detach it, or use a bridge"},
		{"direct", xml.Interface{Type: "direct", Source: "eth0", Mode: "bridge"}, Plug{}, nil,
			"direct M of=eth0 mode=bridge host=H guest=G"},
		{"plain", xml.Interface{Type: "ethernet"}, Plug{}, nil,
			"ethernet M host=H guest=G"},
		{"host-routed without an address", xml.Interface{Type: "ethernet", Routed: true}, Plug{}, nil,
			"ethernet M host=H guest=G checked=true"},
		{"routed", xml.Interface{Type: "ethernet", Addresses: addresses("192.0.2.2/32", "2001:db8::2/128")}, Plug{}, nil,
			"ethernet M host=H guest=G checked=true addresses=[192.0.2.2/32 2001:db8::2/128] routes=[{0.0.0.0/0 169.254.0.1 0} {::/0 fe80::1 0}] host-addresses=[169.254.0.1/32 fe80::1/128]"},
		{"routed, out by another", xml.Interface{Type: "ethernet", Addresses: addresses("192.0.2.2/32")}, Plug{}, []xml.Interface{bridged},
			"ethernet M host=H guest=G checked=true addresses=[192.0.2.2/32] host-addresses=[169.254.0.1/32]"},
		{"second routed", xml.Interface{Type: "ethernet", Addresses: addresses("192.0.2.2/32")}, Plug{}, []xml.Interface{{Type: "ethernet", MAC: "52:54:00:00:00:08", Addresses: addresses("192.0.2.3/32")}},
			"ethernet M host=H guest=G checked=true addresses=[192.0.2.2/32] host-addresses=[169.254.0.1/32]"},
		{"routed, the host's end given", xml.Interface{Type: "ethernet", Addresses: addresses("192.0.2.2/32"), Host: xml.HostEnd{Addresses: addresses("192.0.2.1/24")}}, Plug{}, nil,
			"ethernet M host=H guest=G checked=true addresses=[192.0.2.2/32] routes=[{0.0.0.0/0 192.0.2.1 0}] host-addresses=[192.0.2.1/24]"},
	} {
		c.n.MAC = "52:54:00:00:00:01"
		p, err := planLink(c.n, append(c.other, c.n), c.plug, "H", "G")
		got := p.String()
		if err != nil {
			got = err.Error()
		}
		if got = strings.ReplaceAll(got, c.n.MAC, "M"); got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestGuestName(t *testing.T) {
	all := []xml.Interface{{Guest: "eth1"}, {}, {Type: "hostdev", Source: "eno1"}}
	taken := map[string]bool{"eth0": true, "lo": true}
	for n, want := range map[int]string{0: "eth1", 1: "eth2", 2: "eno1"} {
		if got := guestName(all[n], all, func(name string) bool { return taken[name] }); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestHostMAC(t *testing.T) {
	for mac, want := range map[string]string{"52:54:00:00:00:01": "fe:54:00:00:00:01", "fe:54:00:00:00:01": "fa:54:00:00:00:01"} {
		in, _ := net.ParseMAC(mac)
		if got := hostMAC(in).String(); got != want || in.String() != mac {
			t.Errorf("%s: %s, want %s", mac, got, want)
		}
	}
}

func TestClaims(t *testing.T) {
	n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", Addresses: addresses("192.0.2.2/24")}
	p := mustPlan(t, n, Plug{}, "vnet0", "eth0")
	if got := strings.Join(p.claims(), ", "); got != "the network interface vnet0, the MAC address 52:54:00:00:00:01 on br0, the address 192.0.2.2 on br0" {
		t.Error(got)
	}
	r := &Runtime{links: linkState{claims: map[string]string{}}}
	if err := r.claimLinks("web1", p.claims()); err != nil {
		t.Fatal(err)
	}
	err := r.claimLinks("web2", []string{"the network interface vnet1", "the address 192.0.2.2 on br0"})
	if err == nil || err.Error() != "the address 192.0.2.2 on br0 is in use by web1, which runs" || len(r.links.claims) != 3 {
		t.Errorf("%v, %v", err, r.links.claims)
	}
	r.releaseLinks("web2", p.claims())
	if len(r.links.claims) != 3 {
		t.Errorf("another has given them up: %v", r.links.claims)
	}
	r.releaseLinks("web1", p.claims())
	if len(r.links.claims) != 0 {
		t.Error(r.links.claims)
	}
}

// TestShape: tc counts in 32 bits, of bytes and of 64 ns.
func TestShape(t *testing.T) {
	const m = 1 << 20
	for _, c := range []struct {
		rate xml.Rate
		want shaping
	}{
		{xml.Rate{Average: m}, shaping{m, m, m / 50, m / 50, 60000}},
		{xml.Rate{Average: m, Peak: 4 * m, Burst: 2 * m}, shaping{m, 4 * m, 2 * m, 4 * m / 50, 60000}},
		{xml.Rate{Average: 1 << 10, Burst: 4 << 30}, shaping{1 << 10, 1 << 10, 200 << 10, 200 << 10, 1600}},
		{xml.Rate{Average: 5 << 30, Burst: 8 << 30}, shaping{5 << 30, 5 << 30, math.MaxUint32, math.MaxUint32, 60000}},
	} {
		if got := shape(c.rate); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.rate, got, c.want)
		}
	}
	for _, c := range []struct {
		rate              xml.Rate
		wantRate, peak, b uint32
	}{
		{xml.Rate{Average: m}, m, 0, m}, // a second's
		{xml.Rate{Average: m, Peak: 2 * m, Burst: 64 << 10}, m, 2 * m, minPolicedBurst}, // the largest packet passes
		{xml.Rate{Average: 1 << 10}, 1 << 10, 0, minPolicedBurst},
		{xml.Rate{Average: 8 << 30}, math.MaxUint32, 0, math.MaxUint32},
	} {
		if got := police(c.rate); got.Rate != c.wantRate || got.PeakRate != c.peak || got.Burst != c.b {
			t.Errorf("%+v: rate %d peak %d burst %d, want %d %d %d", c.rate, got.Rate, got.PeakRate, got.Burst, c.wantRate, c.peak, c.b)
		}
	}
}

func TestWithout(t *testing.T) {
	if got := without([]int{1, 2, 3}, []int{2, 5}); !slices.Equal(got, []int{1, 3}) {
		t.Error(got)
	}
}

// TestAnnounced reads /proc/net/ipv6_route.
func TestAnnounced(t *testing.T) {
	const zero = "00000000000000000000000000000000"
	for line, want := range map[string]string{
		zero + " 00 " + zero + " 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n":      "eth0",
		zero + " 00 " + zero + " 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n":      "",
		"fe800000000000000000000000000000 40 " + zero + " 00 " + zero + " 00000100 00000001 00000000 00000001     eth0\n": "",
		"nonsense\n": "",
	} {
		if got := announced(line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// TestVLANClaims: what is somebody's in one VLAN of a bridge is free in another.
func TestVLANClaims(t *testing.T) {
	r := &Runtime{links: linkState{claims: map[string]string{}}}
	claim := func(name, host string, vlan xml.VLAN) error {
		n := xml.Interface{Type: "bridge", Source: "br0", MAC: "52:54:00:00:00:01", VLAN: vlan, Addresses: addresses("192.0.2.1/24")}
		p := mustPlan(t, n, Plug{}, host, "eth0")
		return r.claimLinks(name, p.claims())
	}
	if err := errors.Join(claim("web1", "vnet0", xml.VLAN{Native: 42}), claim("web2", "vnet1", xml.VLAN{Native: 43}), claim("web3", "vnet2", xml.VLAN{})); err != nil {
		t.Error(err)
	}
	if err := claim("web4", "vnet3", xml.VLAN{Tags: []uint16{41, 43}}); err == nil || err.Error() != "the MAC address 52:54:00:00:00:01 on br0 in VLAN 43 is in use by web2, which runs" {
		t.Errorf("in one of the VLANs it has: %v", err)
	}
	if err := claim("web5", "vnet3", xml.VLAN{}); err == nil || err.Error() != "the MAC address 52:54:00:00:00:01 on br0 is in use by web3, which runs" {
		t.Errorf("without a VLAN: %v", err)
	}
}
