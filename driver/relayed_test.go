package driver

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc/rpctest"
)

// The tests of this file drive, through this daemon, the host's own libvirtd:
// its test driver's networks, pools, devices and interfaces, and the real
// drivers for secrets and storage, as far as an unprivileged one can.

// newRelayedHost starts both.
func newRelayedHost(t *testing.T) (*testHost, *rpctest.Libvirtd) {
	t.Helper()
	dir, err := os.MkdirTemp("", "relayed") // t.TempDir's names can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	libvirtd := rpctest.StartLibvirtd(t, dir, "secret", "storage")
	h := newTestHostWith(t, relay.Config{Dir: libvirtd.SocketDir(), URI: func(d relay.Driver) string {
		switch d {
		case relay.Secret, relay.Storage:
			return string(d) + ":///session"
		}
		return "test:///default"
	}})
	return h, libvirtd
}

// session runs several commands on one connection, whose objects the test
// driver forgets with it.
func (h *testHost) session(commands ...string) string {
	h.t.Helper()
	cmd := exec.Command("virsh", "-c", "vz+unix:///system?socket="+h.socket)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		h.t.Errorf("virsh: %v", err)
	}
	return string(out)
}

func TestRelayedVirsh(t *testing.T) {
	h, _ := newRelayedHost(t)
	network, err := filepath.Abs("protocol/tee/testdata/network.xml")
	if err != nil {
		t.Fatal(err)
	}
	h.want(h.virsh(true, "net-list", "--all"), "default", "active")
	h.want(h.virsh(true, "net-dumpxml", "default"), "<name>default</name>", "<bridge name='virbr0'")
	h.want(h.session("net-define "+network, "net-start lan", "net-info lan", "net-port-list lan",
		`net-update default add ip-dhcp-host "<host mac='52:54:00:00:00:09' ip='192.168.122.5'/>" --live`, "net-dumpxml default", "net-destroy lan", "net-undefine lan", "net-info lan"),
		"Network lan defined", "Network lan started", "Active:         yes", "<host mac='52:54:00:00:00:09' ip='192.168.122.5'/>", "Network lan has been undefined", "Network not found: no network with matching name 'lan'")
	h.want(h.virsh(true, "nodedev-dumpxml", "scsi_host1"), "<name>scsi_host1</name>")
	h.want(h.virsh(true, "iface-list", "--all"), "eth1", "active")
	h.want(h.virsh(true, "iface-dumpxml", "eth1"), "<interface type='ethernet' name='eth1'>")
	h.want(h.virsh(false, "nwfilter-dumpxml", "x"), "not supported by the connection driver")

	const id = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
	h.virsh(true, "secret-define", h.file("<secret ephemeral='no' private='no'><uuid>"+id+"</uuid><usage type='volume'><volume>/x</volume></usage></secret>"))
	h.virsh(true, "secret-set-value", id, "c2VjcmV0")
	h.want(h.virsh(true, "secret-get-value", id), "c2VjcmV0")
	h.want(h.virsh(true, "secret-list"), id, "volume /x")

	ro := "vz+unix:///system?socket=" + h.socket + "-ro"
	h.want(h.virshOn(ro, true, "-r", "secret-list"), id)
	h.want(h.virshOn(ro, false, "secret-get-value", id), "read only access prevents virSecretGetValue")
	h.want(h.virshOn(ro, false, "net-destroy", "default"), "read only access prevents virNetworkDestroy")
	h.virsh(true, "secret-undefine", id)
	h.want(h.virsh(false, "secret-dumpxml", id), "Secret not found: no secret with matching uuid '"+id+"'")
}

// TestRelayedVolumes sends a volume there and back, plain and with holes.
func TestRelayedVolumes(t *testing.T) {
	h, libvirtd := newRelayedHost(t)
	pool := filepath.Join(libvirtd.Dir, "home/pool")
	h.virsh(true, "pool-define-as", "p", "dir", "--target", pool)
	h.virsh(true, "pool-build", "p")
	h.virsh(true, "pool-start", "p")
	content := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16)
	clear(content[1<<20 : 5<<20]) // becomes a hole
	name := filepath.Join(t.TempDir(), "up")
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := punch(name, 1<<20, 4<<20); err != nil {
		t.Fatal(err)
	}
	for vol, options := range map[string][]string{"plain": nil, "sparse": {"--sparse"}} {
		h.virsh(true, "vol-create-as", "p", vol, "8M", "--allocation", "0")
		h.want(h.virsh(true, "vol-list", "p"), filepath.Join(pool, vol))
		back := filepath.Join(t.TempDir(), "back")
		h.virsh(true, append([]string{"vol-upload", "--pool", "p", vol, name}, options...)...)
		h.virsh(true, append([]string{"vol-download", "--pool", "p", vol, back}, options...)...)
		got, err := os.ReadFile(back)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes came back of %d, or others: %v", vol, len(got), len(content), err)
		}
		for _, file := range []string{filepath.Join(pool, vol), back} {
			if n := allocated(t, file); options != nil && n > 5<<20 {
				t.Errorf("%s takes %d bytes: its hole was filled", file, n)
			}
		}
	}
	h.want(h.virsh(false, "vol-download", "--pool", "p", "nosuch", name+"2"), "failed to get vol 'nosuch'")
	h.want(h.virsh(false, "vol-wipe", "--pool", "p", "plain", "--algorithm", "nosuch"), "Unsupported algorithm")
	h.virsh(true, "vol-delete", "--pool", "p", "plain")
	h.virsh(true, "pool-destroy", "p")
	h.virsh(true, "pool-undefine", "p")
}

