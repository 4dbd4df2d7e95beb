//go:build vm

package runtime

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"virtvzd/xml"
)

// vmNetworks is a network daemon whose ports are files, so that they outlive a
// manager that is killed. It has one network, on vmBridge.
type vmNetworks struct{ dir string }

const (
	vmBridge   = "br-vztest"
	vmUplink   = "up-vztest"
	vmPorts    = "/run/virtvzd-test-ports"
	vmBindings = "/run/virtvzd-test-bindings"
)

// vmFilters is a filter daemon whose bindings are files, too.
type vmFilters struct{ dir string }

func (f vmFilters) Bind(_ context.Context, b Binding) error {
	return os.WriteFile(filepath.Join(f.dir, b.Device), []byte(b.Filter.Name), 0o600)
}

func (f vmFilters) Unbind(_ context.Context, device string) error {
	if err := os.Remove(filepath.Join(f.dir, device)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (vmFilters) Keep(context.Context) {}

func (n vmNetworks) Plug(_ context.Context, p Port) (Plug, error) {
	if p.Network != "lan" {
		return Plug{}, errors.New("there is no such network")
	}
	return Plug{Bridge: vmBridge}, os.WriteFile(filepath.Join(n.dir, p.UUID), []byte(p.MAC), 0o600)
}

func (n vmNetworks) Find(_ context.Context, network string) (string, error) {
	if network != "lan" {
		return "", errors.New("there is no such network")
	}
	return vmBridge, nil
}

func (n vmNetworks) Unplug(_ context.Context, _, uuid string) error {
	err := os.Remove(filepath.Join(n.dir, uuid))
	if _, away := os.Stat(n.dir); away != nil {
		return away
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (n vmNetworks) Release(context.Context, string, string) error { return nil }

func (n vmNetworks) Limit(context.Context, string, string, xml.Rate, xml.Rate) error { return nil }

// vmLinks makes the host's links that the tests' interfaces need.
func vmLinks() {
	os.MkdirAll(vmPorts, 0o700)
	os.MkdirAll(vmBindings, 0o700)
	exec.Command("sh", "-c", "ip link add "+vmBridge+" type bridge; ip link set "+vmBridge+" up; "+
		"ip link add "+vmUplink+" type veth peer name far-vztest; ip addr add 198.51.100.1/24 dev "+vmUplink+"; ip link set "+vmUplink+" up").Run()
}

// vmInterfaces is one of each kind.
func vmInterfaces() []xml.Interface {
	return []xml.Interface{
		{Type: "network", Source: "lan", MAC: "52:54:00:00:7e:01", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}, Filter: xml.Filter{Name: "clean-traffic"}},
		{Type: "ethernet", MAC: "52:54:00:00:7e:02", Target: "vztest-venet", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.20/32")}},
		{Type: "direct", Source: vmUplink, MAC: "52:54:00:00:7e:03"},
		{Type: "hostdev", Source: "far-vztest"},
	}
}

// networkLeftovers are what the tests' environments have left of links.
func networkLeftovers() (left []string) {
	for dir, what := range map[string]string{vmPorts: "port", vmBindings: "filter"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			left = append(left, what+" "+e.Name())
		}
	}
	links, _ := exec.Command("ip", "-o", "link").Output()
	lent := false
	for line := range strings.Lines(string(links)) {
		if strings.Contains(line, "52:54:00:00:7e:") || strings.Contains(line, "fe:54:00:00:7e:") {
			left = append(left, "link "+strings.TrimSpace(line))
		}
		lent = lent || strings.Contains(line, " far-vztest")
	}
	if !lent {
		left = append(left, "far-vztest is not back")
	}
	proxies, _ := exec.Command("ip", "neigh", "show", "proxy").Output()
	if text := strings.TrimSpace(string(proxies)); text != "" {
		left = append(left, "proxy "+text)
	}
	return left
}

// A manager that is killed while it attaches or detaches leaves a running
// environment: it gets, or loses, what its saved definition says.
func TestKilledWhileAttaching(t *testing.T) {
	list := vmInterfaces()
	for _, c := range []struct {
		step      string
		has, then []xml.Interface // what is said of it when the manager is killed and after
	}{
		{"attach link_bridge", nil, nil}, {"attach linked_bridge", nil, nil},
		{"attach linked_ethernet", nil, list}, {"attach link_direct", nil, list[:2]}, {"attach linked_direct", nil, nil},
		{"attach link_hostdev", nil, nil}, {"attach linked_hostdev", nil, nil},
		{"attach filter", nil, list}, {"detach undo link", list, list}, {"detach undo filter", list, nil}, {"detach undo port", list, nil},
	} {
		t.Run(c.step, func(t *testing.T) {
			runChild(t, c.step)
			r := vmRuntime(t)
			adopted, ended, err := r.Recover(context.Background(), vmStore.take())
			if err != nil || len(adopted) != 1 || len(ended) != 0 {
				t.Fatalf("adopted %d, ended %+v, %v", len(adopted), ended, err)
			}
			i := adopted[0]
			env := vmEnvironment(t, "busybox")
			env.Consoles = []xml.Console{{ID: "lxc 0"}, {ID: "lxc 1"}}
			env.Interfaces = c.then
			if err := i.Enforce(context.Background(), env); err != nil {
				t.Error(err)
			}
			if len(i.Links()) != len(c.then) {
				t.Errorf("it has %+v", i.Links())
			}
			inside, err := i.InsideLinks()
			if err != nil || len(inside) != 1+len(c.then) {
				t.Errorf("inside %+v, %v", inside, err)
			}
			if c.then == nil {
				if left := networkLeftovers(); len(left) > 0 {
					t.Errorf("left: %s", strings.Join(left, "\n"))
				}
			}
			vmEnd(t, r, i)
		})
	}
}

// Without libvirt's daemon a port cannot be removed; that neither keeps the
// environment from ending nor is it forgotten.
func TestPortLater(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	env.Interfaces = vmInterfaces()[:1]
	i, err := r.Start(context.Background(), env, StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(vmPorts, vmPorts+".away"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(i.Kill(ctx), i.Release(ctx)); err != nil {
		t.Error(err)
	}
	if err := os.Rename(vmPorts+".away", vmPorts); err != nil {
		t.Fatal(err)
	}
	if ports, _ := os.ReadDir(vmPorts); len(ports) != 1 {
		t.Fatalf("ports: %v", ports)
	}
	r.retryDebts(ctx) // as is done from time to time
	if ports, _ := os.ReadDir(vmPorts); len(ports) != 0 {
		t.Errorf("ports: %v", ports)
	}
	if i, err = r.Start(ctx, env, StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if ports, _ := os.ReadDir(vmPorts); len(ports) != 1 {
		t.Errorf("ports: %v", ports)
	}
	vmEnd(t, r, i)
}

// A start that fails after its first interfaces were made leaves none.
func TestStartWithBadInterface(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	env.Interfaces = append(vmInterfaces(), xml.Interface{Type: "bridge", Source: "br-none", MAC: "52:54:00:00:7e:09"})
	_, err := r.Start(context.Background(), env, StartOptions{})
	if err == nil || !strings.Contains(err.Error(), "there is no bridge br-none on this host") {
		t.Errorf("start: %v", err)
	}
	r.RemovePrivate(testUUID)
	nothingLeft(t)
}

// Fifty interfaces are made, told apart and removed.
func TestFiftyInterfaces(t *testing.T) {
	r := vmRuntime(t)
	env := vmEnvironment(t, "busybox")
	for n := range 50 {
		mac := "52:54:00:00:7e:" + string("0123456789abcdef"[n/16]) + string("0123456789abcdef"[n%16])
		env.Interfaces = append(env.Interfaces, xml.Interface{Type: "bridge", Source: vmBridge, MAC: mac})
	}
	i := vmStart(t, r, env, StartOptions{})
	inside, err := i.InsideLinks()
	if err != nil || len(inside) != 51 || inside[50].Name != "eth49" || inside[50].ID != env.Interfaces[49].MAC {
		t.Errorf("inside %d, %v", len(inside), err)
	}
}

// What an environment sent is counted though it ended by itself, and while no
// manager looked; the next run adds to it.
func TestTrafficOfRuns(t *testing.T) {
	runChild(t, "running")
	rec, err := loadRecord(filepath.Join(vmState, formatUUID(testUUID)))
	if err != nil || rec == nil {
		t.Fatal(rec, err)
	}
	sent := sentInside(t, rec.Init)
	if err := killCgroup(rec.Cgroup); err != nil {
		t.Fatal(err)
	}
	for processState(rec.Init) != 0 && processState(rec.Init) != 'Z' {
		time.Sleep(10 * time.Millisecond)
	}
	r := vmRuntime(t)
	if _, ended, err := r.Recover(context.Background(), vmStore.take()); err != nil || len(ended) != 1 {
		t.Fatal(ended, err)
	}
	first, err := r.Traffic(testUUID, nil)
	if err != nil || first.Sent.Packets < sent {
		t.Errorf("counted %+v of at least %d packets, %v", first, sent, err)
	}
	env := vmEnvironment(t, "busybox")
	env.Interfaces = vmInterfaces()[:1]
	i, err := r.Start(context.Background(), env, StartOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sent = sentInside(t, i.rec.Init)
	vmEnd(t, r, i)
	both, err := r.Traffic(testUUID, nil)
	if err != nil || both.Sent.Packets < first.Sent.Packets+sent {
		t.Errorf("after two runs %+v, of them the first %+v, %v", both, first, err)
	}
	if err := r.ForgetTraffic(testUUID); err != nil {
		t.Error(err)
	}
}

// sentInside waits until something was sent.
func sentInside(t *testing.T, init int) Number {
	t.Helper()
	for range 300 {
		list, err := readInterfaces("/proc/" + strconv.Itoa(init) + "/net/dev")
		if err != nil {
			t.Fatal(err)
		}
		if n := list["eth0"].Sent.Packets; n > 0 {
			return n
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("nothing was sent")
	return 0
}
