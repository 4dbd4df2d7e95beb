package driver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVirshTune changes a definition by each setter; running environments are
// for integration/virsh. Wrong values change nothing.
func TestVirshTune(t *testing.T) {
	h := newTestHost(t)
	h.virsh(true, "define", h.file(domainXML("web1", "<vcpu>2</vcpu>")))
	for _, test := range []struct {
		command string
		want    string // in the definition, or in the error when it begins with "!"
	}{
		{"setmem web1 32M --config", "<currentMemory unit='KiB'>32768<"},
		{"setmem web1 128M --config", "!raise that first, with virsh setmaxmem"},
		{"setmem web1 32M --live", "!domain is not running"},
		{"setmem web1 32M", "!domain is not running"},
		{"setmaxmem web1 16M --config", "<memory unit='KiB'>16384<"},
		{"setmaxmem web1 512 --config", "!at least 1024 KiB are needed"},
		{"memtune web1 --hard-limit 12288 --min-guarantee 4096 --config", "<min_guarantee unit='KiB'>4096<"},
		{"setmem web1 8M --config", "<hard_limit unit='KiB'>8192<"},
		{"memtune web1 --soft-limit 4096 --swap-hard-limit 1024 --config", "!must not be below <hard_limit>"},
		{"memtune web1 --hard-limit -1 --config", "<hard_limit unit='KiB'>9007199254740991<"},
		{"memtune web1 --hard-limit 0 --config", "!<hard_limit> is 0 KiB, at least 1024 KiB are needed"},
		{"memtune web1 --soft-limit 0 --config", "!<soft_limit> is 0 KiB, at least 1024 KiB are needed"},
		{"setvcpus web1 1 --config", "<vcpu placement='static' current='1'>2<"},
		{"setvcpus web1 5 --config", "!greater than max allowable"},
		{"setvcpus web1 4 --maximum --config", "<vcpu placement='static' current='1'>4<"},
		{"vcpupin web1 3 0 --config", "<vcpupin vcpu='3' cpuset='0'/>"},
		{"vcpupin web1 9 0 --config", "!out of range"},
		{"setvcpus web1 2 --maximum --config", "<vcpu placement='static' current='1'>2<"},
		{"setvcpu web1 1 --enable --config", "<vcpu placement='static'>2<"},
		{"setvcpu web1 0 --disable --config", "!without gaps"},
		{"emulatorpin web1 0 --config", "<emulatorpin cpuset='0'/>"},
		{"schedinfo web1 --config --set cpu_shares=200 --set global_quota=50000", "<global_quota>50000<"},
		{"schedinfo web1 --config --set cpu_shares=999999", "!cpu_shares of 999999"},
		{"schedinfo web1 --config --set vcpu_period=5", "!1000 to 1000000 are accepted"},
		{"schedinfo web1 --config --set weight=5", "!invalid scheduler option"},
		{"numatune web1 --mode strict --nodeset 0 --config", "<memory mode='strict' nodeset='0'/>"},
		{"numatune web1 --nodeset 77 --config", "!NUMA node 77 does not exist"},
		{"blkiotune web1 --weight 300 --config", "<weight>300</weight>"},
		{"blkiotune web1 --weight 30000 --config", "!1 to 10000 are accepted"},
		{"blkiotune web1 --device-read-iops-sec /dev/null,5 --config", "!is not a block device"},
		{"set-lifecycle-action web1 crash restart --config", "<on_crash>restart<"},
		{"attach-device web1 FUSE --config", "<char>/dev/fuse</char>"},
		{"attach-device web1 FUSE --config", "!is there already"},
		{"detach-device web1 FUSE --config", "<devices>"},
		{"detach-device web1 FUSE --config", "!device not found"},
		{"domtime web1 --now", "!host's clock"},
		{"domjobabort web1", "!domain is not running"},
		{"send-process-signal web1 1 term", "!domain is not running"},
	} {
		command := strings.Replace(test.command, "FUSE", h.file("<hostdev mode='capabilities' type='misc'><source><char>/dev/fuse</char></source></hostdev>"), 1)
		before := h.virsh(true, "dumpxml", "web1")
		problem, refused := strings.CutPrefix(test.want, "!")
		out := h.virsh(!refused, strings.Fields(command)...)
		after := h.virsh(true, "dumpxml", "web1")
		switch {
		case refused && !strings.Contains(out, problem):
			t.Errorf("%s: %q is missing in %s", test.command, problem, out)
		case refused && before != after:
			t.Errorf("%s was refused and changed\n%s\nto\n%s", test.command, before, after)
		case !refused && !strings.Contains(after, test.want):
			t.Errorf("%s: %q is missing in\n%s", test.command, test.want, after)
		}
	}
	// All of it is on the disk.
	stored, err := os.ReadFile(filepath.Join(h.drv.store.configDir, "web1.xml"))
	if err != nil || !strings.Contains(string(stored), "<on_crash>restart<") {
		t.Errorf("the stored definition is an old one: %v\n%s", err, stored)
	}
}
