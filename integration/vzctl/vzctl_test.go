package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"virtvzd/xml"
)

var update = flag.Bool("update", false, "write golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test -update writes it anew. Got:\n%s", path, got)
	}
}

var random = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|52:54:00(:[0-9a-f]{2}){3}`)

// TestCreate: the CTID.conf of a command line, and the definition the daemon
// makes of it.
func TestCreate(t *testing.T) {
	for name, c := range map[string]struct {
		args   string
		sample string
	}{
		"create":        {"--ostemplate debian13 --hostname=shop.example.org --ipadd 192.0.2.7 --ipadd 2001:db8::7 --nameserver 192.0.2.53 --ram 512M --swap 1G --cpus 2 --cpuunits 2000 --cpulimit 50 --diskspace 2G:3G --numproc 200:200 --name shop", ""},
		"create-sample": {"--ostemplate debian13 --config basic --ram 64M", "VE_ROOT=\"/vz/root/$VEID\"\nVE_PRIVATE=\"/vz/private/$VEID\"\nPHYSPAGES=\"0:1G\"\nNUMPTY=\"8\""},
		"create-dir":    {"--private /srv/101", ""},
	} {
		o, err := parseOptions(strings.Fields(c.args), append(parameterNames(), "config", "name"), nil)
		if err != nil {
			t.Fatal(err)
		}
		config, err := configuration("101", o, c.sample)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := xml.FromNative(xml.NativeOpenVZ, config, xml.HostFacts{Arch: "x86_64"})
		if err != nil {
			t.Fatalf("%v\n%s", err, config)
		}
		notes, doc := splitNotes(doc)
		doc, err = renamed(doc, "101", o.last("name"))
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".golden", config+"----\n"+notes+"----\n"+random.ReplaceAllString(doc, "…")+"\n")
	}
}

// TestRefusedOptions: each with OpenVZ's code.
func TestRefusedOptions(t *testing.T) {
	for args, want := range map[string]int{
		"--nonsense 1": exitParameter, "stray": exitParameter, "--ram": exitValue, "--ram lots": exitValue,
		"--hostname a\"b": exitValue, "--swap -1": exitValue, "--ram 99999999999999999999": exitValue,
	} {
		o, err := parseOptions(strings.SplitN(args, " ", 2), parameterNames(), nil)
		if err == nil {
			_, err = configuration("101", o, "")
		}
		var f *failure
		if !errors.As(err, &f) || f.code != want {
			t.Errorf("%s: %v, want the code %d", args, err, want)
		}
	}
	if _, err := sampleFile("../../etc/shadow"); err == nil {
		t.Error("a path is the name of a sample")
	}
	for text, want := range map[string]uint64{"512M": 512 << 10, "1g": 1 << 20, "4096": 4, "1": 1, "64K": 64, "64KB": 64, "2T": 2 << 30} {
		if got, err := kibibytes(text); err != nil || got != want {
			t.Errorf("%s is %d KiB (%v), want %d", text, got, err, want)
		}
	}
}

func TestStatusLine(t *testing.T) {
	for state, want := range map[libvirt.DomainState]string{
		libvirt.DOMAIN_RUNNING: "CTID 101 exist mounted running",
		libvirt.DOMAIN_SHUTOFF: "CTID 101 exist unmounted down",
		libvirt.DOMAIN_CRASHED: "CTID 101 exist unmounted down",
		libvirt.DOMAIN_PAUSED:  "CTID 101 exist mounted paused",
	} {
		if got := statusLine("101", state); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestCodes(t *testing.T) {
	for err, want := range map[error]int{
		libvirt.Error{Code: libvirt.ERR_NO_DOMAIN}:     exitNoConfig,
		libvirt.Error{Code: libvirt.ERR_ACCESS_DENIED}: exitDenied,
		libvirt.Error{Code: libvirt.ERR_XML_ERROR}:     exitValue,
		errors.New("other"):                            exitSystem,
	} {
		if got := codeOf(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// TestEdit: what is set takes the place of what was, and the rest is kept.
func TestEdit(t *testing.T) {
	o := options{"hostname": {"new"}, "nameserver": {"192.0.2.1", "192.0.2.2"}, "numpty": {"16:32"}, "numfile": {"unlimited"}}
	got, changed, err := o.edit(`<ve><hostname>old</hostname><other a="b">kept</other><ubc name="numpty" limit="8"/><ubc name="numproc" limit="9"/></ve>`)
	if err != nil || !changed {
		t.Fatal(err, changed)
	}
	want := `<ve><other a="b">kept</other><ubc name="numproc" limit="9"></ubc><hostname>new</hostname><nameserver>192.0.2.1</nameserver>` +
		`<nameserver>192.0.2.2</nameserver><ubc name="numpty" limit="32"></ubc><ubc name="numfile" limit="9223372036854775807"></ubc></ve>`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if _, changed, _ := (options{"ram": {"1G"}}).edit(""); changed {
		t.Error("nothing of it was asked for")
	}
}

// TestRouted: the interface that venet is here.
func TestRouted(t *testing.T) {
	def := &libvirtxml.Domain{}
	old, next, err := options{"ipadd": {"192.0.2.7"}}.routed(def)
	if err != nil || old != "" || !strings.Contains(next, `address="192.0.2.7" family="ipv4" prefix="32"`) {
		t.Errorf("%q %q %v", old, next, err)
	}
	if err := def.Unmarshal(`<domain><devices><interface type='bridge'><source bridge='b'/></interface>
