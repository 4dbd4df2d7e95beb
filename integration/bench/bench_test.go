//go:build vm

// Package bench measures virtvzd beside what it replaces, all in one run in
// one throw-away machine: `make bench`. Such a machine may be emulated, so
// only the ratios say something, and no figure fails a test.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"virtvzd/integration/vm"
)

func TestMain(m *testing.M) {
	vm.Tags = "" // what is shipped is measured
	os.Exit(vm.Main(m))
}

// TestFigures prints the table as Markdown, for README.
func TestFigures(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	if out, err := exec.Command("gcc", "-O2", "-o", calls, "calls.c", "-lvirt", "-lpthread").CombinedOutput(); err != nil {
		t.Fatalf("compile calls.c: %v\n%s", err, out)
	}
	v := vm.Test(t)
	for from, to := range map[string]string{calls: "/root/bench/calls", "figures.sh": "/root/bench/figures.sh", "fleet.sh": "/root/bench/fleet.sh"} {
		if err := v.Push(t.Context(), from, to); err != nil {
			t.Fatal(err)
		}
	}
	cmd := v.Command(t.Context(), "export VIRTVZD_TEST_ROOTS="+vm.Roots+"; sh /root/bench/figures.sh /root/bench/calls && sh /root/bench/fleet.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	fmt.Print(table(parse(string(out))))
	if err != nil {
		t.Fatalf("figures.sh: %v\n%s", err, out)
	}
}

// TestMemoryRows: each number of environments has one row.
func TestMemoryRows(t *testing.T) {
	for most, want := range map[float64]string{7: "0 7", 20: "0 20", 100: "0 20 100"} {
		_, rows, _ := strings.Cut(table(map[string]float64{"most.running": most}), "| anonymous | heap |\n|---|---|---|---|---|\n")
		var got []string
		for line := range strings.Lines(rows) {
			got = append(got, strings.Fields(line)[1])
		}
		if strings.Join(got, " ") != want {
			t.Errorf("with %v running at most there are rows for %q, want %q", most, got, want)
		}
	}
}

// parse reads the lines "NAME VALUE" of figures.sh.
func parse(out string) map[string]float64 {
	figures := map[string]float64{}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			figures[name] = f
		}
	}
	return figures
}

// table is ours beside each of theirs. A figure that was not measured is "-".
func table(f map[string]float64) string {
	// The median of three; the first one also warms up.
	for _, name := range []string{"vz.restart", "lxc.restart", "vz.throughput", "veth.throughput"} {
		a, b, c := f[name+".1"], f[name+".2"], f[name+".3"]
		f[name] = max(min(a, b), min(max(a, b), c))
	}
	var b strings.Builder
	b.WriteString("| | virtvzd | other | times as fast |\n|---|---|---|---|\n")
	row := func(what, ours, theirs, other string, scale float64, unit string) {
		ratio := "-"
		if f[ours] > 0 && f[theirs] > 0 {
			times := f[theirs] / f[ours]
			if strings.HasSuffix(unit, "/s") {
				times = 1 / times
			}
			ratio = fmt.Sprintf("%.1f", times)
		}
		fmt.Fprintf(&b, "| %s | %s | %s %s | %s |\n", what, show(f, ours, scale, unit), other, show(f, theirs, scale, unit), ratio)
	}
	const ms, us = 1000, 1
	for _, call := range []string{"define", "start", "destroy", "undefine"} {
		row(call+", busybox, no NIC", "vz."+call, "lxc."+call, "libvirt-lxc", ms, "ms")
	}
	row("start, busybox, one NIC", "vz.nic.start", "lxc.nic.start", "libvirt-lxc", ms, "ms")
	row("destroy, busybox, one NIC", "vz.nic.destroy", "lxc.nic.destroy", "libvirt-lxc", ms, "ms")
	row("start", "vz.start", "crun.start", "crun create + start in a scope", ms, "ms")
	row("destroy", "vz.destroy", "crun.destroy", "crun delete --force", ms, "ms")
	row("throughput of an interface, TCP", "vz.throughput", "veth.throughput", "a bare veth pair on the same bridge", 1<<20, "MiB/s")
	row("define and start, Debian", "vz.create", "copy.create", "with a copy of the tree", ms, "ms")
	row("snapshot of 1 GiB, shut off", "vz.snapshot", "copy.snapshot", "cp -a", ms, "ms")
	row("list, 100 defined", "vz.100.list", "lxc.100.list", "libvirt-lxc", ms, "ms")
	row("list, 500 defined", "vz.500.list", "lxc.500.list", "libvirt-lxc", ms, "ms")
	row("restart to first list, 500 defined", "vz.restart", "lxc.restart", "libvirtd", ms, "ms")
	for _, n := range []string{"1", "50"} {
		row("domainGetInfo/s, "+n+" connections", "vz.info."+n+".rate", "test.info."+n+".rate", "libvirtd's test driver", 1, "/s")
		row("domainGetInfo p99, "+n+" connections", "vz.info."+n+".p99", "test.info."+n+".p99", "libvirtd's test driver", us, "µs")
	}
	row("setmem while it runs, virsh", "vz.setmem.command", "systemd.setmem.command", "systemctl set-property", ms, "ms")
	row("setmem while it runs, the call", "vz.setmem", "systemd.setmem.command", "systemctl set-property", ms, "ms")
	row("update of ten Debians", "vz.fleet", "ssh.fleet", "ten logins by ssh", ms, "ms")
	row(fmt.Sprintf("statistics of %.0f, one call", f["vz.running"]), "vz.domstats", "cgroup.byhand", "their files read one by one", ms, "ms")
	fmt.Fprintf(&b, "\nOne of 256 MiB that runs stands still for %s of the %s that its snapshot takes on ext4, which copies.\n",
		show(f, "vz.live.stood", ms, "ms"), show(f, "vz.live", ms, "ms"))
	fmt.Fprintf(&b, "\nThat snapshot of 1 GiB takes %s of disk. Who reads all of `/usr` in one environment brings %s into the page cache; in a second one of the same template %s more.\n",
		show(f, "vz.snapshot.bytes", 1, "KiB"), show(f, "cache.first", 1024, "MiB"), show(f, "cache.second", 1024, "MiB"))
	b.WriteString("\n| daemon's memory, environments running | RSS | PSS | anonymous | heap |\n|---|---|---|---|---|\n")
	rows := []string{"0", "20", "most"}
	if f["most.running"] <= 20 {
		rows = []string{"0", "most"} // 20 is the most, or was not reached
	}
	for _, n := range rows {
		label := n
		if n == "most" {
			label = strconv.FormatFloat(f["most.running"], 'f', 0, 64)
		}
		fmt.Fprintf(&b, "| %s |", label)
		for _, figure := range []string{"rss", "pss", "anon", "heap"} {
			fmt.Fprintf(&b, " %s |", show(f, n+".vz."+figure, 1024, "MiB"))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// show is one figure, with three digits that mean something.
func show(f map[string]float64, name string, scale float64, unit string) string {
	v, ok := f[name]
	if !ok || v == 0 {
		return "-"
	}
	v /= scale
	digits := 2
	if v >= 100 {
		digits = 0
	} else if v >= 10 {
		digits = 1
	}
	return strings.TrimSpace(fmt.Sprintf("%.*f %s", digits, v, unit))
}
