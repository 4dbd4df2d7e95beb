package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"reflect"
	goruntime "runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
	"virtvzd/xml"
)

// refused is an error with that code and these words.
func refused(t *testing.T, name string, err error, code int32, words string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: got %v, want %d: %s", name, err, code, words)
	}
}

// TestMigrationFlags: each of libvirt's flags is honoured or refused with a
// reason, and so are those that contradict each other.
func TestMigrationFlags(t *testing.T) {
	const p2p, offline, tunnel = protocol.MigratePeer2peer, protocol.MigrateOffline, protocol.MigrateTunnelled
	reasons := map[uint64]string{
		protocol.MigrateAutoConverge:               "--auto-converge has no meaning",
		protocol.MigrateRdmaPinAll:                 "--rdma-pin-all has no meaning",
		protocol.MigrateParallel:                   "--parallel cannot be used",
		protocol.MigrateNonSharedSynchronousWrites: "--copy-storage-synchronous-writes has no meaning",
		protocol.MigratePostcopyResume:             "--postcopy-resume cannot be used",
		protocol.MigrateZerocopy:                   "--zerocopy cannot be used",
	}
	contradictions := map[uint64]string{
		tunnel:                             "cannot perform tunnelled migration without using peer2peer flag",
		tunnel | p2p | protocol.MigrateTls: "--tls has no meaning for it",
		offline:                            "offline migration must be specified with the persistent flag set",
		offline | tunnel | p2p | protocol.MigratePersistDest: "tunnelled offline migration does not make sense",
	}
	for bit := range 64 {
		flag := uint64(1) << bit
		_, err := plainMigration(flag, nil, nil, nil, 0)
		switch name := fmt.Sprintf("1<<%d", bit); {
		case reasons[flag] != "":
			refused(t, name, err, protocol.ErrArgumentUnsupported, reasons[flag])
			_, err = readMigration(nil, uint32(flag|protocol.MigrateLive))
			refused(t, name, err, protocol.ErrArgumentUnsupported, reasons[flag])
		case contradictions[flag] != "":
		case flag > protocol.MigrateZerocopy:
			refused(t, name, err, protocol.ErrInvalidArg, fmt.Sprintf("unsupported flags (0x%x)", flag))
		case err != nil:
			t.Errorf("%s: %v", name, err)
		}
	}
	for flags, words := range contradictions {
		if _, err := readMigration(nil, uint32(flags)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("0x%x: got %v, want %s", flags, err, words)
		}
	}
	if m, err := readMigration(nil, migrateFlags&^(offline|tunnel)); err != nil || m.forDestination(false)&protocol.MigrateChangeProtection != 0 || m.forDestination(true)&protocol.MigratePaused == 0 {
		t.Errorf("all that can be honoured: %+v, %v", m, err)
	}
}

// TestMigrationParams reads what says how to migrate, and passes on what is for
// the destination.
func TestMigrationParams(t *testing.T) {
	type param = protocol.TypedParam
	for name, c := range map[string]struct {
		param protocol.TypedParam
		code  int32
		want  string
	}{
		"unknown":     {param{Field: "speed", Value: protocol.UllongValue(1)}, protocol.ErrInvalidArg, "parameter 'speed' is not supported"},
		"other's":     {param{Field: protocol.MigrateParamMigrateDisks, Value: protocol.StringValue("vda")}, protocol.ErrInvalidArg, "parameter 'migrate_disks' is not supported"},
		"parallel":    {param{Field: protocol.MigrateParamParallelConnections, Value: protocol.IntValue(2)}, protocol.ErrInvalidArg, "parameter 'parallel.connections' is not supported"},
		"type":        {param{Field: protocol.MigrateParamBandwidth, Value: protocol.UintValue(1)}, protocol.ErrInvalidArg, "parameter 'bandwidth' must be of type ullong"},
		"no text":     {param{Field: protocol.MigrateParamUri, Value: protocol.UllongValue(1)}, protocol.ErrInvalidArg, "parameter 'migrate_uri' must be of type string"},
		"compression": {param{Field: protocol.MigrateParamCompression, Value: protocol.StringValue("xbzrle")}, protocol.ErrArgumentUnsupported, "compressed with zstd, not with 'xbzrle'"},
		"fast":        {param{Field: protocol.MigrateParamBandwidth, Value: protocol.UllongValue(math.MaxUint64)}, protocol.ErrOverflow, "bandwidth must be less than 8796093022208"},
		"no limit":    {param{Field: protocol.MigrateParamBandwidth, Value: protocol.UllongValue(1 << 44)}, protocol.ErrOverflow, "bandwidth must be less than 8796093022208"},
	} {
		_, err := readMigration([]protocol.TypedParam{c.param}, 0)
		refused(t, name, err, c.code, c.want)
	}
	twice := param{Field: protocol.MigrateParamUri, Value: protocol.StringValue("tcp://a")}
	_, err := readMigration([]protocol.TypedParam{twice, twice}, 0)
	refused(t, "twice", err, protocol.ErrInvalidArg, "parameter 'migrate_uri' occurs multiple times")
	_, err = plainMigration(0, nil, nil, nil, unlimitedSpeed+1)
	refused(t, "plain", err, protocol.ErrOverflow, "bandwidth must be less than 8796093022208")

	m := migration{flags: protocol.MigrateLive, uri: "tcp://there", name: "web2", xml: "<domain/>", listen: "::", method: "zstd"}
	if got, err := readMigration(m.params(), m.flags); err != nil || got != m {
		t.Errorf("the destination reads %+v, %v", got, err)
	}
	if none := (migration{persistent: "here", tlsHost: "here", bandwidth: 7}).params(); len(none) != 0 {
		t.Errorf("the destination is told %v", none)
	}
}

