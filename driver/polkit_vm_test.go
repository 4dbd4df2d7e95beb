//go:build vm

// A test against a real polkitd: root, systemd, and the packages polkitd and libvirt-daemon-common (for the actions).
// It adds a rules file and removes it.
//
//	CGO_ENABLED=0 go test -tags vm -c -o driver.test ./driver
//	scp driver.test root@VM: && ssh root@VM ./driver.test -test.v -test.run VMPolkit

package driver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const polkitRules = `polkit.addRule(function(action, subject) {
	if (action.id == "org.libvirt.unix.manage" && subject.user == "games") return polkit.Result.YES;
	if (action.id == "org.libvirt.unix.monitor" && subject.user == "games") return polkit.Result.NO;
	if (action.id == "org.libvirt.api.domain.start")
		return action.lookup("connect_driver") == "vz" && action.lookup("domain_name") == "web1" ? polkit.Result.YES : polkit.Result.NO;
});
`

// asUser is a process of that user that lives as long as the test.
func asUser(t *testing.T, uid uint32) Subject {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	s := Subject{PID: uint32(cmd.Process.Pid), UID: uid}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if _, err := fmt.Sscan(fields[19], &s.StartTime); err != nil { // field 22, counted from the one after the name
		t.Fatal(err)
	}
	return s
}

func TestVMPolkit(t *testing.T) {
	const rules, games, nobody = "/etc/polkit-1/rules.d/00-virtvzd-test.rules", 5, 65534
	p := newPolkit()
	defer p.bus.Close()
	web1 := map[string]string{"connect_driver": "vz", "domain_name": "web1", "domain_uuid": "6c9c0b2c-4c93-4f5b-9d5e-1f3b9ec0e0a1"}
	web2 := map[string]string{"connect_driver": "vz", "domain_name": "web2", "domain_uuid": "6c9c0b2c-4c93-4f5b-9d5e-1f3b9ec0e0a2"}
	check := func(who Subject, action string, details map[string]string, want string) {
		t.Helper()
		got := "yes"
		err := p.check(t.Context(), who, action, details)
		var no *notAuthorised
		switch {
		case errors.As(err, &no):
			got = []string{"no", "no agent", "dismissed"}[no.outcome]
		case err != nil:
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s for user %d %v: %s, want %s", action, who.UID, details, got, want)
		}
	}
	player, other := asUser(t, games), asUser(t, nobody)
	// What libvirt's policy says without a rule: managing needs a password, looking does not.
	check(player, actionManage, nil, "no agent")
	check(player, actionMonitor, nil, "yes")

	if err := os.WriteFile(rules, []byte(polkitRules), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(rules)
	for range 600 { // polkitd watches the directory
		if p.check(t.Context(), player, actionManage, nil) == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	check(player, actionManage, nil, "yes")
	check(player, actionMonitor, nil, "no")
	check(other, actionManage, nil, "no agent")
	check(player, "org.libvirt.api.domain.start", web1, "yes")
	check(player, "org.libvirt.api.domain.start", web2, "no")
	check(other, "org.libvirt.api.domain.getattr", web1, "yes") // what needs no more than reading is allowed by the policy
	check(other, "org.libvirt.api.domain.stop", web1, "no")
	check(asUser(t, 0), actionManage, nil, "yes")
	if err := p.check(t.Context(), player, "org.libvirt.nonsense", nil); err == nil || !strings.Contains(err.Error(), "libvirt-daemon-common") {
		t.Errorf("unknown action: %v", err)
	}
	// Another process has the number by now, as far as polkitd can tell.
	recycled := player
	recycled.StartTime++
	if err := p.check(t.Context(), recycled, actionManage, nil); err == nil {
		t.Error("a recycled process id was accepted")
	} else {
		t.Log(err)
	}

	for _, command := range []string{"stop", "mask --runtime"} {
		if out, err := exec.Command("sh", "-c", "systemctl "+command+" polkit.service").CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", command, out)
		}
	}
	err := p.check(t.Context(), player, actionManage, nil)
	exec.Command("systemctl", "unmask", "--runtime", "polkit.service").Run()
	var no *notAuthorised
	if err == nil || errors.As(err, &no) {
		t.Errorf("without polkitd: %v", err)
	}
	t.Log(err)
	check(player, actionManage, nil, "yes") // started again by the bus
}