func punch(name string, at, size int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const keepSize, punchHole = 1, 2
	return syscall.Fallocate(int(f.Fd()), keepSize|punchHole, at, size)
}

func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(name, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}

// TestRelayedRestart: who listens hears on when libvirtd is killed and
// started again, and who calls meanwhile is told.
func TestRelayedRestart(t *testing.T) {
	h, libvirtd := newRelayedHost(t)
	listener := exec.Command("virsh", "-c", "vz+unix:///system?socket="+h.socket, "secret-event --event lifecycle --loop --timeout 120")
	listener.Env = append(os.Environ(), "LC_ALL=C")
	out := &output{}
	listener.Stdout, listener.Stderr = out, out
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		listener.Process.Kill()
		listener.Wait()
	})
	const id = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
	doc := h.file("<secret ephemeral='no' private='no'><uuid>" + id + "</uuid></secret>")
	// heard defines the secret again and again until the listener tells.
	heard := func(n int) {
		t.Helper()
		for range 100 {
			h.virsh(true, "secret-define", doc)
			h.virsh(true, "secret-undefine", id)
			if len(regexp.MustCompile(`(?m)^event 'lifecycle' for secret `+id).FindAllString(out.String(), -1)) >= n {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatalf("%d events do not come:\n%s", n, out)
	}
	heard(1)
	libvirtd.Stop(syscall.SIGKILL)
	h.want(h.virsh(false, "secret-list"), "the daemon that manages secrets does not answer at libvirt-sock (", "connection refused")
	h.virsh(true, "list", "--all")
	before := strings.Count(out.String(), "event 'lifecycle'")
	libvirtd.Start()
	heard(before + 1)
	libvirtd.Stop(syscall.SIGTERM)
	os.Remove(libvirtd.Socket())
	h.want(h.virsh(true, "secret-list"), "UUID")
	h.want(h.virsh(false, "secret-define", doc), "install the package libvirt-daemon-driver-secret")
	libvirtd.Start()
	before = strings.Count(out.String(), "event 'lifecycle'")
	heard(before + 1)
}

// output collects output that is read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *output) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *output) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// rules is an access driver that forbids one permission.
type rules struct {
	forbidden string
	mu        sync.Mutex
	asked     []string
}

func (r *rules) allowed(_ context.Context, _ identity, o object, permission string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := o.kind + ":" + permission + o.name + o.uuid
	r.asked = append(r.asked, what)
	if what == r.forbidden {
		return errorf(protocol.ErrAccessDenied, "'%s' denied access", what)
	}
	return nil
}

// TestRelayedAccess: the access driver is asked what libvirt's own would be,
// about the kind of object.
func TestRelayedAccess(t *testing.T) {
	h, _ := newRelayedHost(t)
	r := &rules{forbidden: "network:read"}
	h.access.set(r)
	h.virsh(true, "net-list", "--name")
	h.want(h.virsh(false, "net-dumpxml", "default"), "access denied: 'network:read' denied access")
	h.virsh(true, "net-event", "--list")
	h.session("net-update default add ip-dhcp-host \"<host mac='52:54:00:00:00:09' ip='192.0.2.5'/>\" --live")
	h.session("vol-download --pool nosuch v /dev/null", "nodedev-dumpxml computer", "nwfilter-binding-list")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, want := range []string{"connect:search_networks", "network:getattr", "network:write", "network:save",
		"storage_pool:getattr", "node_device:getattr", "node_device:read", "connect:search_nwfilter_bindings"} {
		if !slices.Contains(r.asked, want) {
			t.Errorf("%s was not asked for, only %q", want, r.asked)
		}
	}
}