// TestCookie: what one side tells the other is understood, and what anybody else
// may send is not.
func TestCookie(t *testing.T) {
	s := runtime.NewSession()
	c := cookie{Session: s, Offer: &runtime.MigrationOffer{Version: 1, Name: "wéb", CPU: []byte{0, 0xff}}, Persistent: "<domain/>", Pull: "a:1"}
	body, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeCookie(body); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("got %+v, %v", got, err)
	}
	c.Persistent = strings.Repeat("x", maxCookie)
	if _, err := c.encode(); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long cookie: %v", err)
	}
	session := func(id, secret string) string { return `{"Session":{"ID":"` + id + `","Secret":"` + secret + `"}}` }
	for text, want := range map[string]string{
		"":                                "the migration cookie is missing: both hosts must run virtvzd",
		"<qemu-migration/>":               "the migration cookie is not understood",
		"{":                               "not understood",
		"[]":                              "not understood",
		`{"Offer":{"Version":"1"}}`:       "not understood",
		`{"Offer":{"CPU":"?"}}`:           "not understood",
		string(body) + "{}":               "not understood",
		"null":                            "the migration cookie names no migration",
		"{}":                              "names no migration",
		session("", ""):                   "names no migration",
		session(s.ID, ""):                 "names no migration",
		session(s.ID+"0", s.Secret):       "names no migration",
		session("../"+s.ID[3:], s.Secret): "names no migration",
		session(strings.Repeat("a", maxCookie), s.Secret): "names no migration",
	} {
		_, err := decodeCookie([]byte(text))
		refused(t, text[:min(len(text), 80)], err, protocol.ErrInvalidArg, want)
	}

	r := &request{ctx: t.Context(), drv: statsDriver(t, "web"), info: protocol.DomainMigratePerform3Params.Info}
	told, _ := cookie{Session: s}.encode()
	_, _, err = r.prepareMigration(migration{xml: "<domain/>"}, told, false)
	refused(t, "no offer", err, protocol.ErrInvalidArg, "the source has not said what is to come")
	_, _, err = r.prepareMigration(migration{}, body, false)
	refused(t, "no definition", err, protocol.ErrInvalidArg, "the source has not said what is to come")
	_, err = r.performMigration(r.drv.domains.lookupName("web"), migration{}, "", told)
	refused(t, "no URI", err, protocol.ErrInvalidArg, "the URI to which the domain is to be sent is missing")
	_, err = r.performMigration(r.drv.domains.lookupName("web"), migration{uri: "tcp://a:1"}, "", told)
	refused(t, "shut off", err, protocol.ErrOperationInvalid, "domain is not running")
	_, err = r.performMigration(r.drv.domains.lookupName("web"), migration{flags: protocol.MigratePeer2peer}, "", nil)
	refused(t, "no destination", err, protocol.ErrInvalidArg, "the URI of the destination's daemon is missing")
	_, err = r.finishMigration("none", told, false)
	refused(t, "not on its way", err, protocol.ErrNoDomain, "'none' is on its way here: the migration was given up")
}

