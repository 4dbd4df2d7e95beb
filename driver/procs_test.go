package driver

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
)

var update = flag.Bool("update", false, "write golden files anew")

// TestProcedures shows for every procedure of every program what becomes of
// it: served and where, or refused and why. A change of the API is a change
// of this file.
func TestProcedures(t *testing.T) {
	var b strings.Builder
	modes := map[rpc.Mode]string{rpc.Inline: "inline", rpc.Pool: "pool", rpc.PoolPriority: "priority", rpc.Apart: "apart"}
	for _, p := range []struct {
		name     string
		all      []*protocol.Info
		families []table
	}{
		{"remote", protocol.Remote(), families}, {"lxc", protocol.Lxc(), []table{lxcProgram}},
		{"qemu", protocol.Qemu(), []table{qemuProgram}}, {"admin", protocol.Admin(), []table{administration}},
	} {
		prog := newProgram(&Driver{}, p.all, p.families...)
		served := map[*protocol.Info]bool{}
		for _, family := range p.families {
			for _, proc := range family {
				if served[proc.info] {
					t.Errorf("%s stands in two tables", proc.info.Name)
				}
				served[proc.info] = true
			}
		}
		for _, info := range p.all {
			if info.IsEvent() {
				continue
			}
			what := modes[prog.procs[info.Number].mode]
			if d := prog.procs[info.Number].relay; d != "" {
				what = "relay " + string(d)
			}
			if !served[info] {
				if what = "refused: " + refusalReason(info); what == "refused: " {
					t.Errorf("%s %s is neither served nor refused with a reason", p.name, info.Name)
				}
			}
			fmt.Fprintf(&b, "%s %d %s %s\n", p.name, info.Number, info.Name, what)
		}
	}
	golden(t, "testdata/procs.golden", b.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
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

// TestLookup holds what the rpc server relies on.
func TestLookup(t *testing.T) {
	prog := newProgram(&Driver{}, protocol.Remote(), families...)
	for _, number := range []uint32{0, 454, 1 << 31} {
		if _, _, ok := prog.Lookup(number); ok {
			t.Errorf("procedure %d is found", number)
		}
	}
	if _, mode, ok := prog.Lookup(protocol.DomainGetState.Number); !ok || mode != rpc.Inline {
		t.Errorf("DOMAIN_GET_STATE: mode %v, found %v; virsh list --all asks it for each domain", mode, ok)
	}
	// With an access driver a check can wait for polkitd.
	prog.drv.access = polkitAccess{}
	if _, mode, _ := prog.Lookup(protocol.DomainGetState.Number); mode == rpc.Inline {
		t.Error("DOMAIN_GET_STATE is answered inline although its access check waits")
	}
}
