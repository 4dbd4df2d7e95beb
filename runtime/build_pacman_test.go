//go:build !vm

package runtime

import (
	"archive/tar"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// makePacmanRepository makes one of a single package, signed if there is a
// signer.
func makePacmanRepository(t *testing.T, repository string, signer *signer) {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	name := repository + "/base-1-1-any.pkg.tar"
	body := tarOf(t,
		tar.Header{Typeflag: tar.TypeReg, Name: ".PKGINFO", Mode: 0o644, Linkname: "pkgname = base\npkgver = 1-1\npkgdesc = test\nbuilddate = 1\nsize = 1\narch = any\npackager = Test <test@localhost>\n"},
		dir("bin"), tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Linkname: string(busybox)}, link("bin/sh", "busybox"),
		dir("etc"), file("etc/os-release", "PRETTY_NAME=Test\n"), dir("dev"), dir("proc"))
	if err := os.WriteFile(name, body, 0o644); err != nil {
		t.Fatal(err)
	}
	if signer != nil {
		signer.sign(t, name)
	}
	if out, err := exec.Command("repo-add", repository+"/core.db.tar.gz", name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestBuildPacman builds from a repository in a directory of the host.
func TestBuildPacman(t *testing.T) {
	buildTest(t, "pacman", "repo-add")
	repository := t.TempDir()
	makePacmanRepository(t, repository, nil)
	recipe := t.TempDir() + "/arch.toml"
	text := "distribution = 'arch'\nrelease = 'rolling'\npackages = ['base']\nsize = '256M'\n" +
		"[[repository]]\nname = 'core'\naddress = 'file://" + repository + "'\nunsigned = true\n" +
		"[[hook]]\nscript = 'echo done >/etc/mark'\n"
	if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	templates := OpenTemplates(t.TempDir())
	var said strings.Builder
	g, err := templates.Build(t.Context(), "arch", recipe, BuildOptions{StateDir: t.TempDir(), Progress: func(line string) { said.WriteString(line + "\n") }})
	if err != nil {
		t.Fatal(err, said.String())
	}
	list, _ := g.PackageList()
	if strings.Join(list, ",") != "base 1-1" || !exists(g.Path+"/etc/mark") || exists(g.Path+"/var/cache/pacman/pkg") {
		t.Errorf("%v\n%s", list, contents(t, g.Path+"/var"))
	}
	gone(t, templates)
}

// TestUpdatePacman: what pacman holds back is no update, and none is no failure.
func TestUpdatePacman(t *testing.T) {
	for _, kept := range []string{"", "tiny 14-1 -> 18-1 [ignored]\n"} {
		for _, want := range []string{"", "fresh 44-1 -> 60-1\n"} {
			pacman := "pacman() { [ $1 = -Sy ] || { printf '" + want + kept + "'; [ '" + want + kept + "' ]; }; }\n"
			if out, err := exec.Command("/bin/sh", "-e", "-c", pacman+updatePacman).Output(); err != nil || string(out) != want {
				t.Errorf("%q, %v, want %q", out, err, want)
			}
		}
	}
}
