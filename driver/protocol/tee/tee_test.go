package tee

import (
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"virtvzd/driver/rpc/rpctest"
)

var update = flag.Bool("update", false, "record the packets anew")

// Real virsh and virt-admin talk to a real libvirtd through the tee, and every
// packet comes out of the codec as it went in.
func TestRealPeers(t *testing.T) {
	virsh, admin := rpctest.Need(t, "virsh"), rpctest.Need(t, "virt-admin")
	dir, err := os.MkdirTemp("", "tee") // t.TempDir's names can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	daemon := rpctest.StartLibvirtd(t, dir, "secret") // the test driver lacks secrets
	proxy := listen(t, dir, "libvirt-sock")
	adminProxy := listen(t, dir, "libvirt-admin-sock")
	where := "?socket=" + filepath.Join(dir, "libvirt-sock")
	uri := "test+unix:///default" + where

	// Commands come by stdin, one a line: one that this version does not know
	// then costs itself only.
	run := func(session, name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(session, "; ", "\n") + "\n")
		cmd.Dir = "testdata"
		cmd.Env = daemon.Environment()
		out, err := cmd.CombinedOutput()
		if _, exited := err.(*exec.ExitError); err != nil && !exited {
			t.Errorf("%s %q: %v", name, args, err)
		}
		return string(out)
	}
	// These see every event, and keep the test driver's objects alive. They
	// ask for keepalive.
	var listeners []*exec.Cmd
	for _, c := range []string{"event --all", "net-event --event lifecycle", "pool-event --event lifecycle",
		"pool-event --event refresh", "nodedev-event --event lifecycle", "secret-event --event lifecycle", "secret-event --event value-changed"} {
		at := uri
		if strings.HasPrefix(c, "secret") {
			at = "secret+unix:///session" + where
		}
		cmd := exec.Command(virsh, "-k", "1", "-c", at, c+" --loop --timeout 600")
		cmd.Env = daemon.Environment()
		cmd.Stdout, cmd.Stderr = new(strings.Builder), new(strings.Builder)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, cmd)
	}

	for _, kind := range []string{"CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY reply", "CONNECT_NETWORK_EVENT_REGISTER_ANY reply", "CONNECT_STORAGE_POOL_EVENT_REGISTER_ANY reply"} {
		await(t, proxy, kind)
	}

	commands := 0
	for _, session := range sessions(t, filepath.Join(dir, "home/save")) {
		commands += strings.Count(session, ";") + 1
		at := uri
		if strings.HasPrefix(session, "secret-") {
			at = "secret+unix:///session" + where
		}
		out := run(session, virsh, "-c", at)
		t.Logf("%s\n%s", session, out)
	}
	run("list --all; destroy test; dumpxml --security-info test", virsh, "-r", "-c", uri)
	const admins = "server-list; server-threadpool-info libvirtd; server-threadpool-set libvirtd --max-workers 21; " +
		"client-list libvirtd; client-info libvirtd 1; server-clients-info libvirtd; server-clients-set libvirtd --max-clients 300; " +
		"daemon-log-filters; daemon-log-filters 4:rpc; daemon-log-outputs; daemon-log-outputs 3:stderr; server-update-tls libvirtd; client-disconnect libvirtd 99; " +
		"daemon-timeout 0; server-threadpool-info nosuch"
	t.Log(run(admins, admin, "-c", "libvirtd+unix:///session?socket="+filepath.Join(dir, "libvirt-admin-sock")))
	for _, l := range listeners {
		l.Process.Signal(os.Interrupt)
		l.Wait()
		t.Logf("%q\n%s%s", l.Args, l.Stdout, l.Stderr)
	}

	seen := map[string]Packet{}
	total := 0
	for _, p := range []*Proxy{proxy, adminProxy} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		packets, kinds, problems := p.Result()
		total += packets
		maps.Copy(seen, kinds)
		for _, problem := range problems {
			t.Error(problem)
		}
	}
	t.Logf("%d virsh commands, %d packets of %d kinds", commands, total, len(seen))
	if commands < 200 || total < 1000 || len(seen) < 300 {
		t.Errorf("only %d virsh commands, %d packets of %d kinds went through", commands, total, len(seen))
	}
	for _, kind := range []string{"DOMAIN_EVENT_CALLBACK_LIFECYCLE event", "DOMAIN_SCREENSHOT stream data", "keepalive 1", "keepalive 2",
		"DOMAIN_LOOKUP_BY_NAME error", "admin SERVER_GET_THREADPOOL_PARAMETERS reply", "CONNECT_GET_ALL_DOMAIN_STATS reply",
		"DOMAIN_LIST_ALL_SNAPSHOTS reply", "STORAGE_VOL_GET_INFO reply", "NETWORK_EVENT_LIFECYCLE event"} {
		if _, ok := seen[kind]; !ok {
			t.Errorf("no packet of kind %q went through", kind)
		}
	}
	if *update {
		record(t, seen)
	}
}

