package protocol

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestProcedures shows every change of the procedures as a line of a diff.
func TestProcedures(t *testing.T) {
	var b bytes.Buffer
	for _, i := range infos() {
		fmt.Fprintf(&b, "%08x %d %s %s", i.Program, i.Number, i.Name, i.Access)
		if i.IsEvent() {
			b.WriteString(" event")
		}
		if i.Priority {
			b.WriteString(" priority")
		}
		if i.Stream != NoStream {
			b.WriteString(" stream=" + i.Stream.String())
		}
		if i.Function != "" {
			b.WriteString(" function=" + i.Function)
		}
		for _, a := range i.ACL {
			b.WriteString(" acl=" + a)
		}
		for _, a := range i.ACLFilter {
			b.WriteString(" aclfilter=" + a)
		}
		b.WriteByte('\n')
	}
	const golden = "testdata/procs.golden"
	if *update {
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("the procedures differ from %s: look at the difference, then run go test with -update\n%s", golden, b.Bytes())
	}
}

func TestNumbers(t *testing.T) {
	for _, tt := range []struct {
		infos                             []*Info
		program                           uint32
		calls, events, refused, condition int
	}{
		{Remote(), RemoteProgram, 400, 53, 202, 6},
		{Qemu(), QemuProgram, 6, 1, 6, 0},
		{Lxc(), LxcProgram, 1, 0, 1, 0},
		{Admin(), AdminProgram, 20, 0, 0, 0},
	} {
		calls, events, access := 0, 0, map[Access]int{}
		for n, i := range tt.infos {
			if i.Program != tt.program || i.Version != 1 || int(i.Number) != n+1 {
				t.Errorf("%s is %x/%d/%d at place %d", i.Name, i.Program, i.Version, i.Number, n)
			}
			access[i.Access]++
			if i.IsEvent() {
				events++
			} else {
				calls++
			}
			if i.IsEvent() != (i.NewArgs() == nil) || i.IsEvent() != (i.NewRet() == nil) || i.IsEvent() != (i.NewMsg() != nil) {
				t.Errorf("%s: bodies do not fit its kind", i.Name)
			}
		}
		if calls != tt.calls || events != tt.events || access[Refused] != tt.refused || access[Conditional] != tt.condition {
			t.Errorf("program %x: %d calls, %d events, %d refused, %d conditional, want %+v",
				tt.program, calls, events, access[Refused], access[Conditional], tt)
		}
	}
}

// harmless are the permissions that let nothing be changed.
var harmless = []string{"getattr", "read", "search", "detect_storage_pools", "interface_macs"}

// Who may change something is said twice in libvirt, in its access control and
// in its read-only checks, by different hands. They must agree.
func TestReadOnlyAgreesWithACL(t *testing.T) {
	exceptions := map[string]string{
		"CONNECT_SET_IDENTITY":                 "changes the connection's own identity; the permission decides",
		"DOMAIN_MIGRATE_GET_MAX_DOWNTIME":      "a query, whatever its permission is called",
		"DOMAIN_MIGRATE_GET_COMPRESSION_CACHE": "likewise",
	}
	for _, i := range Remote() {
		if i.Access == Refused || i.IsEvent() {
			continue
		}
		for _, rule := range i.ACL {
			part := strings.Split(rule, ":")
			changes := len(part) == 2 && !slices.ContainsFunc(harmless, func(h string) bool { return strings.HasPrefix(part[1], h) })
			if changes && exceptions[i.Name] == "" {
				t.Errorf("%s needs %s but is open to read-only connections", i.Name, rule)
			}
		}
	}
}

func TestConditional(t *testing.T) {
	for _, tt := range []struct {
		info *Info
		args Payload
		want bool
	}{
		{DomainCreate.Info, &DomainCreateArgs{}, true},
		{DomainGetInfo.Info, &DomainGetInfoArgs{}, false},
		{DomainGetXMLDesc.Info, &DomainGetXMLDescArgs{Flags: DomainXMLInactive}, false},
		{DomainGetXMLDesc.Info, &DomainGetXMLDescArgs{Flags: DomainXMLInactive | DomainXMLSecure}, true},
		{DomainGetXMLDesc.Info, &DomainGetXMLDescArgs{Flags: DomainXMLMigratable}, true},
		{DomainSnapshotGetXMLDesc.Info, &DomainSnapshotGetXMLDescArgs{}, false},
		{DomainSnapshotGetXMLDesc.Info, &DomainSnapshotGetXMLDescArgs{Flags: DomainSnapshotXMLSecure}, true},
		{DomainCheckpointGetXMLDesc.Info, &DomainCheckpointGetXMLDescArgs{}, false},
		{DomainCheckpointGetXMLDesc.Info, &DomainCheckpointGetXMLDescArgs{Flags: DomainCheckpointXMLSecure}, true},
		{DomainManagedSaveGetXMLDesc.Info, &DomainManagedSaveGetXMLDescArgs{}, false},
		{DomainManagedSaveGetXMLDesc.Info, &DomainManagedSaveGetXMLDescArgs{Flags: DomainSaveImageXMLSecure}, true},
		{DomainGetVcpusFlags.Info, &DomainGetVcpusFlagsArgs{Flags: DomainVcpuMaximum}, false},
		{DomainGetVcpusFlags.Info, &DomainGetVcpusFlagsArgs{Flags: DomainVcpuGuest}, true},
		{DomainInterfaceAddresses.Info, &DomainInterfaceAddressesArgs{Source: DomainInterfaceAddressesSrcLease}, false},
		{DomainInterfaceAddresses.Info, &DomainInterfaceAddressesArgs{Source: DomainInterfaceAddressesSrcAgent}, true},
	} {
		if got := tt.info.RefusedReadOnly(tt.args); got != tt.want {
			t.Errorf("%s %+v: refused is %v", tt.info.Name, tt.args, got)
		}
	}
}
