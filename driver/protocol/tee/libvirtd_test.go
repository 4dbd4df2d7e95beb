package tee

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// need finds a program of the host's libvirt packages.
func need(t *testing.T, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	const how = "%s is missing: install Debian's libvirt-daemon and libvirt-clients"
	if os.Getenv("VIRTVZD_REQUIRE") != "" {
		t.Fatalf(how, name)
	}
	t.Skipf(how, name)
	return ""
}

const nobody = 65534

// startDaemon runs libvirtd as an unprivileged session daemon with its built-in
// test driver and, where installed, the one for secrets, which the test driver
// lacks. All it writes is below dir: nothing of a libvirt that the host itself
// uses is touched.
func startDaemon(t *testing.T, dir string) {
	t.Helper()
	conf := filepath.Join(dir, "libvirtd.conf")
	write(t, conf, "log_outputs = \"3:stderr\"\n")
	for _, d := range []string{"run", "home", "drivers"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret, err := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_secret.so")
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range secret {
		if err := os.Symlink(lib, filepath.Join(dir, "drivers", filepath.Base(lib))); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(need(t, "libvirtd"), "--config", conf, "--pid-file", filepath.Join(dir, "pid"))
	cmd.Dir = dir
	cmd.Env = append(environment(dir), "LIBVIRT_DRIVER_DIR="+filepath.Join(dir, "drivers"))
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		for _, d := range []string{".", "run", "home"} {
			if err := os.Chown(filepath.Join(dir, d), nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("libvirtd's log:\n%s", text)
		}
	})
	for range 200 {
		if _, err := os.Stat(socket(dir)); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("libvirtd did not open its socket in 10 s")
}

func socket(dir string) string { return filepath.Join(dir, "run/libvirt/libvirt-sock") }

// environment keeps clients and daemon away from the user's own settings.
func environment(dir string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "EDITOR=true",
		"HOME=" + filepath.Join(dir, "home"), "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run")}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// dialer connects to a socket of the daemon as the daemon's own user, because
// the admin socket lets in no other. The identity is the thread's; package
// syscall would change the whole process.
func dialer(path string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		if os.Getuid() != 0 {
			return net.Dial("unix", path)
		}
		runtime.LockOSThread()
		const keep = ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, nobody, keep); errno != 0 {
			return nil, errno // the thread stays locked, and ends with its goroutine
		}
		conn, err := net.Dial("unix", path)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep); errno != 0 {
			return nil, errno
		}
		runtime.UnlockOSThread()
		return conn, err
	}
}
