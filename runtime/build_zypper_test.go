//go:build !vm

package runtime

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestPendingZypper asks the host's zypper, told of another root, as that of an
// imported openSUSE is asked.
func TestPendingZypper(t *testing.T) {
	buildTest(t, "zypper", "rpmbuild", "createrepo_c")
	real, _ := exec.LookPath("zypper")
	dir := t.TempDir()
	root, repository := dir+"/root", dir+"/repo"
	for path, text := range map[string]string{
		root + "/etc/zypp/repos.d/local.repo": "[local]\nname=local\nenabled=1\ngpgcheck=0\nbaseurl=file://" + repository + "\n",
		dir + "/bin/zypper":                   "#!/bin/sh\nexec " + real + " --root " + root + ` "$@"` + "\n",
		repository + "/none":                  "",
	} {
		if err := os.MkdirAll(path[:strings.LastIndex(path, "/")], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(argv ...string) (string, string, error) {
		var said strings.Builder
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env, cmd.Stderr = append(os.Environ(), "PATH="+dir+"/bin:"+os.Getenv("PATH"), "LC_ALL=C"), &said
		out, err := cmd.Output()
		return string(out), said.String(), err
	}
	steps := planUpdateInside(updateZypper, buildHost{}).Steps
	pending := func() (string, string, error) { return run(steps[len(steps)-1].Argv...) }
	addRPM(t, repository, "tiny-tool", "1.0", "mkdir -p %{buildroot}/opt; echo 1 >%{buildroot}/opt/tiny")
	if out, said, err := run(dir+"/bin/zypper", "--non-interactive", "install", "tiny-tool"); err != nil {
		t.Fatal(err, out, said)
	}
	if out, said, err := pending(); out != "" || err != nil {
		t.Errorf("with nothing newer %q, %v, said %s", out, err, said)
	}
	addRPM(t, repository, "tiny-tool", "2.0", "mkdir -p %{buildroot}/opt; echo 2 >%{buildroot}/opt/tiny")
	if out, said, err := pending(); out != "tiny-tool 1.0-1 -> 2.0-1\n" || err != nil {
		t.Errorf("with a newer one %q, %v, said %s", out, err, said)
	}
	if err := os.Rename(repository, repository+"-gone"); err != nil {
		t.Fatal(err)
	}
	if out, said, err := pending(); out != "" || err == nil || !strings.Contains(said, "local") {
		t.Errorf("of a repository that is gone %q, %v, said %s", out, err, said)
	}
}
