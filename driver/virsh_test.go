package driver

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
	"virtvzd/xml"
)

// The tests of this file drive the server with the host's own virsh, of
// whatever version: all that needs no environment to run. The rest is in
// integration/.

// testHost is a driver without a runtime, served on a socket.
type testHost struct {
	t      *testing.T
	drv    *Driver
	socket string
	log    *output
	stop   func() // ends the server before the test does
	relay  relay.Config
	access *switched
}

// switched is an access driver that a test changes while clients, and the
// goroutine that tells events, ask it; nil allows all.
type switched struct {
	mu  sync.Mutex
	now access
}

func (s *switched) set(a access) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = a
}

func (s *switched) allowed(ctx context.Context, who identity, o object, permission string) error {
	s.mu.Lock()
	now := s.now
	s.mu.Unlock()
	if now == nil {
		return nil
	}
	return now.allowed(ctx, who, o, permission)
}

// newTestHost makes one without networks, storage and so on.
func newTestHost(t *testing.T) *testHost {
	t.Helper()
	return newTestHostWith(t, relay.Config{Dir: t.TempDir()})
}

func newTestHostWith(t *testing.T, others relay.Config) *testHost {
	t.Helper()
	if _, err := exec.LookPath("virsh"); err != nil {
		if os.Getenv("VIRTVZD_REQUIRE") != "" {
			t.Fatal("virsh is missing: install libvirt-clients")
		}
		t.Skip("needs virsh (package libvirt-clients)")
	}
	h := &testHost{t: t, log: &output{}, relay: others}
	h.socket = filepath.Join(t.TempDir(), "sock")
	h.open(t.TempDir())
	return h
}

// open starts a driver on a configuration directory, as a daemon does.
func (h *testHost) open(dir string) {
	machine, err := probeHost()
	if err != nil {
		h.t.Fatal(err)
	}
	facts := func() xml.HostFacts {
		f := machine.facts()
		f.Emulator = "/usr/bin/crun"
		f.Templates = func() []string { return []string{"busybox", "debian13"} }
		return f
	}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(h.log, h.t.Output()), nil))
	config := Config{ConfigDir: dir, StateDir: filepath.Join(dir, "run"), AuthUnixRW: "none", AuthUnixRO: "none", Relay: h.relay}
	if h.drv, err = open(config, machine, nil, log, facts); err != nil {
		h.t.Fatal(err)
	}
	h.access = &switched{}
	h.drv.access = h.access
	h.t.Cleanup(func() { h.stop() })
	h.serve()
}

// set changes the driver while nobody is served: what a client's goroutine reads
// without a lock is as it was when a daemon opened the driver.
func (h *testHost) set(change func(*Driver)) {
	h.t.Helper()
	h.stop()
	change(h.drv)
	h.serve()
}

func (h *testHost) serve() {
	server := rpc.NewServer("virtvzd", rpc.Limits{MaxClients: 50, MaxAnonymousClients: 20, MaxClientRequests: 5,
		MinWorkers: 2, MaxWorkers: 5, PrioWorkers: 2, KeepaliveInterval: 5 * time.Second, KeepaliveCount: 5}, EncodeError)
	h.drv.Register(server)
	for path, readOnly := range map[string]bool{h.socket: false, h.socket + "-ro": true} {
		os.Remove(path)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			h.t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // a server that is stopped before it serves closes it later, when the next has the path
		go server.Serve(l, rpc.ListenerOptions{ReadOnly: readOnly})
	}
	h.stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		server.Shutdown(ctx)
	}
}

// virsh runs one command; ok tells whether it must succeed. It gives what
// was printed, with errors.
func (h *testHost) virsh(ok bool, args ...string) string {
	h.t.Helper()
	return h.virshOn("vz+unix:///system?socket="+h.socket, ok, args...)
}

