//go:build vm

package migrate

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"virtvzd/integration/vm"
)

// failure is something that goes wrong while web1 moves from a to b.
type failure struct {
	name string
	host string // whose daemon comes by the step
	step string // "STEP ACTION" of runtime/faults.go; "": none
	// during is done while that daemon stands still at the step; it goes on
	// after that.
	during func(h *hosts, t *testing.T)
	after  func(h *hosts, t *testing.T) // is done when virsh has ended
	flags  string
	want   string // where it runs in the end: "a", "b" or "" (nowhere)
	says   string // what a's log has then
	long   bool   // left out where time is short: it differs little from another
}

var (
	cut  = func(h *hosts, t *testing.T) { h.A.Sh(t, "ip link set eth1 down") }
	mend = func(h *hosts, t *testing.T) { h.A.Sh(t, "ip link set eth1 up") }
	fill = func(h *hosts, t *testing.T) {
		h.B.Sh(t, "dd if=/dev/zero of=/var/lib/libvirt/vz/fill bs=1M 2>/dev/null; true")
	}
	empty = func(h *hosts, t *testing.T) { h.B.Sh(t, "rm /var/lib/libvirt/vz/fill") }
)

// killCRIU kills the next CRIU that runs on a machine.
func killCRIU(host string) func(*hosts, *testing.T) {
	return func(h *hosts, t *testing.T) {
		h.all()[host].Sh(t, "(timeout 60 sh -c 'until pkill -9 -x criu; do sleep 0.05; done' </dev/null >/dev/null 2>&1 &)")
	}
}

// powerLoss ends all that runs on a machine, and what it keeps in memory is gone
// when its daemon starts. What was defined there is marked for its start.
func powerLoss(host string) func(*hosts, *testing.T) {
	return func(h *hosts, t *testing.T) {
		h.all()[host].Sh(t, `[ ! -e /etc/libvirt/vz/web1.xml ] || ln -s /etc/libvirt/vz/web1.xml /etc/libvirt/vz/autostart/web1.xml
kill -9 $(systemctl show -P MainPID virtvzd); systemctl stop virtvzd.socket virtvzd-ro.socket virtvzd-admin.socket virtvzd.service
systemctl kill -s KILL 'machine-vz*.scope'; for n in $(seq 60); do [ -z "$(systemctl list-units --plain --no-legend 'machine-vz*')" ] && break; sleep 0.5; done
awk '$5 ~ "^/run/libvirt/vz/" {print $5}' /proc/self/mountinfo | tac | xargs -r umount -l; rm -rf /run/libvirt/vz
systemctl reset-failed virtvzd.service; systemctl start virtvzd.socket virtvzd-ro.socket virtvzd-admin.socket virtvzd.service`)
	}
}

// inside runs a command as root of web1 although its daemon stands still.
func inside(command string) func(*hosts, *testing.T) {
	return func(h *hosts, t *testing.T) {
		h.A.Sh(t, "nsenter -t $(cat /root/init) -U -m -p -S 0 -G 0 -- "+command+" || true")
	}
}

