//go:build !vm

package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// addRPM builds a package without architecture of the files of a directory
// and adds it to the repository.
func addRPM(t *testing.T, repository, name, version, install string) {
	t.Helper()
	top := t.TempDir()
	spec := fmt.Sprintf(`Name: %s
Version: %s
Release: 1
Summary: a package of a test
License: none
BuildArch: noarch
AutoReqProv: no
%%description
%%install
%s
%%files
/*
`, name, version, install)
	if err := os.WriteFile(top+"/x.spec", []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("rpmbuild", "--quiet", "-bb", "--nodeps", "--define", "_topdir "+top, "--define", "_rpmdir "+repository, "--define", "_binaries_in_noarch_packages_terminate_build 0", top+"/x.spec")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("createrepo_c", "-q", repository).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestBuildDNF builds from a repository in a directory of the host.
func TestBuildDNF(t *testing.T) {
	buildTest(t, "dnf", "rpmbuild", "createrepo_c")
	repository := t.TempDir()
	busybox, _ := exec.LookPath("busybox")
	add := func(version string) {
		addRPM(t, repository, "base", version, "mkdir -p %{buildroot}/bin %{buildroot}/etc %{buildroot}/proc %{buildroot}/dev\n"+
			"cp "+busybox+" %{buildroot}/bin/busybox\nfor a in sh cat id sleep; do ln -s busybox %{buildroot}/bin/$a; done\n"+
			"echo 'PRETTY_NAME=\"Test "+version+"\"' >%{buildroot}/etc/os-release")
	}
	add("1.0")
	recipe := t.TempDir() + "/test.toml"
	text := `distribution = "fedora"
release = "42"
packages = ["base"]
size = "512M"
repositories = ["local"]
[[repository]]
name = "local"
address = "file://` + repository + `"
unsigned = true
[[hook]]
name = "mark"
script = "echo by the hook >/etc/mark"
`
	if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	templates := OpenTemplates(t.TempDir())
	var said strings.Builder
	o := BuildOptions{StateDir: t.TempDir(), Progress: func(line string) { said.WriteString(line + "\n") }}
	g, err := templates.Build(t.Context(), "test", recipe, o)
	if err != nil {
		t.Fatal(err, said.String())
	}
	mark, _ := os.ReadFile(g.Path + "/etc/mark")
	list, _ := g.PackageList()
	if string(mark) != "by the hook\n" || strings.Join(list, ",") != "base 1.0-1" || g.System != "Test 1.0" || g.Source != recipe {
		t.Errorf("%q, %v, %+v", mark, list, g)
	}
	for _, want := range []string{"==> installing packages\n", "base", "==> hook mark\n"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("it did not say %q:\n%s", want, said.String())
		}
	}
	gone(t, templates)

	pending, err := templates.Pending(t.Context(), "test", o)
	if err != nil || len(pending) != 0 {
		t.Errorf("updates %q, %v\n%s", pending, err, said.String())
	}
	add("2.0")
	pending, err = templates.Pending(t.Context(), "test", o)
	if err != nil || len(pending) != 1 || !strings.Contains(pending[0], "2.0") {
		t.Errorf("updates %q, %v\n%s", pending, err, said.String())
	}
	gone(t, templates)

	// Building it again is what updates, and leaves the old generation alone.
	now, err := templates.Build(t.Context(), "test", recipe, o)
	if err != nil {
		t.Fatal(err, said.String())
	}
	if list, _ := now.PackageList(); now.Digest == g.Digest || now.System != "Test 2.0" || strings.Join(list, ",") != "base 2.0-1" {
		t.Errorf("after %+v came %+v with %v", g, now, list)
	}
	if old, err := os.ReadFile(g.Path + "/etc/os-release"); string(old) != "PRETTY_NAME=\"Test 1.0\"\n" {
		t.Errorf("the old generation is %q, %v", old, err)
	}
	if list, err := templates.List(); err != nil || len(list) != 2 || !list[0].Current {
		t.Errorf("generations %+v, %v", list, err)
	}
	if pending, err = templates.Pending(t.Context(), "test", o); err != nil || len(pending) != 0 {
		t.Errorf("updates %q, %v\n%s", pending, err, said.String())
	}

	// A repository that cannot be used is not one without updates.
	if err := os.Rename(repository+"/repodata", repository+"/gone"); err != nil {
		t.Fatal(err)
	}
	if pending, err = templates.Pending(t.Context(), "test", o); err == nil || !strings.Contains(err.Error(), "repo 'local'") {
		t.Errorf("updates %q of a repository that is gone, %v", pending, err)
	}
	if err := os.Rename(repository+"/gone", repository+"/repodata"); err != nil {
		t.Fatal(err)
	}

	// What fails leaves the template as it is.
	os.WriteFile(recipe, []byte(strings.Replace(text, `["base"]`, `["base", "nosuch"]`, 1)), 0o644)
	if _, err := templates.Build(t.Context(), "test", recipe, o); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a package that there is not: %v", err)
	}
	second := "[[repository]]\nname = 'second'\naddress = 'file://" + t.TempDir() + "'\nunsigned = true\n"
	os.WriteFile(recipe, []byte(text+second), 0o644)
	if _, err := templates.Build(t.Context(), "test", recipe, o); err == nil || !strings.Contains(err.Error(), "repo 'second'") {
		t.Errorf("a repository that there is not: %v", err)
	}
	if left, err := templates.Lookup("test"); err != nil || left.Digest != now.Digest {
		t.Errorf("%+v, %v", left, err)
	}
	gone(t, templates)
}

