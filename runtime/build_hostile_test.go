//go:build !vm

package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// buildScopes: there need not be a systemd.
func buildScopes(*testing.T) Scopes { return nil }

// Whatever a hook does, the host is as before and the build's rest goes.
func TestBuildHostileHooks(t *testing.T) {
	buildTest(t)
	victim, pid := bystander(t)
	tests := []struct{ name, script, want string }{
		{"write to the host", "echo bad >" + victim, "nonexistent directory"},
		{"write through /proc/1/root", "echo bad >/proc/1/root" + victim, ""},
		{"look at the host's processes", fmt.Sprintf("ls -d /proc/%d", pid), "No such file"},
		{"kill one of the host", fmt.Sprintf("kill -9 %d", pid), "No such process"},
		{"kill everything", "kill -9 -1", "No such process"},
		{"mount", "mount -t tmpfs x /mnt", "ermission denied"},
		{"bind mount", "mount -o bind /bin /mnt", "ermission denied"},
		{"remount", "mount -o remount,dev,suid /", "ermission denied"},
		{"namespaces of its own", "unshare -r -m true", "unshare"},
		{"make a node of a disk", "mknod /disk b 8 0", "not permitted"},
		{"chroot", "chroot /mnt /bin/true", "not permitted"},
		{"set the host's name", "hostname bad", "not permitted"},
		{"a setting of the kernel", "echo '|/bin/bad' >/proc/sys/kernel/core_pattern", "ermission denied"},
		{"a key of sysrq", "echo t >/proc/sysrq-trigger", "create /proc/sysrq-trigger"},
		{"raise a limit of user namespaces", "echo 9 >/proc/sys/user/max_user_namespaces", "ermission denied"},
		{"reach a network", "ping -c 1 -W 1 127.0.0.1", ""},
		{"write to what the host's programs are", "echo bad >/usr/bin/ls", "nonexistent directory"},
		{"fill the disk", "dd if=/dev/zero of=/fill bs=1M count=1000", "No space left"},
		{"many processes", "i=0; while [ $i -lt 3000 ]; do sleep 1000 & i=$((i+1)); done", "fork"},
		{"fill the memory file systems", "dd if=/dev/zero of=/dev/shm/fill bs=1M count=4000", "No space left"},
		{"many files", "mkdir /f; i=0; while [ $i -lt 20000 ]; do echo >/f/$i; i=$((i+1)); done", "No space left"},
	}
	for _, test := range tests {
		templates := OpenTemplates(t.TempDir())
		before, _ := FilesystemSpace(templates.private[:len(templates.private)-len("/private")])
		said, err := hooks(t, t.Context(), templates, 64<<20, test.script)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q; it said\n%s", test.name, err, test.want, said)
		}
		if names := templates.Names(); len(names) > 0 {
			t.Errorf("%s: made %v", test.name, names)
		}
		gone(t, templates)
		if after, _ := FilesystemSpace(templates.private[:len(templates.private)-len("/private")]); after.Allocation > before.Allocation+1<<30 {
			t.Errorf("%s: takes %d MiB", test.name, (after.Allocation-before.Allocation)>>20)
		}
	}
}

// What packages leave in the root is not trusted by the steps that follow.
func TestBuildHostileRoot(t *testing.T) {
	buildTest(t)
	for name, script := range map[string]string{
		"proc is a link":      "ln -s /root /target/proc",
		"dev is a link":       "ln -s ../../../../root /target/dev",
		"dev leads by proc":   "ln -s /proc/1/root /target/dev",
		"a step has mount(2)": "mount -t tmpfs x /mnt",
		"node of a disk":      "mknod /target/disk b 8 0",
		"host's programs":     "echo bad >/usr/bin/ls",
		"host's settings":     "echo bad >/etc/passwd",
		"out of the view":     "chroot /target /bin/sh -c 'cd ..; cat /etc/shadow'",
		"shadow":              "cat /etc/shadow",
	} {
		templates := OpenTemplates(t.TempDir())
		said, err := hooks(t, t.Context(), templates, 64<<20, "outside:"+script, "echo reached")
		if err == nil || strings.Contains(said, "reached") {
			t.Errorf("%s: %v\n%s", name, err, said)
		}
		gone(t, templates)
	}
}

