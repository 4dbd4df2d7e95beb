package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Roots is the directory in a machine of the root file systems to test with:
// debian13-systemd, debian13-sysvinit and busybox, each a .tar.zst.
const Roots = "/srv/roots"

// sockets start the daemon with the first client.
const daemonSockets = "virtvzd.socket virtvzd-ro.socket virtvzd-admin.socket"

// Tags are the build tags of the daemon that Install installs: with faults a
// test can kill it at any step (see runtime/faults.go).
var Tags = "faults"

// Install builds this tree's daemon, installs it in the machine as `make
// install` does, and has systemd listen for its clients. Installing again
// restarts a daemon that runs.
func (v *VM) Install(ctx context.Context) error {
	top, err := moduleRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vm-install-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	files := filepath.Join(dir, "files")
	// A packager's variables in the environment are not for this.
	cmd := exec.CommandContext(ctx, "make", "-C", top, "install", "DESTDIR="+files, "PREFIX=/usr", "BIN="+filepath.Join(dir, "bin"), "TAGS="+Tags)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make install: %w\n%s", err, out)
	}
	if err := v.Push(ctx, files, "/"); err != nil {
		return err
	}
	_, err = v.Run(ctx, "systemctl daemon-reload && systemctl -q enable "+daemonSockets+
		" && systemctl start "+daemonSockets+" && systemctl try-restart virtvzd.service")
	return err
}

// moduleRoot is the directory of this tree's go.mod, at or above the current
// directory. Tests run in their package's directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module virtvzd\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("no go.mod of virtvzd at or above the current directory: go to the tree")
		}
	}
}

// TestPackage compiles the tests of a package of this tree, "./runtime", with
// the build tag vm, and runs them in the machine with args added to -test.v.
// What they print goes to out as it comes.
func (v *VM) TestPackage(ctx context.Context, out io.Writer, path string, args ...string) error {
	binary, err := v.pushTests(ctx, path)
	if err != nil {
		return err
	}
	cmd := v.Command(ctx, testCommand(binary, append([]string{"-test.v"}, args...)))
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the tests of %s: %w", path, err)
	}
	return nil
}

// pushTests puts a package's tests at its place below /root/tests, with all
// testdata of the module around it as go test would find it, the recipes of
// templates and the demonstration, and returns the binary's path there.
func (v *VM) pushTests(ctx context.Context, path string) (string, error) {
	top, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "vm-test-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "package.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "vm", "-ldflags=-s -w", "-c", "-o", binary, path)
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the tests of %s: %w\n%s", path, err, out)
	}
	if !exists(binary) {
		return "", fmt.Errorf("%s has no tests", path)
	}
	tree := filepath.Join(dir, "tree")
	if err := gatherTestdata(tree, top); err != nil {
		return "", err
	}
	if err := v.Push(ctx, tree, "/root/tests"); err != nil {
		return "", err
	}
	const demo = "integration/demo.sh"
	if err := v.Push(ctx, filepath.Join(top, demo), "/root/tests/"+demo); err != nil {
		return "", err
	}
	there := "/root/tests/" + filepath.ToSlash(filepath.Clean(path)) + "/package.test"
	return there, v.Push(ctx, binary, there)
}

// gatherTestdata copies every directory of testdata, and of recipes, below top to
// its place below tree.
func gatherTestdata(tree, top string) error {
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	return filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if strings.HasPrefix(d.Name(), ".") && name != top {
			return fs.SkipDir
		}
		if d.Name() != "testdata" && d.Name() != "templates" {
			return nil
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		if err := os.CopyFS(filepath.Join(tree, rel), os.DirFS(name)); err != nil {
			return err
		}
		return fs.SkipDir
	})
}

// testCommand is the shell command that runs a pushed test binary. What it
// needs is there: a test that would rather skip has to fail.
func testCommand(binary string, args []string) string {
	words := []string{"cd", quote(filepath.Dir(binary)), "&&", "VIRTVZD_REQUIRE=1", "VIRTVZD_TEST_ROOTS=" + Roots, "./" + filepath.Base(binary)}
	for _, arg := range args {
		words = append(words, quote(arg))
	}
	return strings.Join(words, " ")
}
