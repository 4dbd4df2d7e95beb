package main

import (
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"virtvzd/systemd"
)

// TestSockets: by itself the daemon makes all, with the modes that the
// configuration says; beside systemd's it makes what there is no unit for.
func TestSockets(t *testing.T) {
	group, err := user.LookupGroupId(strconv.Itoa(os.Getgid()))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		lxc, systemd bool
		want         string // and its mode
	}{
		"alone": {want: "virtopenvzd-sock 660 virtopenvzd-sock-ro 666 virtvzd-admin-sock 600 virtvzd-sock 660 virtvzd-sock-ro 666"},
		"alone, lxc": {lxc: true, want: "virtlxcd-sock 660 virtlxcd-sock-ro 666 virtopenvzd-sock 660 virtopenvzd-sock-ro 666 " +
			"virtvzd-admin-sock 600 virtvzd-sock 660 virtvzd-sock-ro 666"},
		"systemd":      {systemd: true, want: "virtvzd-sock 755"},
		"systemd, lxc": {lxc: true, systemd: true, want: "virtlxcd-sock 660 virtlxcd-sock-ro 666 virtvzd-sock 755"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "sockets") // t.TempDir's names can be too long for a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			conf := &config{UnixSockDir: dir, UnixSockGroup: group.Name, LXCSocket: c.lxc,
				UnixSockRWPerms: "0660", UnixSockROPerms: "0666", UnixSockAdminPerms: "0600"}
			var passed []systemd.NamedFile
			if c.systemd {
				passed = append(passed, systemdSocket(t, filepath.Join(dir, "virtvzd-sock")))
			}
			list, err := openSockets(conf, passed)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, s := range list {
				path := s.listener.Addr().String()
				name := strings.TrimSuffix(filepath.Base(path), ".new") // it was bound as
				info, err := os.Stat(filepath.Join(dir, name))
				if err != nil || s.role != roleOf(filepath.Join(dir, name)) {
					t.Errorf("%s has role %v, %v", name, s.role, err)
					continue
				}
				got[name] = strconv.FormatUint(uint64(info.Mode().Perm()), 8)
				conn, err := net.Dial("unix", filepath.Join(dir, name))
				if err != nil {
					t.Error(err)
					continue
				}
				conn.Close()
				s.listener.Close()
			}
			var words []string
			for _, name := range slices.Sorted(maps.Keys(got)) {
				words = append(words, name, got[name])
			}
			if strings.Join(words, " ") != c.want {
				t.Errorf("it listens on %v, want %s", words, c.want)
			}
		})
	}
}

// systemdSocket is one as a unit passes it.
func systemdSocket(t *testing.T, path string) systemd.NamedFile {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return systemd.NamedFile{Name: "virtvzd.socket", File: f}
}