var failures = []failure{
	// The source's daemon dies.
	{name: "source killed at the beginning", host: "a", step: "migrate begin kill", want: "a", long: true},
	{name: "source killed in a round", host: "a", step: "migrate round 2 kill", flags: "--live", want: "a", long: true},
	{name: "source killed frozen", host: "a", step: "migrate frozen kill", want: "a", long: true},
	{name: "source killed dumped", host: "a", step: "migrate dumped kill", want: "a", long: true},
	{name: "source killed sent", host: "a", step: "migrate sent kill", want: "a"},
	{name: "source killed confirming", host: "a", step: "migrate end kill", want: "b", long: true},
	// The destination's daemon dies.
	{name: "destination killed exchanging the disk", host: "b", step: "replace disk kill", want: "a", long: true},
	{name: "destination killed restoring", host: "b", step: "create kill", want: "a", long: true},
	{name: "destination killed holding", host: "b", step: "done kill", want: "a", long: true},
	{name: "destination killed deciding", host: "b", step: "commit kill", want: "a"},
	{name: "destination killed decided", host: "b", step: "committed kill", want: "b"},
	{name: "destination killed while memory follows", host: "b", step: "memory follows kill", flags: "--live --postcopy --postcopy-after-precopy", want: "", says: "a domain that moved was lost", long: true},
	// A host loses its power. What was frozen at its source is started there again only
	// when it does not run at its destination.
	{name: "source loses power, reboots, sent", host: "a", step: "migrate sent stop", during: powerLoss("a"), want: "a", says: "was sent to another host, which is asked", long: true},
	{name: "source loses power decided", host: "b", step: "committed stop", during: powerLoss("a"), want: "b", says: "was sent to another host, which is asked", long: true},
	{name: "destination loses power decided", host: "b", step: "committed stop", during: powerLoss("b"), after: func(h *hosts, t *testing.T) {
		h.B.Sh(t, "for n in $(seq 60); do virsh -c vz:///system domstate web1 2>/dev/null | grep -q 'shut off' && exit 0; sleep 1; done; exit 1")
	}, want: "", long: true},
	// A step fails.
	{name: "round fails", host: "a", step: "migrate round fail", flags: "--live", want: "b", long: true},
	{name: "round fails and that ends it", host: "a", step: "migrate round fail", flags: "--live --abort-on-error", want: "a", long: true},
	{name: "last dump fails", host: "a", step: "migrate dumped fail", want: "a", long: true},
	{name: "restore fails", host: "b", step: "create fail", want: "a", long: true},
	{name: "decision fails", host: "b", step: "commit fail", want: "a"},
	// The network between both is cut; whoever asked reaches them still.
	{name: "cut in a round", host: "a", step: "migrate round 2 stop", during: cut, after: mend, flags: "--live", want: "a", long: true},
	{name: "cut frozen", host: "a", step: "migrate frozen stop", during: cut, after: mend, want: "a", long: true},
	{name: "cut sent", host: "a", step: "migrate sent stop", during: cut, after: mend, want: "b"},
	// CRIU dies, the disk fills, the environment ends.
	{name: "CRIU killed dumping", host: "a", step: "migrate frozen stop", during: killCRIU("a"), want: "a", long: true},
	{name: "CRIU killed restoring", host: "b", step: "create stop", during: killCRIU("b"), want: "a", long: true},
	{name: "disk full", host: "a", step: "migrate frozen stop", during: fill, after: empty, want: "a", long: true},
	{name: "reboot", host: "a", step: "migrate round 2 stop", during: inside("reboot -f"), flags: "--live", want: "a", long: true},
	{name: "end", host: "a", step: "migrate round 2 stop", during: inside("poweroff -f"), flags: "--live", want: "", long: true},
	// The client dies, which has said in libvirt's stead what comes next.
	{name: "client killed frozen", host: "a", step: "migrate frozen stop", during: (*hosts).killClient, want: "a", long: true},
	{name: "client killed deciding", host: "b", step: "commit stop", during: (*hosts).killClient, want: "b", long: true},
	// The same in a migration whose client is the source's daemon.
	{name: "p2p, source killed sent", host: "a", step: "migrate sent kill", flags: "--p2p", want: "a", long: true},
	{name: "p2p, destination killed deciding", host: "b", step: "commit kill", flags: "--p2p", want: "a", long: true},
	{name: "p2p, destination killed decided", host: "b", step: "committed kill", flags: "--p2p", want: "b", long: true},
	{name: "p2p, cut deciding", host: "b", step: "commit stop", during: cut, after: mend, flags: "--p2p", want: "b", long: true},
	{name: "tunnelled, destination killed decided", host: "b", step: "committed kill", flags: "--p2p --tunnelled", want: "b", long: true},
	{name: "tunnelled, source killed frozen", host: "a", step: "migrate frozen kill", flags: "--p2p --tunnelled", want: "a", long: true},
}

const web1 = `<domain type='vz'><name>web1</name><memory unit='MiB'>64</memory><on_reboot>restart</on_reboot>
<devices><filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem>
<interface type='bridge'><source bridge='br0'/><mac address='52:54:00:00:aa:01'/><ip address='10.99.0.50' prefix='24'/></interface>
</devices></domain>`

// TestFailures: whatever goes wrong, web1 runs on one of both hosts, its network
// is there, and on the other nothing is left of it.
func TestFailures(t *testing.T) {
	h := pair(t)
	for _, f := range failures {
		if f.long && testing.Short() {
			continue
		}
		t.Run(strings.ReplaceAll(f.name, " ", "_"), func(t *testing.T) {
			f.run(t, h)
			for _, v := range h.all() {
				v.Sh(t, `virsh -c vz:///system destroy web1; virsh -c vz:///system undefine web1
for r in $(virtvzd root list | grep -o '^[0-9a-f-]\{36\}'); do virtvzd root rm $r; done
true`)
			}
			h.nothingLeft(t)
		})
	}
}

