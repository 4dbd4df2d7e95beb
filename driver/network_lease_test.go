package driver

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// TestReleaseMessage reads the message by the offsets of RFC 2131.
func TestReleaseMessage(t *testing.T) {
	mac, _ := net.ParseMAC("52:54:00:00:00:01")
	leased, server := netip.MustParseAddr("192.168.122.50"), netip.MustParseAddr("192.168.122.1")
	for client, options := range map[string]string{
		"":                     "350107" + "3604c0a87a01" + "ff",
		"01:52:54:00:00:00:01": "350107" + "3604c0a87a01" + "3d0701525400000001" + "ff",
		"no hex":               "350107" + "3604c0a87a01" + "ff",
	} {
		m := releaseMessage(leased, server, mac, client)
		if len(m) != 300 {
			t.Fatalf("%q: %d bytes", client, len(m))
		}
		for _, f := range []struct {
			name     string
			from, to int
			want     string
		}{
			{"op, htype, hlen, hops", 0, 4, "01010600"},
			{"secs, flags", 8, 12, "00000000"},
			{"ciaddr", 12, 16, "c0a87a32"},
			{"yiaddr, siaddr, giaddr", 16, 28, strings.Repeat("00", 12)},
			{"chaddr", 28, 44, "525400000001" + strings.Repeat("00", 10)},
			{"sname, file", 44, 236, strings.Repeat("00", 192)},
			{"cookie and options", 236, 240 + len(options)/2, "63825363" + options},
		} {
			if got := hex.EncodeToString(m[f.from:f.to]); got != f.want {
				t.Errorf("%q: %s is %s, want %s", client, f.name, got, f.want)
			}
		}
	}
	long := releaseMessage(leased, server, mac, strings.Repeat("ab:", 254)+"ab")
	if len(long) != 240+3+6+2+255+1 {
		t.Errorf("with the longest id it has %d bytes", len(long))
	}
	if _, err := serverOf("lo", netip.MustParseAddr("127.0.0.9")); err != nil {
		t.Error(err)
	}
	if _, err := serverOf("lo", leased); err == nil {
		t.Error("lo has an address for 192.168.122.50")
	}
}