func (h *testHost) virshOn(uri string, ok bool, args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-c", uri}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if (err == nil) != ok {
		h.t.Fatalf("virsh %s: error %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// want checks that an output contains texts.
func (h *testHost) want(out string, texts ...string) {
	h.t.Helper()
	for _, text := range texts {
		if !strings.Contains(out, text) {
			h.t.Errorf("%q is missing in:\n%s", text, out)
		}
	}
}

// file writes a definition and gives its path.
func (h *testHost) file(doc string) string {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "def.xml")
	if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

func domainXML(name, more string) string {
	return `<domain type='vz'><name>` + name + `</name><memory unit='MiB'>64</memory>` + more + `
<os><type>exe</type><init>/sbin/init</init></os><devices>
<filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem></devices></domain>`
}

func TestVirshDefine(t *testing.T) {
	h := newTestHost(t)
	h.want(h.virsh(true, "define", h.file(domainXML("web1", "<title>first</title>"))), "Domain 'web1' defined")
	h.want(h.virsh(true, "list", "--all", "--title"), "web1", "shut off", "first")
	h.want(h.virsh(true, "dominfo", "web1"), "OS Type:        exe", "Max memory:     65536 KiB", "Persistent:     yes", "State:          shut off")
	h.virsh(true, "define", h.file(domainXML("less", "<currentMemory unit='MiB'>32</currentMemory><vcpu current='1'>2</vcpu>")))
	h.want(h.virsh(true, "dominfo", "less"), "Max memory:     65536 KiB", "Used memory:    32768 KiB", "CPU(s):         1")
	h.want(h.virsh(true, "domstats", "less", "--balloon", "--vcpu"), "balloon.current=32768", "balloon.maximum=65536", "vcpu.current=1")
	h.virsh(true, "undefine", "less")
	h.want(h.virsh(true, "domstate", "web1", "--reason"), "shut off (unknown)")
	id := strings.TrimSpace(h.virsh(true, "domuuid", "web1"))
	h.want(h.virsh(true, "domname", id), "web1")

	// The same definition once more is an update, under another UUID a conflict.
	h.virsh(true, "define", h.file(domainXML("web1", "<uuid>"+id+"</uuid>")))
	h.want(h.virsh(false, "define", h.file(domainXML("web1", "<uuid>11111111-2222-4333-8444-555555555555</uuid>"))),
		"domain 'web1' already exists with uuid "+id)
	h.want(h.virsh(false, "define", h.file(domainXML("web2", "<uuid>"+id+"</uuid>"))),
		"domain 'web1' is already defined with uuid "+id)

	// What dumpxml prints can be defined.
	h.virsh(true, "define", h.file(h.virsh(true, "dumpxml", "web1")))
	h.virsh(true, "undefine", "web1")
	h.want(h.virsh(false, "dominfo", "web1"), "failed to get domain 'web1'")
	if left, _ := filepath.Glob(filepath.Join(h.drv.store.configDir, "*.xml")); len(left) > 0 {
		t.Errorf("undefine left %v", left)
	}
}

func TestVirshBadDefinitions(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	before := h.virsh(true, "dumpxml", "web1")
	root := "<filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem>"
	good := domainXML("web1", "")
	for name, c := range map[string]struct{ doc, want string }{
		"no root":          {strings.Replace(good, root, "", 1), "an environment needs a root"},
		"unknown template": {strings.Replace(good, "'busybox'", "'nosuch'", 1), "'nosuch', which does not exist; there are busybox, debian13"},
		"other type":       {strings.Replace(good, "'vz'", "'kvm'", 1), "vz, lxc and openvz are accepted"},
		"hvm":              {strings.Replace(good, ">exe<", ">hvm<", 1), "only 'exe' can be run"},
		"slash in name":    {domainXML("a/b", ""), "contains '/'"},
		"dots":             {domainXML("..", ""), "may not be '..'"},
		"long name":        {domainXML(strings.Repeat("x", 300), ""), "has 300 bytes, the limit is 200"},
		"entities":         {"<!DOCTYPE domain [<!ENTITY a 'b'>]>" + good, "document types and entities are not read"},
		"deep":             {strings.Repeat("<domain>", 200) + strings.Repeat("</domain>", 200), "nested deeper than 64"},
		"not XML":          {"hello", "the document is empty: a <domain> is needed"},
		"truncated":        {good[:len(good)-10], "not well-formed"},
		"network":          {"<network><name>x</name></network>", "root is <network>, it must be <domain>"},
		"bad uuid":         {domainXML("web1", "<uuid>12</uuid>"), "is not a UUID"},
		"no memory":        {strings.Replace(good, "<memory unit='MiB'>64</memory>", "", 1), "<memory> is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.t = t
			h.want(h.virsh(false, "define", h.file(c.doc)), "error: ", c.want)
		})
	}
	if after := h.virsh(true, "dumpxml", "web1"); after != before {
		t.Errorf("a refused definition changed the one in force:\n%s\n%s", before, after)
	}
	h.want(h.virsh(false, "define", "--validate", h.file(domainXML("web3", "<colour>red</colour>"))), "unknown element 'colour' in /domain")
	h.want(h.virsh(true, "list", "--all", "--name"), "web1")
}

func TestVirshMetadata(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	h.virsh(true, "desc", "web1", "--config", "a web server")
	h.virsh(true, "desc", "web1", "--config", "--title", "Web")
	h.want(h.virsh(true, "desc", "web1", "--config"), "a web server")
	h.virsh(true, "metadata", "web1", "http://example.org/app", "--config", "--key", "app", "--set", "<tag name='x'><b/></tag>")
	h.want(h.virsh(true, "metadata", "web1", "http://example.org/app", "--config"), "<tag name='x'><b/></tag>")
	h.want(h.virsh(true, "dumpxml", "web1"), `xmlns:app="http://example.org/app"`, "<app:tag", "<title>Web</title>")
	h.virsh(true, "metadata", "web1", "http://example.org/app", "--config", "--remove")
	// virsh 9.0 makes an error of it, virsh 11.3 prints nothing.
	h.want(h.virsh(true, "metadata", "web1", "http://example.org/other", "--config", "--key", "o", "--set", "<o/>"), "Metadata modified")
	if doc := h.virsh(true, "dumpxml", "web1"); strings.Contains(doc, "example.org/app") || !strings.Contains(doc, "example.org/other") {
		t.Errorf("the element was not removed, or the other not set:\n%s", doc)
	}
	h.want(h.virsh(false, "desc", "web1", "--live", "x"), "domain is not running")
}

// TestVirshMessages shows what a definition asks for in vain.
func TestVirshMessages(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("plain", "")))
	nic := "<devices><interface type='network'><source network='default'/><virtualport type='openvswitch'/></interface>"
	h.virsh(true, "define", h.file(strings.Replace(domainXML("web1", "<seclabel type='none'/>"), "<devices>", nic, 1)))
	h.want(h.virsh(true, "dominfo", "web1"), "<virtualport> is not in force", "<seclabel> is not in force")
	h.virsh(true, "define", h.file(domainXML("web2", "<on_poweroff>destroy</on_poweroff><on_reboot>rename-restart</on_reboot><on_crash>preserve</on_crash>")))
	h.want(h.virsh(true, "dominfo", "web2"), "<on_crash>preserve is not in force: ", "<on_reboot>rename-restart is not in force: it restarts under the name it has")
	if out := h.virsh(true, "dominfo", "plain"); strings.Contains(out, "not in force") {
		t.Errorf("a plain definition is warned about:\n%s", out)
	}
}

