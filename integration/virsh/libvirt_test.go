//go:build vm && cgo

package virsh

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirt"

	"virtvzd/integration/vm"
)

// eventLoop is libvirt's own: without it a stream has no events.
var eventLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for libvirt.EventRunDefaultImpl() == nil {
		}
	}()
	return nil
})

// patience is for an emulated machine on a busy host.
const patience = 2 * time.Minute

// TestHostClients has clients of this host, of whatever version, reach the
// daemon in a machine.
func TestHostClients(t *testing.T) {
	v := vm.Own(t)
	v.Sh(t, "virtvzd template list | grep -q ^busybox || virtvzd template import busybox "+vm.Roots+"/busybox.tar.zst")
	socket, err := v.Forward(t.Context(), "/run/libvirt/virtvzd-sock")
	must(t, err)
	must(t, eventLoop())
	uri := "vz+unix:///system?socket=" + socket
	t.Run("console", func(t *testing.T) { testConsole(t, connect(t, uri)) })
	t.Run("updated", func(t *testing.T) { testUpdated(t, v, uri) })
	t.Run("virsh", func(t *testing.T) { testVirsh(t, uri) })
}

func connect(t *testing.T, uri string) *libvirt.Connect {
	t.Helper()
	conn, err := libvirt.NewConnect(uri)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// testUpdated: that a running definition was changed is known to the next daemon.
func testUpdated(t *testing.T, v *vm.VM, uri string) {
	dom := running(t, connect(t, uri), "web1")
	updated := func(dom *libvirt.Domain) bool {
		t.Helper()
		updated, err := dom.IsUpdated()
		must(t, err)
		return updated
	}
	if updated(dom) {
		t.Error("it is updated before any change")
	}
	must(t, dom.SetMemoryFlags(48<<10, libvirt.DOMAIN_MEM_LIVE))
	if !updated(dom) {
		t.Error("it is not updated after a change")
	}
	v.Sh(t, "systemctl restart virtvzd")
	again, err := connect(t, uri).LookupDomainByName("web1")
	must(t, err)
	if !updated(again) {
		t.Error("it is not updated for another daemon")
	}
	must(t, again.Destroy())
}

// testVirsh is the life of an environment, by the virsh of this host.
func testVirsh(t *testing.T, uri string) {
	definition := filepath.Join(t.TempDir(), "web1.xml")
	must(t, os.WriteFile(definition, []byte(definitionOf("web1")), 0o600))
	output := filepath.Join(t.TempDir(), "output")
	for _, c := range []struct{ command, want string }{
		{"virsh define " + definition, "Domain 'web1' defined"},
		{"virsh start web1", "Domain 'web1' started"},
		{"virsh list", " web1   running"},
		{`testdata/bin/attach ` + output + ` 'echo he""llo' hello web1; cat ` + output, "\nhello"},
		{"virsh suspend web1", "Domain 'web1' suspended"},
		{"virsh domstate web1 --reason", "paused (user)"},
		{"virsh resume web1", "Domain 'web1' resumed"},
		{"virsh reset web1", "Domain 'web1' was reset"},
		{"virsh destroy web1", "Domain 'web1' destroyed"},
		{"virsh undefine web1", "Domain 'web1' has been undefined"},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", c.command)
		cmd.Env = append(os.Environ(), "LIBVIRT_DEFAULT_URI="+uri, "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), c.want) {
			t.Fatalf("%s: %v\n%s", c.command, err, out)
		}
	}
}

// testConsole reads and types into consoles through streams of libvirt's
// library.
func testConsole(t *testing.T, conn *libvirt.Connect) {
	web1, web2 := running(t, conn, "web1"), running(t, conn, "web2")

	// Two at once over one connection do not mix.
	first, second := open(t, conn, web1, 0), open(t, conn, web2, 0)
	first.expect("busybox is up")
	second.expect("busybox is up")
	first.send("echo $HOSTNAME; hostname; echo first\"\"done\r")
	second.send("hostname; echo second\"\"done\r")
	if out := first.expect("firstdone"); !strings.Contains(out, "web1") || strings.Contains(out, "web2") {
		t.Errorf("the console of web1 shows %q", out)
	}
	if out := second.expect("seconddone"); !strings.Contains(out, "web2") || strings.Contains(out, "web1") {
		t.Errorf("the console of web2 shows %q", out)
	}

	// More than fits into any window, while the other one stays usable.
	first.send("dd if=/dev/zero bs=1024 count=2048 2>/dev/null | tr '\\0' x; echo; echo much\"\"done\r")
	second.send("echo mean\"\"while\r")
	second.expect("meanwhile")
	first.expect("muchdone")

	// One looks at a time, unless he insists; then the other sees the end.
	other := stream(t, conn, 0)
	err := web1.OpenConsole("", other, 0)
	if e, ok := err.(libvirt.Error); !ok || e.Code != libvirt.ERR_OPERATION_FAILED {
		t.Errorf("a second one on the console: %v", err)
	}
	other.Free()
	err = web1.OpenConsole("console7", stream(t, conn, 0), 0)
	if e, ok := err.(libvirt.Error); !ok || e.Code != libvirt.ERR_INTERNAL_ERROR || !strings.Contains(e.Message, "console7") {
		t.Errorf("a console that is not there: %v", err)
	}
	forced := open(t, conn, web1, libvirt.DOMAIN_CONSOLE_FORCE)
	first.ends()
	forced.send("echo for\"\"ced\r")
	forced.expect("forced")

	// Whoever leaves, politely or not, leaves it free.
	must(t, forced.Finish())
	rude := openFree(t, conn, web1)
	must(t, rude.Abort())
	last := openFree(t, conn, web1)

	// A client with an event loop is called when there is something to read.
	must(t, second.Finish())
	events := stream(t, conn, libvirt.STREAM_NONBLOCK)
	heard := make(chan string, 1024)
	must(t, web2.OpenConsole("", events, libvirt.DOMAIN_CONSOLE_FORCE))
	must(t, events.EventAddCallback(libvirt.STREAM_EVENT_READABLE, func(s *libvirt.Stream, _ libvirt.StreamEventType) {
		buf := make([]byte, 4096)
		if n, err := s.Recv(buf); err == nil && n > 0 {
			heard <- string(buf[:n])
		}
	}))
	if _, err := events.Send([]byte("echo ev\"\"ent\r")); err != nil {
		t.Fatal(err)
	}
	(&console{t: t, heard: heard}).expect("event")
	must(t, events.EventRemoveCallback())
	must(t, events.Abort())

	// With the environment its console ends.
	must(t, web1.Destroy())
	last.ends()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// running is a transient domain that the test's end removes.
func running(t *testing.T, conn *libvirt.Connect, name string) *libvirt.Domain {
	t.Helper()
	dom, err := conn.DomainCreateXML(definitionOf(name), 0)
	must(t, err)
	t.Cleanup(func() { dom.Destroy() })
	return dom
}

func definitionOf(name string) string {
	return `<domain type='vz'><name>` + name + `</name><memory unit='MiB'>64</memory>
<devices><filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem></devices></domain>`
}

func stream(t *testing.T, conn *libvirt.Connect, flags libvirt.StreamFlags) *libvirt.Stream {
	t.Helper()
	s, err := conn.NewStream(flags)
	must(t, err)
	return s
}

// console is a stream that a goroutine reads, so that a test can give up.
type console struct {
	*libvirt.Stream
	t     *testing.T
	heard chan string // closed at the end of the stream
	text  string      // heard and not yet expected
}

func open(t *testing.T, conn *libvirt.Connect, dom *libvirt.Domain, flags libvirt.DomainConsoleFlags) *console {
	t.Helper()
	s := stream(t, conn, 0)
	must(t, dom.OpenConsole("", s, flags))
	return listen(t, s)
}

// openFree is open once the one before has left: the daemon may hear of that
// a moment after the client.
func openFree(t *testing.T, conn *libvirt.Connect, dom *libvirt.Domain) *console {
	t.Helper()
	s := stream(t, conn, 0)
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = dom.OpenConsole("", s, 0); err == nil {
			return listen(t, s)
		}
	}
	t.Fatalf("the console does not become free: %v", err)
	return nil
}

func listen(t *testing.T, s *libvirt.Stream) *console {
	c := &console{Stream: s, t: t, heard: make(chan string, 1024)}
	go func() {
		defer close(c.heard)
		for buf := make([]byte, 64<<10); ; {
			n, err := s.Recv(buf)
			if err != nil || n == 0 {
				return
			}
			c.heard <- string(buf[:n])
		}
	}()
	return c
}

func (c *console) send(text string) {
	c.t.Helper()
	if n, err := c.Send([]byte(text)); err != nil || n != len(text) {
		c.t.Fatalf("typed %d of %d bytes: %v", n, len(text), err)
	}
}

// expect waits for a text and gives all up to it.
func (c *console) expect(want string) string {
	c.t.Helper()
	limit := time.After(patience)
	for {
		if before, after, ok := strings.Cut(c.text, want); ok {
			c.text = after
			return before
		}
		select {
		case more, ok := <-c.heard:
			if !ok {
				c.t.Fatalf("the stream ended, without %q in %q", want, c.text)
			}
			c.text += more
		case <-limit:
			c.t.Fatalf("%q is not printed, but %q", want, c.text[max(0, len(c.text)-500):])
		}
	}
}

func (c *console) ends() {
	c.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case _, ok := <-c.heard:
			if !ok {
				return
			}
		case <-limit:
			c.t.Fatal("the stream does not end")
		}
	}
}
