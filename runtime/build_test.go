package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buildTest needs what a build does: root, loop devices and mkfs.ext4.
func buildTest(t *testing.T, programs ...string) {
	t.Helper()
	missing := ""
	for _, p := range append(programs, "mkfs.ext4", "busybox") {
		if _, err := exec.LookPath(p); err != nil {
			missing = p
		}
	}
	if os.Geteuid() != 0 {
		missing = "root"
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		missing = "loop devices"
	}
	if missing == "" {
		return
	}
	if os.Getenv("VIRTVZD_REQUIRE") != "" {
		t.Fatalf("%s is missing", missing)
	}
	t.Skipf("%s is missing", missing)
}

// needRoot skips a test for what only root can do, unless nothing may be missing.
func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VIRTVZD_REQUIRE") != "" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// remains is what a build could leave on the host.
func remains(t *testing.T, templates *Templates) string {
	t.Helper()
	var list []string
	if left, _ := filepath.Glob(templates.digestDir(".import-*")); len(left) > 0 {
		list = append(list, left...)
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range backing {
		if text, _ := os.ReadFile(file); strings.Contains(string(text), templates.dir) {
			list = append(list, file+" "+string(text))
		}
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), templates.dir) {
		list = append(list, "a mount")
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range cmdlines {
		if text, _ := os.ReadFile(file); strings.Contains(string(text), "hook-of-this-test") {
			list = append(list, file)
		}
	}
	return strings.Join(list, "\n")
}

// gone waits for what the kernel clears up on its own time: a loop device is
// cleared after the last mount is.
func gone(t *testing.T, templates *Templates) {
	t.Helper()
	for range 400 {
		if remains(t, templates) == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", remains(t, templates))
}

// hooks runs scripts as hooks in a root of nothing but busybox, on a disk of
// that size, and returns what was said.
func hooks(t *testing.T, ctx context.Context, templates *Templates, size int64, scripts ...string) (said string, err error) {
	t.Helper()
	return hooksOf(t, ctx, templates, size, &buildPlan{}, scripts...)
}

func hooksOf(t *testing.T, ctx context.Context, templates *Templates, size int64, plan *buildPlan, scripts ...string) (said string, err error) {
	t.Helper()
	_, err = templates.makeGeneration(ctx, "x", func(dir string) (Generation, error) {
		o := BuildOptions{StateDir: t.TempDir(), Scopes: buildScopes(t), Progress: func(line string) { said += line + "\n" }}
		b, err := startBuilder(ctx, dir, "x", size, nil, plan, o)
		if err != nil {
			return Generation{}, err
		}
		defer b.close()
		steps := []buildStep{{Title: "root", Argv: []string{"sh", "-ec",
			"cd /target; mkdir bin tmp mnt; cp $(command -v busybox) bin/busybox; bin/busybox --install bin; ls /target/bin/sh"}}}
		for n, script := range scripts {
			how, script := rights(script)
			how.Title, how.Argv = fmt.Sprint("hook ", n), []string{"/bin/sh", "-e", "-c", ": hook-of-this-test\n" + script}
			steps = append(steps, how)
		}
		for _, step := range steps {
			if _, err := b.do(step); err != nil {
				return Generation{}, err
			}
		}
		root, err := unix.Openat(b.disk.plain, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return Generation{}, err
		}
		return copyTree(ctx, root, dir, ImportOptions{Limits: Limits{size, 100_000}})
	})
	return said, err
}

// rights takes from a script by what it is run with others than a hook's.
func rights(script string) (buildStep, string) {
	for prefix, how := range map[string]buildStep{
		"outside:": {},
		"mounts:":  {Network: true, Mounts: true}, // as mmdebstrap is run
		"api:":     {Network: true, API: true},    // as dnf, pacman and apk are
	} {
		if rest, ok := strings.CutPrefix(script, prefix); ok {
			return how, rest
		}
	}
	return buildStep{Inside: true}, script
}

func TestBuildHook(t *testing.T) {
	buildTest(t)
	templates := OpenTemplates(t.TempDir())
	said, err := hooks(t, t.Context(), templates, 128<<20,
		"echo done >/etc-mark; chown 33:34 /etc-mark; chmod 4755 /etc-mark; printf 'red \\033[31m\\n'; id -u; sleep 1000 & ")
	if err != nil {
		t.Fatal(err, said)
	}
	g, _ := templates.Lookup("x")
	var st unix.Stat_t
	if err := unix.Stat(g.Path+"/etc-mark", &st); err != nil || st.Uid != 33 || st.Gid != 34 || st.Mode&0o7777 != 0o4755 {
		t.Errorf("%+v, %v", st, err)
	}
	if !strings.Contains(said, "red [31m\n0\n") {
		t.Errorf("said %q", said)
	}
	gone(t, templates)
}

func TestBuildInterrupted(t *testing.T) {
	buildTest(t)
	templates := OpenTemplates(t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	said, err := hooks(t, ctx, templates, 64<<20, "echo started; sleep 1000")
	if err == nil || ctx.Err() == nil {
		t.Error(err, said)
	}
	gone(t, templates)
}