func TestVirshRenameAutostart(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	h.virsh(true, "define", h.file(domainXML("web2", "")))
	h.virsh(true, "autostart", "web1")
	h.want(h.virsh(true, "list", "--all", "--autostart", "--name"), "web1")
	h.want(h.virsh(false, "domrename", "web1", "web2"), "domain with name 'web2' already exists")
	h.virsh(true, "domrename", "web1", "www")
	h.want(h.virsh(true, "dominfo", "www"), "Autostart:      enable")
	h.virsh(false, "dominfo", "web1")
	h.virsh(true, "autostart", "--disable", "www")
	h.want(h.virsh(true, "dominfo", "www"), "Autostart:      disable")
}

// TestRenameFails: the name that was to go keeps all it had, whatever was done.
func TestRenameFails(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	h.virsh(true, "autostart", "web1")
	dir := h.drv.store.configDir
	block := filepath.Join(dir, "autostart/web1.xml.once/x") // in the way of a removal
	if err := os.MkdirAll(block, 0o700); err != nil {
		t.Fatal(err)
	}
	h.want(h.virsh(false, "domrename", "web1", "www"), "web1.xml.once: directory not empty")
	h.want(h.virsh(true, "dominfo", "web1"), "Autostart:      enable")
	h.virsh(true, "define", h.file(domainXML("www", ""))) // its name is free
	h.virsh(true, "undefine", "www")
	if got, want := names(t, dir), []string{"autostart", "run", "web1.xml"}; !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
	if got, want := names(t, dir+"/autostart"), []string{"web1.xml", "web1.xml.once"}; !slices.Equal(got, want) {
		t.Errorf("started automatically: %v, want %v", got, want)
	}
	if err := os.RemoveAll(filepath.Dir(block)); err != nil {
		t.Fatal(err)
	}
	h.virsh(true, "domrename", "web1", "www")
	h.want(h.virsh(true, "dominfo", "www"), "Autostart:      enable")
}

