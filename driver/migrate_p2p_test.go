package driver

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
)

// TestFetchTLS: a disk that the destination asks for comes by TLS if that was asked
// for, and not at all where it cannot.
func TestFetchTLS(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		all, _ := io.ReadAll(conn)
		said <- string(all)
	}()
	drv := statsDriver(t, "web")
	drv.config.Migration = MigrationConfig{Address: "127.0.0.1", Ports: [2]int{1, 0}, Certificates: t.TempDir()}
	a := &arriving{change: &change{domain: drv.domains.lookupName("web")}, how: migration{flags: protocol.MigrateOffline | protocol.MigrateTls}, pull: l.Addr().String()}
	func() {
		defer func() {
			if recover() != nil {
				t.Error("it is asked for in plain text")
			}
		}()
		if err := a.fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "TLS needs certificates") {
			t.Errorf("got %v", err)
		}
	}()
	l.Close()
	if text := <-said; text != "" {
		t.Errorf("its source is told %q", text)
	}

	r := &request{ctx: t.Context(), drv: drv, info: protocol.DomainMigrateBegin3Params.Info}
	_, _, err = r.beginMigration(drv.domains.lookupName("web"), migration{flags: protocol.MigrateOffline | protocol.MigratePersistDest | protocol.MigrateTls})
	refused(t, "a source without certificates", err, protocol.ErrOperationFailed, "TLS needs certificates")
}

// TestPeerCommand: who has to be allowed what they do has no program run as root by
// the URI of a destination.
func TestPeerCommand(t *testing.T) {
	drv := statsDriver(t, "web")
	ran := filepath.Join(t.TempDir(), "ran")
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho >"+ran+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		access access
		uid    uint32
		runs   bool
	}{{&lastCaller{}, 1000, false}, {&lastCaller{}, 0, true}, {nil, 1000, true}} {
		drv.access = c.access
		r := &request{ctx: t.Context(), drv: drv, client: &client{drv: drv, identity: identity{UID: c.uid}}, info: protocol.DomainMigratePerform3Params.Info}
		_, err := r.performMigration(drv.domains.lookupName("web"), migration{flags: protocol.MigratePeer2peer}, "vz+ssh://there/system?command="+program, nil)
		if !c.runs {
			refused(t, "a program", err, protocol.ErrAccessDenied, "names a program, which would run as root")
		}
		if _, e := os.Stat(ran); (e == nil) != c.runs {
			t.Errorf("%T, %d: it ran: %v; %v", c.access, c.uid, e == nil, err)
		}
		os.Remove(ran)
	}
}