<interface type='ethernet'><mac address='52:54:00:00:00:01'/><ip address='192.0.2.7' family='ipv4' prefix='32'/></interface></devices></domain>`); err != nil {
		t.Fatal(err)
	}
	old, next, err = options{"ipadd": {"2001:db8::7"}, "ipdel": {"192.0.2.7"}}.routed(def)
	if err != nil || !strings.Contains(old, "192.0.2.7") || strings.Contains(next, "192.0.2.7") || !strings.Contains(next, "2001:db8::7") || !strings.Contains(next, "52:54:00:00:00:01") {
		t.Errorf("%q %q %v", old, next, err)
	}
	if _, next, _ = (options{"ipdel": {"all"}}).routed(def); next != "" {
		t.Errorf("%q is left", next)
	}
	if _, _, err = (options{"ipadd": {"nonsense"}}).routed(def); err == nil {
		t.Error("nonsense is an address")
	}
}

// TestList: columns, order and filters of vzlist.
func TestList(t *testing.T) {
	three := uint64(3)
	def := &libvirtxml.Domain{}
	if err := def.Unmarshal(`<domain><name>9</name><title>shop</title><uuid>u</uuid><currentMemory>65536</currentMemory><vcpu current='1'>2</vcpu>
<metadata><ve:ve xmlns:ve='http://virtvzd.org/ve/1.0'><ve:hostname>www</ve:hostname></ve:ve></metadata>
<devices><filesystem type='template'><source name='debian13'/><target dir='/'/></filesystem>
<interface type='ethernet'><ip address='192.0.2.7'/></interface></devices></domain>`); err != nil {
		t.Fatal(err)
	}
	nine := rowOf(def)
	nine.Status, nine.NProc = "running", &three
	var b bytes.Buffer
	for _, args := range []string{
		"", "-a", "-aH", "-S", "-a -1", "-n", "-a -o ctid,ostemplate,cpus,physpages -s -ctid", "-a -N sh*", "-h no", "101", "-j",
		"-Hoveid", "-octid,status", "-aHs-ctid --output=ctid", "--sort=-ctid --all -t -o ctid", "-j -o status,veid 101", "-d a* 9", "-- 20",
		"999", "999 9", "-j 999", "-S 9", "-h www -a",
	} {
		l, err := parseListing(strings.Fields(args))
		if err != nil {
			t.Errorf("vzlist %s: %v", args, err)
			continue
		}
		rows := []*row{{CTID: "101", Status: "stopped", IP: []string{}}, nine, {CTID: "20", Status: "suspended", IP: []string{}}, {CTID: "30", Status: "paused", IP: []string{}}}
		b.WriteString("$ vzlist " + args + "\n")
		if err := l.show(&b, &b, rows); err != nil {
			fmt.Fprintf(&b, "ends with %d\n", err)
		}
	}
	var none bytes.Buffer // is no failure
	if err := (&listing{}).show(&b, &none, []*row{{Status: "stopped"}}); err != nil || none.String() != "Container(s) not found\n" {
		t.Errorf("of none: %v, %q", err, none.String())
	}
	golden(t, "list.golden", b.String())
	for _, args := range []string{"-x", "-o nonsense", "-s nonsense", "-o", "-ax", "--all=1", "--output", "--nonsense=1"} {
		if _, err := parseListing(strings.Fields(args)); err == nil {
			t.Errorf("vzlist %s is accepted", args)
		}
	}
}
