package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// userspace is a running environment as far as files have to do with it: a
// process in a user and a mount namespace, where it has run a script. Ids inside
// are 100000 more outside.
func userspace(t *testing.T, capabilities, script string) *Instance {
	t.Helper()
	needRoot(t, "only root makes files of several users")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	cmd := exec.Command("/bin/sh", "-ec", script+"\necho ready\nexec cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{NoSetGroups: true}}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	pidfd, err := openPidfd(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pidfd.Close() })
	same := []xml.IDRange{{Inside: 0, Host: 100000, Count: 65536}}
	i := newInstance(emptyRuntime(t), &record{UUID: formatUUID(testUUID), Name: "web1", Init: cmd.Process.Pid, IDMap: xml.IDMap{UIDs: same, GIDs: same}}, pidfd)
	config := fmt.Sprintf(`{"process":{"cwd":"/","capabilities":{"effective":[%s]}}}`, capabilities)
	if err := errors.Join(os.MkdirAll(i.dir, 0o700), os.WriteFile(filepath.Join(i.dir, "config.json"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	return i
}

// TestRootInside: root inside opens what belongs to others there, as far as it
// has the capability, and nothing that belongs to the host.
func TestRootInside(t *testing.T) {
	dir, err := os.MkdirTemp("", "inside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, owner := range map[string]int{"web/": 101000, "web/file": 101000, "web/given": 0, "closed/": 0, "closed/file": 101000, "host": 0} {
		var err error
		if dir, ok := strings.CutSuffix(name, "/"); ok {
			err = os.MkdirAll(at(dir), 0o700)
		} else {
			err = errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o700), os.WriteFile(at(name), []byte("text"), 0o600))
		}
		if err := errors.Join(err, os.Lchown(at(name), owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"setting": "/proc/sys/kernel/domainname", "web/link": "../host"} {
		if err := os.Symlink(to, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(unix.Mkfifo(at("web/fifo"), 0o600), os.Chown(at("web/fifo"), 101000, 101000)); err != nil {
		t.Fatal(err)
	}
	i, without := userspace(t, `"CAP_DAC_OVERRIDE","CAP_CHOWN"`, ""), userspace(t, "", "")
	open := descriptors(t)
	for _, c := range []struct {
		i     *Instance
		who   Owner
		name  string
		flags int
		want  string // "" when it opens
	}{
		{i, Owner{}, "web/file", unix.O_RDONLY, ""},
		{i, Owner{}, "web/file", unix.O_WRONLY | unix.O_TRUNC, ""},
		{i, Owner{}, "web/new", unix.O_WRONLY | unix.O_CREAT, ""},
		{i, Owner{1000, 1000}, "web/file", unix.O_RDONLY, ""},
		{i, Owner{1001, 1001}, "web/file", unix.O_RDONLY, "permission denied"},
		{i, Owner{}, "web/given", unix.O_RDONLY, "permission denied"},
		{i, Owner{}, "web/link", unix.O_WRONLY, "permission denied"},
		{i, Owner{}, "web/none", unix.O_RDONLY, "no such file"},
		{i, Owner{}, "web/fifo", unix.O_RDONLY, "no regular file"},
		{i, Owner{}, "host", unix.O_RDONLY, "permission denied"},
		{i, Owner{}, "closed/file", unix.O_RDONLY, "permission denied"},
		{i, Owner{}, "closed/new", unix.O_WRONLY | unix.O_CREAT, "permission denied"},
		{i, Owner{}, "setting", unix.O_RDONLY, "file of the kernel"},
		{i, Owner{}, "setting", unix.O_WRONLY, "permission denied"},
		{without, Owner{}, "web/file", unix.O_RDONLY, "permission denied"},
	} {
		mode := os.FileMode(0)
		if c.flags&unix.O_CREAT != 0 {
			mode = 0o640
		}
		f, err := c.i.OpenFile(context.Background(), c.who, at(c.name), c.flags, mode)
		if err == nil {
			f.f.Close()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s with %#x as %d: %v, want %q", c.name, c.flags, c.who.UID, err, c.want)
		}
	}
	for fd, file := range descriptors(t) {
		if open[fd] != file {
			t.Errorf("descriptor %s is open: %s", fd, file)
		}
	}
	for name, want := range map[string]string{"web/file": "101000 100600 0", "web/new": "100000 100640 0", "web/given": "0 100600 4"} {
		var st unix.Stat_t
		if err := unix.Stat(at(name), &st); err != nil || fmt.Sprintf("%d %o %d", st.Uid, st.Mode, st.Size) != want {
			t.Errorf("%s: %v, %d %o %d, want %s", name, err, st.Uid, st.Mode, st.Size, want)
		}
	}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 || gid != 0 {
		t.Errorf("the daemon is %d of %d", uid, gid)
	}
	if body, err := i.ReadFile(t.Context(), Owner{}, at("web/file"), 10); err != nil || len(body) != 0 {
		t.Errorf("truncated it has %q, %v", body, err)
	}
}

// TestPlacesInside: mount points and devices go where root inside might put
// them, whatever link of its own leads there, and nothing else is removed.
func TestPlacesInside(t *testing.T) {
	dir, err := os.MkdirTemp("", "inside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, owner := range map[string]int{"own": 100000, "web": 101000, "web/data": 101000, "closed": 0, "closed/data": 0} {
		if err := errors.Join(os.MkdirAll(at(name), 0o700), os.Chown(at(name), owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("closed", at("link")), os.WriteFile(at("closed/empty"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	i := userspace(t, `"CAP_DAC_OVERRIDE"`, "mount -t tmpfs none /mnt && mkdir /mnt/bind")
	bound := func(target string) xml.Filesystem {
		return xml.Filesystem{Type: "bind", Source: "/mnt/bind", Target: target}
	}
	for _, c := range []struct {
		fs   xml.Filesystem
		want string
	}{
		{bound(at("own/new/one")), ""},
		{bound(at("web/data")), ""},
		{bound(at("link/data")), "the mount point inside: .*permission denied"},
		{bound(at("link/new")), "the mount point inside: .*permission denied"},
		{xml.Filesystem{Type: "bind", Source: at("link/data"), Target: at("own")}, "the source .*/link/data inside: .*permission denied"},
	} {
		found, err := i.places(c.fs, freshMount{})
		found.close()
		if c.want == "" && err != nil || c.want != "" && !regexp.MustCompile(c.want).MatchString(fmt.Sprint(err)) {
			t.Errorf("%s at %s: %v, want %q", c.fs.Source, c.fs.Target, err, c.want)
		}
	}
	if err := i.addNodes(t.Context(), []deviceNode{{Source: "/dev/null", Target: at("link/null")}}); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a device: %v", err)
	}
	if err := i.removeNodes(t.Context(), []deviceNode{{Target: at("link/empty")}}); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(at("closed"))
	if err != nil || len(left) != 2 {
		t.Errorf("the host's directory has %v, %v", left, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(at("own/new/one"), &st); err != nil || st.Uid != 100000 {
		t.Errorf("what was made belongs to %d, %v", st.Uid, err)
	}
}

// descriptors gives what this process has open. Those of the tests before may be
// closed by the collector at any time, so that their number tells nothing.
func descriptors(t *testing.T) map[string]string {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]string{}
	for _, fd := range list {
		if file, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil { // not the directory's own
			open[fd.Name()] = file
		}
	}
	return open
}

// TestResolverInside: name servers of a running environment go where root inside
// may write, and nowhere else.
func TestResolverInside(t *testing.T) {
	dir, err := os.MkdirTemp("", "inside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	etc, host, theirs := filepath.Join(dir, "etc"), filepath.Join(dir, "host"), filepath.Join(dir, "theirs")
	for name, owner := range map[string]int{etc: 100000, host: 0, theirs: 101000} {
		if name == etc {
			err = os.Mkdir(name, 0o755)
		} else {
			err = os.WriteFile(name, []byte("text"), 0o600)
		}
		if err := errors.Join(err, os.Chown(name, owner, owner)); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(dir, 0o755)
	i := userspace(t, `"CAP_DAC_OVERRIDE"`, "mount --bind "+etc+" /etc")
	link := filepath.Join(etc, "resolv.conf")
	after := &xml.Environment{Nameservers: []string{"192.0.2.53"}}
	for _, c := range []struct{ to, want string }{
		{host, "permission denied"},
		{"/proc/sys/kernel/domainname", "permission denied"},
		{filepath.Join(dir, "new", "one"), "permission denied"},
		{theirs, ""},
		{"", ""},
	} {
		os.Remove(link)
		if err := os.Symlink(c.to, link); err != nil && c.to != "" {
			t.Fatal(err)
		}
		err := i.setResolver(&xml.Environment{}, after)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.to, err, c.want)
		}
	}
	for name, want := range map[string]string{host: "0 text", theirs: "101000 " + resolverText(after), link: "100000 " + resolverText(after)} {
		body, err := os.ReadFile(name)
		var st unix.Stat_t
		if err := errors.Join(err, unix.Stat(name, &st)); err != nil || fmt.Sprintf("%d %s", st.Uid, body) != want {
			t.Errorf("%s: %v, of %d: %q", name, err, st.Uid, body)
		}
	}
}