// await waits until a packet of the given kind has gone through.
func await(t *testing.T, p *Proxy, kind string) {
	t.Helper()
	for range 1200 {
		if _, kinds, _ := p.Result(); kinds[kind].Frame != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("no %s in a minute", kind)
}

func listen(t *testing.T, dir, name string) *Proxy {
	t.Helper()
	p, err := Listen(filepath.Join(dir, name), dialer(filepath.Join(dir, "run/libvirt", name)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// sessions returns testdata/sessions.txt, a session an element.
func sessions(t *testing.T, save string) []string {
	text, err := os.ReadFile("testdata/sessions.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for block := range strings.SplitSeq(strings.ReplaceAll(string(text), "SAVEFILE", save), "\n\n") {
		if !strings.HasPrefix(block, "#") {
			all = append(all, strings.ReplaceAll(strings.TrimSpace(block), "\n", "; "))
		}
	}
	return all
}

// recorded holds one packet of each kind. It makes the comparison possible
// without libvirt, and gives the fuzz targets real packets to start from. Kinds
// that this machine's version of libvirt does not send stay as they are.
const recorded = "../testdata/packets.txt"

func record(t *testing.T, seen map[string]Packet) {
	old, err := os.ReadFile(recorded)
	if err != nil {
		t.Fatal(err)
	}
	byKind := map[string]string{}
	for line := range strings.Lines(string(old)) {
		byKind[strings.SplitN(strings.TrimSpace(line), " ", 3)[2]] = line
	}
	for kind, p := range seen {
		if len(p.Frame) <= 2048 {
			byKind[kind] = fmt.Sprintf("%x %s %s\n", p.Frame, map[bool]string{true: "server", false: "client"}[p.FromServer], kind)
		}
	}
	var b strings.Builder
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		b.WriteString(byKind[kind])
	}
	write(t, recorded, b.String())
}

func TestRecordedPackets(t *testing.T) {
	text, err := os.ReadFile(recorded)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		from, want, _ := strings.Cut(rest, " ")
		frame, err := hex.DecodeString(word)
		if err != nil {
			t.Fatal(err)
		}
		kind, err := Packet{FromServer: from == "server", Frame: frame}.Check()
		if err != nil || kind != want {
			t.Errorf("%s is taken as %s: %v", want, kind, err)
		}
		n++
	}
	if n < 250 {
		t.Errorf("only %d packets are recorded", n)
	}
}

// The tee must notice: a wrong byte anywhere, and packets nobody may send.
func TestCheckNotices(t *testing.T) {
	good := "\x00\x00\x00\x20" + "\x20\x00\x80\x86" + "\x00\x00\x00\x01" + "\x00\x00\x00\x01" + "\x00\x00\x00\x00" + "\x00\x00\x00\x05" + "\x00\x00\x00\x00"
	const noName, readOnly = "\x00\x00\x00\x00", "\x00\x00\x00\x01"
	if kind, err := (Packet{Frame: []byte("\x00\x00\x00\x24" + good[4:] + noName + readOnly)}).Check(); kind != "CONNECT_OPEN call" || err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	for name, p := range map[string]Packet{
		"wrong length":      {Frame: []byte(good + noName + readOnly)},
		"too short":         {Frame: []byte(good + noName)},
		"bytes left over":   {Frame: []byte("\x00\x00\x00\x28" + good[4:] + noName + readOnly + noName)},
		"odd flag":          {Frame: []byte("\x00\x00\x00\x2c" + good[4:] + "\x01\x00\x00\x00" + "\x00\x00\x00\x01x\x00\x00\x00" + readOnly)},
		"server calls":      {FromServer: true, Frame: []byte("\x00\x00\x00\x24" + good[4:] + noName + readOnly)},
		"unknown program":   {Frame: []byte("\x00\x00\x00\x1c\x20\x00\x80\x99" + good[8:28])},
		"unknown procedure": {Frame: []byte("\x00\x00\x00\x1c" + good[4:12] + "\x00\x00\x0f\xff" + good[16:28])},
	} {
		if kind, err := p.Check(); err == nil {
			t.Errorf("%s passes as %s", name, kind)
		}
	}
}