// TestBuildHostileRPM: a package's own script, which dnf runs in the root.
func TestBuildHostileRPM(t *testing.T) {
	buildTest(t, "dnf", "rpmbuild", "createrepo_c")
	victim, pid := bystander(t)
	script, count := attempts(victim, pid)
	busybox, _ := exec.LookPath("busybox")
	repository := t.TempDir()
	addRPM(t, repository, "base", "1", "mkdir -p %{buildroot}/bin %{buildroot}/proc %{buildroot}/dev\ncp "+busybox+" %{buildroot}/bin/busybox\n"+
		"for a in $("+busybox+" --list); do [ $a = busybox ] || ln -s busybox %{buildroot}/bin/$a; done\n%post\n{\n"+
		strings.ReplaceAll(script, "%", "%%")+"} >/attempts 2>&1")
	recipe := t.TempDir() + "/x.toml"
	text := "distribution = 'fedora'\nrelease = '42'\npackages = ['base']\nsize = '128M'\n[[repository]]\nname = 'x'\naddress = 'file://" + repository + "'\nunsigned = true\n"
	if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	templates := OpenTemplates(t.TempDir())
	var said strings.Builder
	g, err := templates.Build(t.Context(), "x", recipe, BuildOptions{StateDir: t.TempDir(), Progress: func(line string) { said.WriteString(line + "\n") }})
	if err != nil {
		t.Fatal(err, said.String())
	}
	if tried, err := os.ReadFile(g.Path + "/attempts"); err != nil || !failedAll(string(tried), count) {
		t.Errorf("%v\n%s", err, tried)
	}
	gone(t, templates)
}

// TestUpdateDNF: what dnf 4.23 prints with a package that replaces another, and
// dnf5 twice, is told once, and not what is replaced.
func TestUpdateDNF(t *testing.T) {
	const dnf = `dnf() {
	case $* in *--refresh*) ;; *) return 0 ;; esac
	cat <<-end

	tiny.noarch                                50-1                           local
	gplus.noarch                               1-1                            local
	Obsoleting Packages
	gplus.noarch                               1-1                            local
	    g++-1_x.y.noarch                       1:1.0-1                        @local
	end
	return 100
}
`
	out, err := exec.Command("/bin/sh", "-e", "-c", dnf+updateDNF).Output()
	if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != "tiny.noarch 50-1 local gplus.noarch 1-1 local" {
		t.Errorf("%q, %v", out, err)
	}
}
