//go:build !vm

package runtime

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestBuildDebian builds from the archive that this machine's apt knows.
func TestBuildDebian(t *testing.T) {
	if os.Getenv("VIRTVZD_REQUIRE") == "" {
		t.Skip("this takes minutes and an archive: VIRTVZD_REQUIRE=1 does it")
	}
	buildTest(t, "mmdebstrap", "apt-get")
	host, err := lookAtHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(host.Apt, func(s aptSource) bool { return s.Label == "Debian" && s.Component == "main" })
	if at < 0 {
		t.Fatal("apt knows no Debian archive: run apt-get update")
	}
	recipe := t.TempDir() + "/debian.toml"
	text := `distribution = "debian"
release = "` + host.Apt[at].Release + `"
packages = ["busybox-static"]
size = "1G"
`
	if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	templates := OpenTemplates(t.TempDir())
	var said strings.Builder
	o := BuildOptions{StateDir: t.TempDir(), Progress: func(line string) { said.WriteString(line + "\n") }}
	g, err := templates.Build(t.Context(), "debian", recipe, o)
	if err != nil {
		t.Fatal(err, said.String())
	}
	list, _ := g.PackageList()
	has := func(name string) bool {
		return slices.ContainsFunc(list, func(p string) bool { return strings.HasPrefix(p, name+" ") })
	}
	if !strings.HasPrefix(g.System, "Debian GNU/Linux") || len(list) < 50 || !has("apt") || !has("busybox-static") {
		t.Errorf("%+v\n%v", g, list)
	}
	if info, err := os.Stat(g.Path + "/usr/bin/passwd"); err == nil && info.Mode()&os.ModeSetuid == 0 {
		t.Errorf("passwd is %v", info.Mode())
	}
	for _, hosts := range []string{"/etc/apt/apt.conf.d/99mmdebstrap", "/var/cache/apt/pkgcache.bin"} {
		if exists(g.Path + hosts) {
			t.Errorf("%s stays in the template", hosts)
		}
	}
	if _, err := templates.Pending(t.Context(), "debian", o); err != nil {
		t.Error(err, said.String())
	}
	gone(t, templates)
}
