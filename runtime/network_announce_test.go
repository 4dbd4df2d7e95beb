package runtime

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// TestAnnounceFrame compares frames with what tcpdump calls an announcement and
// an unsolicited advertisement; the checksums were not computed by this program.
func TestAnnounceFrame(t *testing.T) {
	for _, c := range []struct{ mac, ip, want string }{
		{"52:54:00:12:34:56", "192.0.2.10", `
			ff ff ff ff ff ff  52 54 00 12 34 56  08 06
			00 01  08 00  06 04  00 01
			52 54 00 12 34 56  c0 00 02 0a  00 00 00 00 00 00  c0 00 02 0a`},
		{"52:54:00:12:34:56", "2001:db8::10", `
			33 33 00 00 00 01  52 54 00 12 34 56  86 dd
			60 00 00 00  00 20  3a ff
			20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 10
			ff 02 00 00 00 00 00 00 00 00 00 00 00 00 00 01
			88 00  74 51  20 00 00 00
			20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 10
			02 01  52 54 00 12 34 56`},
		{"52:54:00:ff:ff:ff", "fe80::5054:ff:feff:ffff", `
			33 33 00 00 00 01  52 54 00 ff ff ff  86 dd
			60 00 00 00  00 20  3a ff
			fe 80 00 00 00 00 00 00 50 54 00 ff fe ff ff ff
			ff 02 00 00 00 00 00 00 00 00 00 00 00 00 00 01
			88 00  65 a4  20 00 00 00
			fe 80 00 00 00 00 00 00 50 54 00 ff fe ff ff ff
			02 01  52 54 00 ff ff ff`},
		{"52:54:00:12:34:56", "127.0.0.1", ""},
		{"52:54:00:12:34:56", "::1", ""},
		{"", "192.0.2.10", ""}, // a tunnel has no such address
	} {
		mac, _ := net.ParseMAC(c.mac)
		want := strings.Join(strings.Fields(c.want), "")
		if got := hex.EncodeToString(announceFrame(mac, netip.MustParseAddr(c.ip))); got != want {
			t.Errorf("%s at %s:\n%s\nwant\n%s", c.ip, c.mac, got, want)
		}
	}
}
