// Package bustest gives tests a message bus of their own, without root and without systemd.
package bustest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Bus is a private dbus-daemon that can be stopped and started again at the same address.
type Bus struct {
	t       *testing.T
	Address string // as NewBus and godbus take it
	daemon  *exec.Cmd
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>`

// New starts a bus that ends with the test. Anybody may own any name on it.
func New(t *testing.T) *Bus {
	t.Helper()
	// Not t.TempDir: with a long test name its path does not fit into a socket address.
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &Bus{t: t, Address: "unix:path=" + filepath.Join(dir, "socket")}
	if err := os.WriteFile(filepath.Join(dir, "config"), fmt.Appendf(nil, busConfig, b.Address), 0o600); err != nil {
		t.Fatal(err)
	}
	b.Start()
	t.Cleanup(b.Stop)
	return b
}

func (b *Bus) dir() string { return filepath.Dir(strings.TrimPrefix(b.Address, "unix:path=")) }

// Start starts it again after Stop, at the same address.
func (b *Bus) Start() {
	b.t.Helper()
	b.daemon = exec.Command("dbus-daemon", "--config-file="+filepath.Join(b.dir(), "config"), "--nofork", "--print-address")
	out, err := b.daemon.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.daemon.Start(); err != nil {
		b.t.Fatalf("%v: these tests need a message bus, install the package dbus-daemon", err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it prints when it listens
		b.t.Fatalf("dbus-daemon did not start: %v", err)
	}
}

// Stop kills the bus, which breaks every connection.
func (b *Bus) Stop() {
	if b.daemon == nil {
		return
	}
	b.daemon.Process.Kill()
	b.daemon.Wait()
	b.daemon = nil
	os.Remove(filepath.Join(b.dir(), "socket"))
}
