//go:build !vm

package runtime

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// addDeb builds a package without architecture, with a script that runs when it
// is installed, and adds it to an archive of the release "local".
func addDeb(t *testing.T, archive, name, version, script string) {
	t.Helper()
	top, at := t.TempDir(), archive+"/dists/local/main/binary-all"
	if err := errors.Join(os.Mkdir(top+"/DEBIAN", 0o755), os.MkdirAll(at, 0o755),
		os.WriteFile(top+"/DEBIAN/control", []byte("Package: "+name+"\nVersion: "+version+"\nArchitecture: all\nMaintainer: test <test@localhost>\nDescription: a package of a test\n"), 0o644),
		os.WriteFile(top+"/DEBIAN/postinst", []byte("#!/bin/sh\n"+script), 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", top, fmt.Sprintf("%s/%s_%s_all.deb", archive, name, version)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	scan := exec.Command("dpkg-scanpackages", "--multiversion", ".")
	scan.Dir = archive
	list, err := scan.Output()
	if err != nil {
		t.Fatal(err)
	}
	release := fmt.Sprintf("Suite: local\nCodename: local\nComponents: main\nArchitectures: all\nSHA256:\n %x %d main/binary-all/Packages\n", sha256.Sum256(list), len(list))
	if err := errors.Join(os.WriteFile(at+"/Packages", list, 0o644), os.WriteFile(archive+"/dists/local/Release", []byte(release), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestBuildDebian builds from the archive that this machine's apt knows, and from
// one of its own with a package whose script is hostile.
func TestBuildDebian(t *testing.T) {
	if os.Getenv("VIRTVZD_REQUIRE") == "" {
		t.Skip("this takes minutes and an archive: VIRTVZD_REQUIRE=1 does it")
	}
	buildTest(t, "mmdebstrap", "apt-get", "dpkg-deb", "dpkg-scanpackages")
	host, err := lookAtHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(host.Apt, func(s aptSource) bool { return s.Label == "Debian" && s.Component == "main" })
	if at < 0 {
		t.Fatal("apt knows no Debian archive: run apt-get update")
	}
	victim, pid := bystander(t)
	script, count := attempts(victim, pid)
	archive := t.TempDir()
	os.Chmod(archive, 0o755)
	addDeb(t, archive, "tiny", "1", "{\n"+script+"} >/attempts 2>&1\n")
	recipe := t.TempDir() + "/debian.toml"
	text := fmt.Sprintf(`distribution = "debian"
release = %[1]q
packages = ["busybox-static", "tiny"]
size = "1G"
[[repository]]
name = "main"
address = %[2]q
key = "/usr/share/keyrings/debian-archive-keyring.gpg"
[[repository]]
name = "local"
address = "file://%[3]s"
suite = "local"
unsigned = true
`, host.Apt[at].Release, host.Apt[at].URI, archive)
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
	for _, hosts := range []string{"/etc/apt/apt.conf.d/99mmdebstrap", "/var/cache/apt/pkgcache.bin", archive} {
		if exists(g.Path + hosts) {
			t.Errorf("%s stays in the template", hosts)
		}
	}
	if tried, err := os.ReadFile(g.Path + "/attempts"); err != nil || !failedAll(string(tried), count) {
		t.Errorf("%v\n%s", err, tried)
	}
	gone(t, templates)
	addDeb(t, archive, "tiny", "2", "")
	pending, err := templates.Pending(t.Context(), "debian", o)
	if err != nil || len(pending) != 1 || !strings.HasPrefix(pending[0], "tiny [1] (2 ") {
		t.Errorf("updates %q, %v\n%s", pending, err, said.String())
	}
	gone(t, templates)
}