// attempts are what a hostile package could try with the rights of a package
// manager, or with those of its scripts in the root. Each prints how it ended.
func attempts(victim string, bystander int) (script string, count int) {
	view := func(do string) string { // wherever it is seen
		return "for v in /proc/[0-9]*/root /proc/[0-9]*/fd/*; do [ -e $v/run/build ] && " + do + " && exit; done; false"
	}
	list := []struct{ name, do string }{
		{"write to the host", "echo bad >" + victim},
		{"write to the host by proc", "for p in /proc/[0-9]*; do echo bad >$p/root" + victim + " && exit; done; false"},
		{"write to the host by a descriptor", "for p in /proc/[0-9]*/fd/*; do echo bad >$p/.." + victim + " && exit; done; false"},
		{"read shadow", "cat /etc/shadow /proc/1/root/etc/shadow | grep root:"},
		{"read the builder's environment", "for p in /proc/[0-9]*; do grep -q GOMAXPROCS=2 $p/environ && exit; done; false"},
		{"see a process of the host", fmt.Sprintf("ls -d /proc/%d", bystander)},
		{"kill a process of the host", fmt.Sprintf("kill -9 %d", bystander)},
		{"join the builder", "nsenter -t 1 -m -p -U true"},
		{"write to the host's programs", view("{ mount -o remount,bind,rw $v/usr; echo bad >$v/usr/bin/bad; }")},
		{"write to the host's settings", view("{ mount -o remount,bind,rw $v/etc/passwd; echo bad >>$v/etc/passwd; }")},
		{"take away what hides the host", view("{ umount -c -l $v/usr || busybox umount -l $v/usr; }")},
		{"mount the kernel's settings", "mkdir -p /tmp/m; mount -t sysfs x /tmp/m || mount -t debugfs x /tmp/m || mount -t securityfs x /tmp/m || mount -t bpf x /tmp/m"},
		{"loosen the limits of a group", "mkdir -p /tmp/c; mount -t cgroup2 x /tmp/c && { (echo max >/tmp/c/memory.max || echo 1 >/tmp/c/cgroup.procs); r=$?; umount /tmp/c; [ $r = 0 ]; }"},
		{"user namespaces", "unshare -r true"},
		{"raise a limit of user namespaces", "echo 9 >/proc/sys/user/max_user_namespaces"},
		{"a setting of the kernel", "echo '|/bin/bad' >/proc/sys/kernel/core_pattern"},
		{"a key of sysrq", "echo t >/proc/sysrq-trigger"},
		{"make a node of a disk", "mknod /tmp/disk b 7 0 || mknod /disk b 7 0 || mknod /target/disk b 7 0"},
		{"set the clock", "date -s 2001-01-01; [ $(date +%Y) = 2001 ]"},
		{"turn the machine off", "reboot -f || busybox poweroff -f"},
		{"change the network", "ip link set lo down || ip link add bad type dummy"},
	}
	script = "try() { if (eval \"$2\") 2>&1; then echo \"$1: WORKED\"; else echo \"$1: failed\"; fi; }\n"
	quoted := func(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
	for _, a := range list {
		script += "try " + quoted(a.name) + " " + quoted(a.do) + "\n"
	}
	return script, len(list)
}

// failedAll tells whether all attempts were made and none of them worked.
func failedAll(said string, count int) bool {
	return strings.Count(said, ": failed\n") == count && !strings.Contains(said, "WORKED")
}

// bystander is a process of the host, and a file that everybody may write to.
// Neither is touched.
func bystander(t *testing.T) (victim string, pid int) {
	t.Helper()
	outside := t.TempDir()
	victim = outside + "/victim"
	if err := os.WriteFile(victim, []byte("safe"), 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(outside, 0o777)
	os.Chmod(victim, 0o666)
	sentinel := exec.Command("sleep", "1000")
	if err := sentinel.Start(); err != nil {
		t.Fatal(err)
	}
	died := make(chan error, 1)
	go func() { died <- sentinel.Wait() }()
	name, _ := os.Hostname()
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	t.Cleanup(func() {
		if now, _ := os.Hostname(); now != name {
			t.Errorf("the host is called %s", now)
		}
		select {
		case err := <-died:
			t.Errorf("a process of the host was killed: %v", err)
		default:
			sentinel.Process.Kill()
		}
		if got := contents(t, outside); got != "victim=safe" {
			t.Errorf("outside is %s", got)
		}
		if now, _ := os.ReadFile("/proc/sys/kernel/core_pattern"); string(now) != string(pattern) {
			t.Errorf("core_pattern is %s", now)
		}
	})
	return victim, sentinel.Process.Pid
}

// TestBuildHostilePacker: what runs with the rights of a package manager does no
// more than that.
func TestBuildHostilePacker(t *testing.T) {
	buildTest(t)
	victim, pid := bystander(t)
	script, count := attempts(victim, pid)
	for _, how := range []string{"mounts:", "api:"} {
		templates := OpenTemplates(t.TempDir())
		said, err := hooks(t, t.Context(), templates, 64<<20, how+script, how+"mount -t tmpfs x /target/mnt && echo may mount; touch /target/mnt/x", "ls /mnt; ls -d /mnt/x || echo gone")
		if err != nil || !failedAll(said, count) {
			t.Errorf("%s %v\n%s", how, err, said)
		}
		// Its mounts are its own, and end with it.
		if may := strings.Contains(said, "may mount\n"); may != (how == "mounts:") || strings.Contains(said, "gone\n") != may {
			t.Errorf("%s\n%s", how, said)
		}
		gone(t, templates)
	}
}