func (f *failure) run(t *testing.T, h *hosts) {
	h.A.Sh(t, "cat >/root/web1.xml <<'E'\n"+web1+"\nE\n"+`virsh -c vz:///system define /root/web1.xml && virsh -c vz:///system start web1 && virsh -c vz:///system domid web1 >/root/init
vzctl exec web1 'setsid sh -c "n=0; while :; do n=\$((n+1)); echo \$n >/run/n.new; mv /run/n.new /run/n; sleep 0.2; done" </dev/null >/dev/null 2>&1 &'`)
	if f.step != "" {
		h.all()[f.host].Sh(t, "echo '"+f.step+"' >/run/virtvzd-fault")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	ended := make(chan string, 1)
	go func() { ended <- h.migrate(ctx, f.flags) }()
	if f.during != nil {
		v := h.all()[f.host]
		f.awaitStop(t, v, ended)
		f.during(h, t)
		v.Sh(t, "kill -CONT $(systemctl show -P MainPID virtvzd)")
	}
	said := <-ended
	t.Logf("virsh says: %s", said)
	if ctx.Err() != nil {
		t.Fatal("virsh does not end")
	}
	if f.after != nil {
		f.after(h, t)
	}
	f.check(t, h)
}

// awaitStop waits until the daemon stands still at the step.
func (f *failure) awaitStop(t *testing.T, v *vm.VM, ended <-chan string) {
	for {
		out := v.Sh(t, "[ -e /run/virtvzd-fault ] || grep '^State:' /proc/$(systemctl show -P MainPID virtvzd)/status")
		if strings.Contains(out, "T (stopped)") {
			return
		}
		select {
		case said := <-ended:
			t.Fatalf("virsh ended before the daemon came by %q: %s", f.step, said)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// migrate asks for it from here.
func (h *hosts) migrate(ctx context.Context, flags string) string {
	to := h.uri("b")
	if strings.Contains(flags, "--p2p") {
		to = "vz+ssh://root@b/system"
	}
	args := append([]string{"-c", h.uri("a"), "migrate", "--persistent", "--undefinesource"}, strings.Fields(flags)...)
	cmd := exec.CommandContext(ctx, "virsh", append(args, "web1", to)...)
	cmd.WaitDelay = time.Second
	h.mu.Lock()
	h.client = cmd
	h.mu.Unlock()
	out, err := cmd.CombinedOutput()
	return fmt.Sprintf("%s (%v)", strings.TrimSpace(string(out)), err)
}

// killClient ends virsh while a daemon stands still.
func (h *hosts) killClient(t *testing.T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.client.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// check waits until all is as it should be, and then that it stays so.
func (f *failure) check(t *testing.T, h *hosts) {
	var states [2]string
	running := func(v *vm.VM) string {
		return strings.TrimSpace(v.Sh(t, "virsh -c vz:///system list --name --state-running 2>&1; virsh -c vz:///system list --name --state-paused | sed '/./s/$/ (paused)/'"))
	}
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		states = [2]string{running(h.A), running(h.B)}
		wantA, wantB := "", ""
		switch f.want {
		case "a":
			wantA = "web1"
		case "b":
			wantB = "web1"
		}
		if states == [2]string{wantA, wantB} {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a has %q and b has %q, want it on %q\na: %s\nb: %s", states[0], states[1], f.want, h.log(t, h.A), h.log(t, h.B))
		}
	}
	if said := h.log(t, h.A); !strings.Contains(said, f.says) {
		t.Errorf("a does not say %q: %s", f.says, said)
	}
	if f.want == "" {
		return
	}
	v, other := h.all()[f.want], h.B
	if f.want == "b" {
		other = h.A
	}
	v.Sh(t, "vzctl exec web1 'cat /run/n' >/dev/null 2>&1 || true")
	if !strings.Contains(f.name, "reboot") {
		v.Sh(t, `n=$(vzctl exec web1 'cat /run/n'); for k in $(seq 50); do sleep 0.2; [ "$(vzctl exec web1 'cat /run/n')" -gt "$n" ] && exit 0; done; exit 1`)
	}
	for _, from := range []*vm.VM{h.A, h.B} {
		from.Sh(t, "for n in $(seq 10); do ping -c 1 -W 2 10.99.0.50 >/dev/null && exit 0; done; exit 1")
	}
	if left := left(t, other); left != "" {
		t.Errorf("left on the other host:\n%s\n%s", left, h.log(t, other))
	}
}

func (h *hosts) log(t *testing.T, v *vm.VM) string {
	return v.Sh(t, "journalctl -u virtvzd -n 25 -o cat --no-pager")
}
