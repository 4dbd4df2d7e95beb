//go:build !vm

package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// signer is a key of a test's own.
type signer struct {
	home   string // of gpg
	public string // file with the key that checks
}

func newSigner(t *testing.T) *signer {
	t.Helper()
	home, err := os.MkdirTemp("", "gpg") // its socket has a short name
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{home, filepath.Join(t.TempDir(), "key.asc")}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	s.gpg(t, "--passphrase", "", "--quick-generate-key", "test", "rsa2048", "sign", "never")
	s.gpg(t, "--armor", "--output", s.public, "--export")
	return s
}

func (s *signer) gpg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("gpg", append([]string{"--homedir", s.home, "--batch"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("gpg %s: %v\n%s", args, err, out)
	}
}

// sign writes the signature of a file beside it.
func (s *signer) sign(t *testing.T, file string) {
	t.Helper()
	s.gpg(t, "--detach-sign", file)
}

// TestBuildSigned: with a key, only what it has signed is installed.
func TestBuildSigned(t *testing.T) {
	buildTest(t, "gpg", "dnf", "rpmbuild", "rpmsign", "createrepo_c", "pacman", "repo-add")
	ours, other := newSigner(t), newSigner(t)
	families := []struct {
		recipe         string
		make           func(t *testing.T, repository string, signer *signer)
		wrong, missing string // what is said of another's signature, and of none
	}{
		{"distribution = 'fedora'\nrelease = '42'", makeRPMRepository, "GPG check FAILED", "is not signed"},
		{"distribution = 'arch'\nrelease = 'rolling'", makePacmanRepository, "required key missing", "base-1-1-any.pkg.tar.sig"},
	}
	for _, family := range families {
		for _, test := range []struct {
			name   string
			signer *signer
			want   string
		}{{"by its key", ours, ""}, {"by another", other, family.wrong}, {"by none", nil, family.missing}} {
			repository := t.TempDir()
			family.make(t, repository, test.signer)
			recipe := filepath.Join(t.TempDir(), "x.toml")
			text := family.recipe + "\npackages = ['base']\nsize = '256M'\n[[repository]]\nname = 'core'\naddress = 'file://" + repository + "'\nkey = '" + ours.public + "'\n"
			if err := os.WriteFile(recipe, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			templates := OpenTemplates(t.TempDir())
			var said strings.Builder
			o := BuildOptions{StateDir: t.TempDir(), Progress: func(line string) { said.WriteString(line + "\n") }}
			_, err := templates.Build(t.Context(), "x", recipe, o)
			refused := err != nil && strings.Contains(said.String()+err.Error(), test.want)
			if refused != (test.want != "") || len(templates.Names()) > 0 == refused {
				t.Errorf("%s\nsigned %s: %v, made %v\n%s", family.recipe, test.name, err, templates.Names(), said.String())
			}
			gone(t, templates)
		}
	}
}

func makeRPMRepository(t *testing.T, repository string, signer *signer) {
	t.Helper()
	addRPM(t, repository, "base", "1", "mkdir %{buildroot}/etc; echo >%{buildroot}/etc/os-release")
	if signer != nil {
		signRPM(t, repository, signer)
	}
}

// signRPM signs all packages of a repository and lists them anew.
func signRPM(t *testing.T, repository string, signer *signer) {
	t.Helper()
	files, _ := filepath.Glob(repository + "/*/*.rpm")
	gpg, _ := exec.LookPath("gpg") // rpm may have another name for it
	args := append([]string{"--addsign", "--define", "_gpg_name test", "--define", "_gpg_path " + signer.home, "--define", "__gpg " + gpg}, files...)
	if out, err := exec.Command("rpmsign", args...).CombinedOutput(); err != nil || len(files) == 0 {
		t.Fatalf("%v %v\n%s", files, err, out)
	}
	if out, err := exec.Command("createrepo_c", "-q", repository).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