// FuzzCookie reads what clients may send.
func FuzzCookie(f *testing.F) {
	body, _ := cookie{Session: runtime.NewSession(), Offer: &runtime.MigrationOffer{CPU: []byte("x")}}.encode()
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := decodeCookie(body)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Skip() // escaped it may be longer
		}
		if d, err := decodeCookie(again); err != nil || !c.Session.Valid() || !reflect.DeepEqual(c, d) {
			t.Errorf("%s is %+v, and then %+v, %v", body, c, d, err)
		}
	})
}

// TestMigrationURIs: where a destination waits, and what the source makes of it.
func TestMigrationURIs(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first := free.Addr().(*net.TCPAddr).Port // is taken: the next free one is chosen
	defer free.Close()
	drv := statsDriver(t)
	drv.config.Migration = MigrationConfig{Address: "127.0.0.1", Host: "here.example", Ports: [2]int{first, min(first+50, 65535)}, Certificates: t.TempDir()}
	defer drv.migrations.close()
	uri, address, err := drv.waitForMigration(migration{})
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(address)
	if uri != "tcp://here.example:"+port || port == fmt.Sprint(first) {
		t.Errorf("it waits at %s, %s; port %d is taken", uri, address, first)
	}
	const unable = "unable to parse migration URI"
	for given, want := range map[string]string{
		"tcp://there":         "tcp://there:" + port,
		"tcp://there:" + port: "tcp://there:" + port,
		"tcp://[2001:db8::1]": "tcp://[2001:db8::1]:" + port,
		"tcp://there:1":       "!migrations come to port " + port + " here, not to 1",
		"tcp:there:" + port:   "tcp://there:" + port,
		"tcp:there":           "tcp://there:" + port,
		"tcp:":                "!" + unable,
		"tls://there":         "!" + unable,
		"there":               "!" + unable,
		"tcp://":              "!" + unable,
		"tcp://:" + port:      "!" + unable,
		"tcp://there:port":    "!" + unable,
		"tcp://%zz":           "!" + unable,
	} {
		got, waits, err := drv.waitForMigration(migration{uri: given})
		if words, bad := strings.CutPrefix(want, "!"); bad {
			refused(t, given, err, protocol.ErrInvalidArg, words)
		} else if err != nil || got != want || waits != address {
			t.Errorf("%s: got %s, %s, %v", given, got, waits, err)
		}
	}
	_, _, err = drv.waitForMigration(migration{flags: protocol.MigrateTls})
	refused(t, "no certificates", err, protocol.ErrOperationFailed, "TLS needs certificates")
	_, _, err = drv.waitForMigration(migration{listen: "192.0.2.1"})
	refused(t, "an address of others", err, protocol.ErrOperationFailed, fmt.Sprintf("no port between %d and", first))
	drv.config.Migration.Host = ""
	if got, _, err := drv.waitForMigration(migration{}); got != "tcp://"+address || err != nil {
		t.Errorf("without a name it waits at %s, %v", got, err)
	}

	for given, want := range map[string]string{
		"tcp://there:1":         "tcp://there:1 tls://there:1#there",
		"tcp:there:1":           "tcp://there:1 tls://there:1#there",
		"tcp://[2001:db8::1]:1": "tcp://[2001:db8::1]:1 tls://[2001:db8::1]:1#2001:db8::1",
		"tcp://there":           "",
		"tcp://:1":              "",
		"tls://there:1":         "",
		"unix:///run/sock":      "",
		"":                      "",
	} {
		plain, err := migrationAddress(migration{uri: given})
		if want == "" {
			refused(t, given, err, protocol.ErrInvalidArg, unable)
			continue
		}
		secure, err := migrationAddress(migration{uri: given, flags: protocol.MigrateTls})
		if plain+" "+secure != want || err != nil {
			t.Errorf("%s is sent to %s or %s, %v", given, plain, secure, err)
		}
	}
	if got, err := migrationAddress(migration{uri: "tcp://10.0.0.1:1", flags: protocol.MigrateTls, tlsHost: "there"}); got != "tls://10.0.0.1:1#there" {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := drv.dialMigration(t.Context(), "vz+ssh://there/system"); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

// TestAcceptMigration: the first byte tells whether it is to be TLS, and who says
// nothing is not waited for.
func TestAcceptMigration(t *testing.T) {
	drv := &Driver{config: Config{Migration: MigrationConfig{Certificates: t.TempDir()}}}
	accept := func(t *testing.T, says string) (io.ReadWriteCloser, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		go func() {
			io.WriteString(theirs, says)
			if says != "" {
				theirs.Close()
			}
		}()
		return newMigrations(drv).accept(ours)
	}
	link, err := accept(t, "message")
	if err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(link); string(all) != "message" {
		t.Errorf("got %q, %v", all, err)
	}
	if _, err := accept(t, "\x16\x03\x01"); err == nil || !strings.Contains(err.Error(), "TLS needs certificates") {
		t.Errorf("without certificates: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if _, err := accept(t, ""); err == nil || time.Since(began) > time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

// TestMigrationSettings: what may be set for a migration has bounds.
func TestMigrationSettings(t *testing.T) {
	drv := statsDriver(t, "web")
	d := drv.domains.lookupName("web")
	speed := func(mib uint64) error {
		_, err := setMaxSpeed(nil, d, &protocol.DomainMigrateSetMaxSpeedArgs{Bandwidth: mib})
		return err
	}
	refused(t, "too fast", speed(unlimitedSpeed+1), protocol.ErrOverflow, "bandwidth must be less than")
	if err := speed(10); err != nil || drv.bandwidth(d, migration{}) != 10<<20 || drv.bandwidth(d, migration{bandwidth: 3}) != 3<<20 {
		t.Errorf("%d bytes a second, %v", drv.bandwidth(d, migration{}), err)
	}
	if err := speed(unlimitedSpeed); err != nil || drv.bandwidth(d, migration{}) != 0 {
		t.Errorf("%d bytes a second, %v", drv.bandwidth(d, migration{}), err)
	}
	if got, err := maxSpeed(d, &protocol.DomainMigrateGetMaxSpeedArgs{}); got.Bandwidth != unlimitedSpeed || err != nil {
		t.Errorf("got %d, %v", got.Bandwidth, err)
	}
	following := func(mib uint64) error {
		_, err := setMaxSpeed(nil, d, &protocol.DomainMigrateSetMaxSpeedArgs{Bandwidth: mib, Flags: protocol.DomainMigrateMaxSpeedPostcopy})
		return err
	}
	refused(t, "of memory that follows, shut off", following(7), protocol.ErrOperationInvalid, "not running")
	_, err := startPostCopy(nil, d, &protocol.DomainMigrateStartPostCopyArgs{})
	refused(t, "post-copy", err, protocol.ErrOperationInvalid, "while outgoing migration is in progress")
	_, err = setMaxDowntime(nil, d, &protocol.DomainMigrateSetMaxDowntimeArgs{Downtime: 1})
	refused(t, "shut off", err, protocol.ErrOperationInvalid, "not running")
	setView(d, func(v *view) { v.state = Running })
	for _, ms := range []uint64{0, 24*3600*1000 + 1, math.MaxUint64} {
		_, err := setMaxDowntime(nil, d, &protocol.DomainMigrateSetMaxDowntimeArgs{Downtime: ms})
		refused(t, fmt.Sprint(ms), err, protocol.ErrInvalidArg, "choose one from 1 to a day")
	}
	if _, err := setMaxDowntime(nil, d, &protocol.DomainMigrateSetMaxDowntimeArgs{Downtime: 500}); err != nil || drv.downtime(d) != 500*time.Millisecond {
		t.Errorf("%s, %v", drv.downtime(d), err)
	}
	if err := errors.Join(speed(10), following(7)); err != nil || drv.bandwidth(d, migration{}) != 10<<20 {
		t.Errorf("%d bytes a second, %v", drv.bandwidth(d, migration{}), err)
	}
	for flag, want := range map[uint32]uint64{0: 10, protocol.DomainMigrateMaxSpeedPostcopy: 7} {
		if got, err := maxSpeed(d, &protocol.DomainMigrateGetMaxSpeedArgs{Flags: flag}); got.Bandwidth != want || err != nil {
			t.Errorf("0x%x: got %d, %v", flag, got.Bandwidth, err)
		}
	}
}

// TestMigrationNotBegun: of a migration that cannot begin nothing is left in the
// root, and the domain can be changed again.
func TestMigrationNotBegun(t *testing.T) {
	drv := statsDriver(t, "web")
	drv.config.Migration = MigrationConfig{Address: "127.0.0.1", Ports: [2]int{1, 0}}
	d, root := drv.domains.lookupName("web"), t.TempDir()
	setView(d, func(v *view) {
		v.config = xml.Copy(v.config)
		v.config.Devices.Filesystems[0] = libvirtxml.DomainFilesystem{
			Source: &libvirtxml.DomainFilesystemSource{Mount: &libvirtxml.DomainFilesystemSourceMount{Dir: root}},
			Target: &libvirtxml.DomainFilesystemTarget{Dir: "/"},
		}
	})
	r := &request{ctx: t.Context(), drv: drv, info: protocol.DomainMigrateBegin3Params.Info}
	how := migration{flags: protocol.MigrateOffline | protocol.MigratePersistDest | protocol.MigrateChangeProtection}
	bad := how
	bad.persistent = "<domain"
	for want, how := range map[string]migration{"no port between 1 and 0 is free": how, "XML": bad} {
		if _, _, err := r.beginMigration(d, how); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
		if left, err := os.ReadDir(root); len(left) != 0 || err != nil || d.leaving.Load() != nil {
			t.Errorf("%s: in the root there is %v, %v", want, left, err)
		}
	}
	setView(d, func(*view) {}) // the job was given back
}

// meanwhile does something when the driver logs a line.
type meanwhile struct {
	slog.Handler
	line string
	do   func()
}

func (m meanwhile) Enabled(context.Context, slog.Level) bool { return true }

func (m meanwhile) Handle(_ context.Context, r slog.Record) error {
	if r.Message == m.line {
		m.do()
	}
	return nil
}

// TestForsakenConfirming: a client that goes while the source does what it has
// said leaves that to go on, and nobody else does it a second time.
func TestForsakenConfirming(t *testing.T) {
	for name, c := range map[string]struct {
		phase int32
		flags uint32
		line  string // while what is being done
	}{
		"a disk":  {departureBegun, protocol.MigrateOffline | protocol.MigrateUndefineSource, "domain undefined"},
		"running": {departureSent, 0, "the domain has moved"},
	} {
		t.Run(name, func(t *testing.T) {
			drv := statsDriver(t, "web")
			d, r := drv.domains.lookupName("web"), statsRequest(t, drv)
			change, err := d.change(t.Context(), r.client, "test")
			if err != nil {
				t.Fatal(err)
			}
			how := migration{flags: c.flags}
			p := &departure{change: change, owner: r.client, how: how, session: runtime.NewSession(), control: runtime.NewMigrationControl(0, 0)}
			p.phase.Store(c.phase)
			d.leaving.Store(p)
			asked := false
			drv.log = slog.New(meanwhile{slog.DiscardHandler, c.line, func() {
				asked = true
				drv.forsaken(r.client)
				refused(t, "again", r.confirmMigration(d, how, true), protocol.ErrOperationInvalid, "cannot be confirmed now")
				if _, busy := d.job.busy(); !busy || d.leaving.Load() != p {
					t.Error("the job was given back while it is confirmed")
				}
				if c.phase == departureSent {
					goruntime.Goexit() // there is no environment that could be ended
				}
			}})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if err := r.confirmMigration(d, how, false); err != nil {
					t.Error(err)
				}
			}()
			<-ended
			if _, busy := d.job.busy(); busy || !asked || d.leaving.Load() != nil {
				t.Errorf("it came by %q: %v; the job is held: %v", c.line, asked, busy)
			}
		})
	}
}

// TestPerformOffline: of a domain that does not run there are no processes to be
// sent, whoever asks for it. The migration goes on as it has begun.
func TestPerformOffline(t *testing.T) {
	drv := statsDriver(t, "web")
	d, r := drv.domains.lookupName("web"), statsRequest(t, drv)
	change, err := d.change(t.Context(), r.client, "test")
	if err != nil {
		t.Fatal(err)
	}
	how := migration{flags: protocol.MigrateOffline | protocol.MigratePersistDest}
	p := &departure{change: change, owner: r.client, how: how, session: runtime.NewSession()}
	d.leaving.Store(p)
	told, _ := cookie{Session: p.session}.encode()
	_, err = r.performMigration(d, migration{uri: "tcp://127.0.0.1:1"}, "", told)
	refused(t, "its processes", err, protocol.ErrOperationInvalid, "domain 'web' does not run")
	_, err = r.performMigration(d, migration{uri: "tcp://127.0.0.1:1", flags: how.flags}, "", told)
	refused(t, "as it has begun", err, protocol.ErrOperationInvalid, "domain 'web' does not run")
	if err := r.confirmMigration(d, how, true); err != nil {
		t.Errorf("it is given up: %v", err)
	}
	if _, busy := d.job.busy(); busy {
		t.Error("the job is held")
	}
}
