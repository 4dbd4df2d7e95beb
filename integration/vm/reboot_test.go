//go:build vm

package vm

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestHostReboot: libvirt-guests, told to suspend, carries what runs over a
// reboot of the host, and autostart is for what did not run.
func TestHostReboot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	v, err := Start(ctx, "reboot", Options{OwnID: true, Reboot: true})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.Install(ctx); err != nil {
		t.Fatal(err)
	}
	v.Sh(t, `
virtvzd template import busybox `+Roots+`/busybox.tar.zst
export LIBVIRT_DEFAULT_URI=vz:///system
for name in kept auto; do
	echo "<domain type='vz'><name>$name</name><memory unit='MiB'>64</memory><devices>
	<filesystem type='template'><source name='busybox'/><target dir='/'/></filesystem></devices></domain>" >$name.xml
	virsh define $name.xml
done
virsh autostart auto
virsh start kept
vzctl exec kept 'echo kept >/run/in-memory; setsid sh -c "while sleep 0.2; do date +%s >/run/new; mv /run/new /run/now; done" </dev/null >/dev/null 2>&1 &'
printf 'URIS=vz:///system\nON_BOOT=start\nON_SHUTDOWN=suspend\nSHUTDOWN_TIMEOUT=300\n' >/etc/default/libvirt-guests
systemctl enable virtvzd.service
systemctl enable --now libvirt-guests`)
	before := v.Sh(t, "cat /proc/sys/kernel/random/boot_id")
	v.Run(ctx, "systemctl reboot") // the connection may end before the command
	for now := before; now == before; time.Sleep(time.Second) {
		v.disconnect()
		if err := v.connect(ctx); err != nil {
			t.Fatalf("%v\n%s", err, v.consoleTail())
		}
		asked, stop := context.WithTimeout(ctx, 10*time.Second)
		if id, err := v.Run(asked, "cat /proc/sys/kernel/random/boot_id"); err == nil {
			now = id
		}
		stop()
	}
	v.Sh(t, "systemctl is-system-running --wait || true")
	for _, c := range []struct{ command, want string }{
		{"virsh -c vz:///system domstate kept --reason", "running (restored)"},
		{"vzctl exec kept 'cat /run/in-memory; n=$(cat /run/now); for i in $(seq 60); do sleep 1; test $(cat /run/now) -gt $n && echo goes on && break; done'", "kept\ngoes on"},
		{"virsh -c vz:///system domstate auto", "running"},
		{"virsh -c vz:///system list --all --with-managed-save --name", ""},
	} {
		if got := strings.TrimSpace(v.Sh(t, c.command)); got != c.want {
			t.Errorf("%s\ngot  %q\nwant %q\n%s", c.command, got, c.want, v.Sh(t, "journalctl -b -u libvirt-guests -u virtvzd -o cat --no-pager | tail -40"))
		}
	}
}
