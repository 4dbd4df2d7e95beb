package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"virtvzd/xml"
)

func TestResolver(t *testing.T) {
	env := &xml.Environment{Nameservers: []string{"192.0.2.53", "2001:db8::53"}, SearchDomains: []string{"example.org", "example.net"}}
	text := resolverText(env)
	if want := "search example.org example.net\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"; !strings.HasSuffix(text, want) {
		t.Errorf("%q", text)
	}
	if got := resolverText(&xml.Environment{}); got != "" {
		t.Errorf("without name servers %q", got)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	for _, c := range []struct {
		name, line, where string // where it then is; "" for a refusal
	}{
		{"none", "etc", "etc/resolv.conf"},
		{"longer", "etc/resolv.conf = " + strings.Repeat("nameserver 203.0.113.1\n", 90), "etc/resolv.conf"},
		{"link", "etc/resolv.conf -> ../run/systemd/resolve/stub-resolv.conf", "run/systemd/resolve/stub-resolv.conf"},
		{"absolute link", "etc/resolv.conf -> /run/resolvconf/resolv.conf", "run/resolvconf/resolv.conf"},
		{"link out of the root", "etc/resolv.conf -> ../../../../../../.." + outside, strings.TrimPrefix(outside, "/")},
		{"directory", "etc/resolv.conf", ""},
	} {
		root := makeRoot(t, c.line)
		err := writeResolver(root, text)
		if c.where == "" {
			if err == nil {
				t.Errorf("%s: written", c.name)
			}
			continue
		}
		got, readErr := os.ReadFile(filepath.Join(root.name, c.where))
		if err != nil || readErr != nil || string(got) != text {
			t.Errorf("%s: %v, %v, %q", c.name, err, readErr, got)
		}
	}
	if _, err := os.Stat(outside); err == nil {
		t.Error("written out of the root")
	}
}
