package driver

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/xml"
)

// benchDriver is a driver without a runtime on a directory.
func benchDriver(b *testing.B, dir string) *Driver {
	b.Helper()
	machine, err := probeHost()
	if err != nil {
		b.Fatal(err)
	}
	facts := func() xml.HostFacts {
		f := machine.facts()
		f.Emulator = "/usr/bin/crun"
		return f
	}
	config := Config{ConfigDir: dir, StateDir: filepath.Join(dir, "run")}
	drv, err := open(config, machine, nil, slog.New(slog.NewTextHandler(io.Discard, nil)), facts)
	if err != nil {
		b.Fatal(err)
	}
	return drv
}

func benchDefine(b *testing.B, drv *Driver, name string) {
	b.Helper()
	r := &request{ctx: b.Context(), drv: drv, client: &client{drv: drv}, info: protocol.DomainDefineXML.Info}
	if _, err := r.define(domainXML(name, ""), 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkDefine is a new definition, on the disk that has the temporary
// directory.
func BenchmarkDefine(b *testing.B) {
	drv := benchDriver(b, b.TempDir())
	for n := 0; b.Loop(); n++ {
		benchDefine(b, drv, fmt.Sprint("bench", n))
	}
}

// BenchmarkLoad is a daemon's start with 500 definitions.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	drv := benchDriver(b, dir)
	for n := range 500 {
		benchDefine(b, drv, fmt.Sprint("bench", n))
	}
	for b.Loop() {
		benchDriver(b, dir)
	}
}

// BenchmarkList is the answer to `list --all` of 500, but the way over the socket.
func BenchmarkList(b *testing.B) {
	drv := benchDriver(b, b.TempDir())
	for n := range 500 {
		benchDefine(b, drv, fmt.Sprint("bench", n))
	}
	r := &request{ctx: b.Context(), drv: drv, client: &client{drv: drv}, info: protocol.ConnectListAllDomains.Info}
	for b.Loop() {
		ret, err := listAllDomains(r, &protocol.ConnectListAllDomainsArgs{NeedResults: 1})
		if err != nil || len(ret.Domains) != 500 {
			b.Fatal(len(ret.Domains), err)
		}
		if _, err := xdr.Marshal(ret); err != nil {
			b.Fatal(err)
		}
	}
}