// TestRenameCutOff opens a driver on what one left that was killed in a rename.
func TestRenameCutOff(t *testing.T) {
	h := newTestHost(t)
	for _, name := range []string{"early", "late"} {
		h.virsh(true, "define", h.file(domainXML(name, "")))
		h.virsh(true, "autostart", name)
	}
	s := h.drv.store
	doc, err := os.ReadFile(s.definition("late"))
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	for _, err := range []error{
		os.Symlink("early2", s.renameLink("early")), os.Symlink("aaa", s.renameLink("late")),
		s.saveDefinition("aaa", strings.Replace(string(doc), "<name>late<", "<name>aaa<", 1)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.open(s.configDir)
	if out := h.virsh(true, "list", "--all", "--autostart", "--name"); !slices.Equal(strings.Fields(out), []string{"aaa", "early"}) {
		t.Errorf("after the restart there are\n%s", out)
	}
	if got, want := names(t, s.configDir), []string{"aaa.xml", "autostart", "early.xml", "run"}; !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
	if strings.Contains(h.log.String(), "level=ERROR") {
		t.Error("an error was logged")
	}
}

// TestSkippedKept: a file that was skipped keeps its name, and what it has.
func TestSkippedKept(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	foreign := h.drv.store.definition("www")
	if err := os.WriteFile(foreign, []byte("<domain>half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.want(h.virsh(false, "domrename", "web1", "www"), "www.xml is there, and of no domain that is known: take it away")
	h.want(h.virsh(false, "define", h.file(domainXML("www", ""))), "www.xml is there, and of no domain that is known: take it away")
	if text, err := os.ReadFile(foreign); err != nil || string(text) != "<domain>half written" {
		t.Errorf("it is %q now, %v", text, err)
	}
	if got, want := names(t, h.drv.store.configDir), []string{"autostart", "run", "web1.xml", "www.xml"}; !slices.Equal(got, want) {
		t.Errorf("there are %v, want %v", got, want)
	}
}

// TestDashedNames: a name ends no comment in its file, also in one that an earlier
// version wrote.
func TestDashedNames(t *testing.T) {
	h := newTestHost(t)
	for _, name := range []string{"a---b", "x----", "c--d", "old---"} {
		h.virsh(true, "define", h.file(domainXML(name, "")))
	}
	s := h.drv.store
	doc, err := os.ReadFile(s.definition("old---"))
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	if err := os.WriteFile(s.definition("old---"), bytes.Replace(doc, []byte("edit old- - -\n"), []byte("edit old- --\n"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	h.open(s.configDir)
	if out := strings.Fields(h.virsh(true, "list", "--all", "--name")); !slices.Equal(slices.Sorted(slices.Values(out)), []string{"a---b", "c--d", "old---", "x----"}) {
		t.Errorf("after the restart there are %v:\n%s", out, h.log.String())
	}
}

// names are those of a directory's entries.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// TestRestart opens a second driver on what the first one left behind, with
// files that are half written, empty or somebody else's among it.
func TestRestart(t *testing.T) {
	h := newTestHost(t)
	for _, name := range []string{"web1", "web2", "web3"} {
		h.virsh(true, "define", h.file(domainXML(name, "")))
	}
	h.virsh(true, "autostart", "web2")
	dir := h.drv.store.configDir
	doc, err := os.ReadFile(filepath.Join(dir, "web1.xml"))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{
		"half.xml": string(doc[:len(doc)/2]), "empty.xml": "", "foreign.xml": "<network><name>foreign</name></network>",
		"copy.xml": string(doc), "other.xml": strings.Replace(string(doc), "web1", "other", -1),
	}
	for name, text := range bad {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.xml"), 0o700); err != nil {
		t.Fatal(err)
	}
	next := &testHost{t: t, log: &output{}, socket: h.socket + "2"}
	next.open(dir)
	// "other" sorts before "web1" and has its UUID: it is the one that is
	// served, although files are read at the same time.
	out := next.virsh(true, "list", "--all", "--name")
	next.want(out, "other", "web2", "web3")
	if n := len(strings.Fields(out)); n != 3 {
		t.Errorf("%d domains after the restart, want 3:\n%s", n, out)
	}
	next.want(next.virsh(true, "dominfo", "web2"), "Autostart:      enable")
	for name, text := range bad {
		now, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(now) != text {
			t.Errorf("%s was touched: %v", name, err)
		}
	}
	for _, name := range []string{"half.xml", "empty.xml", "foreign.xml", "copy.xml", "dir.xml", "web1.xml"} {
		if !strings.Contains(next.log.String(), name) {
			t.Errorf("%s was skipped without a word", name)
		}
	}
}

func TestVirshReadOnly(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "")))
	ro := "vz+unix:///system?socket=" + h.socket + "-ro"
	h.want(h.virshOn(ro, true, "-r", "dominfo", "web1"), "web1")
	// Without -r the client does not know, and the server itself refuses.
	h.want(h.virshOn(ro, false, "undefine", "web1"), "read only access prevents virDomainUndefine")
	h.want(h.virshOn(ro, false, "define", h.file(domainXML("web2", ""))), "read only access prevents virDomainDefineXML")
	h.want(h.virsh(true, "list", "--all", "--name"), "web1")
}

func TestVirshHost(t *testing.T) {
	h := newTestHost(t)
	h.want(h.virsh(true, "uri"), "vz+unix:///system")
	h.want(h.virsh(true, "version"), "Using API: vz", "Running hypervisor: vz")
	h.want(h.virsh(true, "nodeinfo"), "CPU(s):", "Memory size:")
	h.want(h.virsh(true, "nodecpustats"), "user:", "idle:")
	h.want(h.virsh(true, "nodememstats"), "total  :", "free   :")
	h.want(h.virsh(true, "nodecpumap", "--pretty"), "CPUs present:")
	h.want(h.virsh(true, "freecell", "--all"), "Total")
	h.want(h.virsh(true, "capabilities"), "<os_type>exe</os_type>", `<domain type="vz"`)
	h.want(h.virsh(true, "domcapabilities"), "<domain>vz</domain>", "<os supported=")
	h.want(h.virsh(false, "snapshot-create-as", "web1", "x"), "failed to get domain")
}
