package rpctest

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Need finds a program of the host's libvirt packages, in the paths of root
// too. Without it the test is skipped, or fails where it must not be.
func Need(t testing.TB, name string) string {
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

// Nobody is the user a Libvirtd runs as when root starts it.
const Nobody = 65534

// Libvirtd is the host's own libvirtd, run as an unprivileged session daemon
// with its built-in test driver. All it writes is below Dir: nothing of a
// libvirt that the host itself uses is touched.
type Libvirtd struct {
	Dir string

	t   testing.TB
	cmd *exec.Cmd
}

// StartLibvirtd starts it in an empty directory of its own, with the secondary
// drivers named (secret, storage, …) where they are installed. It ends with the
// test.
func StartLibvirtd(t testing.TB, dir string, drivers ...string) *Libvirtd {
	t.Helper()
	Need(t, "libvirtd")
	l := &Libvirtd{Dir: dir, t: t}
	for _, d := range []string{"run", "home", "drivers"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "libvirtd.conf"), []byte("log_outputs = \"3:stderr\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range drivers {
		libs, err := filepath.Glob("/usr/lib/*/libvirt/connection-driver/libvirt_driver_" + name + ".so")
		if err != nil {
			t.Fatal(err)
		}
		for _, lib := range libs {
			if err := os.Symlink(lib, filepath.Join(dir, "drivers", filepath.Base(lib))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if os.Getuid() == 0 {
		for _, d := range []string{".", "run", "home"} {
			if err := os.Chown(filepath.Join(dir, d), Nobody, Nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.Start()
	t.Cleanup(func() {
		l.Stop(syscall.SIGTERM)
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("libvirtd's log:\n%s", text)
		}
	})
	return l
}

// Start starts it, after Stop once more.
func (l *Libvirtd) Start() {
	l.t.Helper()
	l.cmd = exec.Command(Need(l.t, "libvirtd"), "--config", filepath.Join(l.Dir, "libvirtd.conf"), "--pid-file", filepath.Join(l.Dir, "pid"))
	l.cmd.Dir = l.Dir
	l.cmd.Env = append(l.Environment(), "LIBVIRT_DRIVER_DIR="+filepath.Join(l.Dir, "drivers"))
	if os.Getuid() == 0 {
		l.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: Nobody, Gid: Nobody}}
	}
	log, err := os.OpenFile(filepath.Join(l.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	l.cmd.Stderr = log
	os.Remove(l.Socket())
	if err := l.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	for range 1200 {
		if _, err := os.Stat(l.Socket()); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	l.t.Fatal("libvirtd did not open its socket in a minute")
}

// Stop sends a signal that ends it and waits until it is gone.
func (l *Libvirtd) Stop(sig syscall.Signal) {
	l.cmd.Process.Signal(sig)
	l.cmd.Wait()
}

// SocketDir is where its sockets are.
func (l *Libvirtd) SocketDir() string { return filepath.Join(l.Dir, "run/libvirt") }

// Socket is the one for clients.
func (l *Libvirtd) Socket() string { return filepath.Join(l.SocketDir(), "libvirt-sock") }

// Environment keeps clients and daemon away from the user's own settings.
func (l *Libvirtd) Environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "EDITOR=true",
		"HOME=" + filepath.Join(l.Dir, "home"), "XDG_RUNTIME_DIR=" + filepath.Join(l.Dir, "run")}
}
