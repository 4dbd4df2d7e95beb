//go:build !vm

package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Whatever a hook does, the host is as before and the build's rest goes.
func TestBuildHostileHooks(t *testing.T) {
	buildTest(t)
	outside := t.TempDir()
	victim := outside + "/victim"
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
	defer sentinel.Process.Kill()
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	tests := []struct{ name, script, want string }{
		{"write to the host", "echo bad >" + victim, "nonexistent directory"},
		{"write through /proc/1/root", "echo bad >/proc/1/root" + victim, ""},
		{"look at the host's processes", fmt.Sprintf("ls -d /proc/%d", sentinel.Process.Pid), "No such file"},
		{"kill one of the host", fmt.Sprintf("kill -9 %d", sentinel.Process.Pid), "No such process"},
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
	if got := contents(t, outside); got != "victim=safe" {
		t.Errorf("outside is %s", got)
	}
	if now, _ := os.ReadFile("/proc/sys/kernel/core_pattern"); string(now) != string(pattern) {
		t.Errorf("core_pattern is %s", now)
	}
	select {
	case err := <-died:
		t.Errorf("a process of the host was killed: %v", err)
	default:
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
