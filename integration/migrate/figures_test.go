//go:build vm

package migrate

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// dirtier has as many MiB of memory, which no compression makes less, and writes
// to 64 pages of it each time it wakes up.
const dirtier = `my ($mib, $pause) = @ARGV; open(R, "<:raw", "/dev/urandom"); my @page = map { read(R, my $p, 4096); $p } 1 .. $mib * 256; open(F, ">", "/run/begun"); close(F);
for (my $n = 0; ; $n++) { if ($pause <= 0) { sleep 1; next } substr($page[($n * 64 + $_) % @page], 0, 8) = pack("Q", $n) for 0 .. 63; select(undef, undef, undef, $pause) }`

const server = `<domain type='vz'><name>web1</name><memory unit='MiB'>512</memory>
<devices><filesystem type='template'><source name='server'/><target dir='/'/></filesystem>
<interface type='bridge'><source bridge='br0'/><mac address='52:54:00:00:aa:01'/><ip address='10.99.0.50' prefix='24'/></interface>
</devices></domain>`

// BenchmarkMigration prints the table of README: a whole Debian with a web
// server moves there and back, changing its memory slowly and quickly.
func BenchmarkMigration(b *testing.B) {
	h := pair(b)
	for _, v := range h.all() {
		v.Sh(b, "virtvzd template list | grep -q server || virtvzd template import server /srv/roots/debian13-server.tar.zst")
	}
	h.A.Sh(b, "cat >/root/dirtier.pl <<'E'\n"+dirtier+"\nE\ncat >/root/web1.xml <<'E'\n"+server+"\nE\nvirsh -c vz:///system define /root/web1.xml")
	b.Cleanup(func() {
		for _, v := range h.all() {
			v.Run(b.Context(), `virsh -c vz:///system destroy web1; virsh -c vz:///system undefine web1 --managed-save
for r in $(virtvzd root list | grep -o '^[0-9a-f-]\{36\}'); do virtvzd root rm $r; done`)
		}
	})
	h.saves(b)
	h.moves(b)
	h.copies(b)
}

// begin starts it with a program that has so much memory.
func (h *hosts) begin(b *testing.B, mib int, pause float64) {
	h.A.Sh(b, "virsh -c vz:///system start web1 && vzctl fleet copy web1 -- /root/dirtier.pl /root && vzctl exec web1 'systemctl is-system-running --wait'")
	h.A.Sh(b, fmt.Sprintf("vzctl exec web1 'systemd-run -q perl /root/dirtier.pl %d %g; until test -e /run/begun; do sleep 0.1; done'", mib, pause))
}

// saves measures how long saving takes for how much memory.
func (h *hosts) saves(b *testing.B) {
	fmt.Fprintln(os.Stdout, "\n| memory of a program | image | save | restore |\n|---|---|---|---|")
	for _, mib := range []int{1, 64, 192} {
		h.begin(b, mib, 0)
		save := h.took(b, "virsh -c vz:///system save web1 /root/web1.save")
		size := strings.TrimSpace(h.A.Sh(b, "stat -c %s /root/web1.save"))
		restore := h.took(b, "virsh -c vz:///system restore /root/web1.save")
		bytes, _ := strconv.ParseFloat(size, 64)
		fmt.Fprintf(os.Stdout, "| %d MiB | %.1f MiB | %.1f s | %.1f s |\n", mib, bytes/(1<<20), save, restore)
		h.A.Sh(b, "rm /root/web1.save; virsh -c vz:///system destroy web1")
	}
}

// moves measures migrations by how fast memory changes.
func (h *hosts) moves(b *testing.B) {
	fmt.Fprintln(os.Stdout, "\n| memory changed | rounds | stood still | of that freezing | dumping | sending and restoring | the rest | all | stood still, for each second of those three |\n|---|---|---|---|---|---|---|---|---|")
	for _, how := range []struct {
		name  string
		pause float64
		flags string
	}{
		{"hardly", 0, "--live"}, {"0.5 MiB/s", 0.5, "--live"}, {"5 MiB/s", 0.05, "--live"}, {"hardly, sent in one go", 0, ""},
	} {
		h.begin(b, 64, how.pause)
		began := time.Now()
		out := h.migrate(b.Context(), how.flags)
		all := time.Since(began).Seconds()
		log := h.A.Sh(b, "journalctl -u virtvzd -o cat --no-pager | grep 'the domain has moved' | tail -1")
		rounds := regexp.MustCompile(`rounds=(\d+)`).FindStringSubmatch(log)
		if rounds == nil {
			b.Fatalf("it has not moved: %s", out)
		}
		still, freezing, dumping, restoring := step(b, log, "stood_still"), step(b, log, "freezing"), step(b, log, "dumping"), step(b, log, "restoring")
		three := freezing + dumping + restoring
		fmt.Fprintf(os.Stdout, "| %s | %s | %.2f s | %.2f s | %.2f s | %.2f s | %.2f s | %.1f s | %.2f s |\n",
			how.name, rounds[1], still, freezing, dumping, restoring, still-three, all, still/three)
		h.B.Sh(b, "virsh -c vz:///system destroy web1")
		h.backAgain(b)
	}
}

// backAgain has its disk at a, and nothing at b.
func (h *hosts) backAgain(b *testing.B) {
	h.B.Sh(b, "virsh -c vz:///system migrate --offline --p2p --persistent --undefinesource web1 vz+ssh://root@a/system")
}

// copies measures the same without: shut down, copied, started until it serves.
func (h *hosts) copies(b *testing.B) {
	h.begin(b, 64, 0)
	began := time.Now()
	h.A.Sh(b, `virsh -c vz:///system shutdown web1; until virsh -c vz:///system domstate web1 | grep -q 'shut off'; do sleep 0.2; done
virsh -c vz:///system migrate --offline --p2p --persistent --undefinesource web1 vz+ssh://root@b/system`)
	h.B.Sh(b, "virsh -c vz:///system start web1; until python3 -c 'import urllib.request; urllib.request.urlopen(\"http://10.99.0.50/\")' 2>/dev/null; do sleep 0.2; done")
	fmt.Fprintf(os.Stdout, "\nShut down, copied and started, it serves again after %.1f s.\n", time.Since(began).Seconds())
	h.B.Sh(b, "virsh -c vz:///system destroy web1")
	h.backAgain(b)
}

func (h *hosts) took(b *testing.B, command string) float64 {
	out := h.A.Sh(b, "begin=$(date +%s%N); "+command+" >&2; echo $(($(date +%s%N) - begin))")
	ns, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		b.Fatal(err)
	}
	return ns / 1e9
}

// step is one of the durations in the daemon's line about a migration.
func step(b *testing.B, line, name string) float64 {
	m := regexp.MustCompile(name + `=(\S+)`).FindStringSubmatch(line)
	if m == nil {
		b.Fatalf("%q has no %s", line, name)
	}
	d, err := time.ParseDuration(m[1])
	if err != nil {
		b.Fatal(err)
	}
	return d.Seconds()
}
