package main

import (
	"fmt"
	"net"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"virtvzd/driver/rpc"
	"virtvzd/systemd"
)

// role is what a socket is for, told by its name as libvirt's clients know
// it.
type role int

const (
	readWrite role = iota
	readOnly
	admin
)

func roleOf(path string) role {
	switch {
	case strings.HasSuffix(path, "-admin-sock"):
		return admin
	case strings.HasSuffix(path, "-sock-ro"):
		return readOnly
	}
	return readWrite
}

// socket is one listening socket.
type socket struct {
	listener *net.UnixListener
	role     role
}

// openSockets takes those that systemd made, and makes what no unit is for.
func openSockets(conf *config, passed []systemd.NamedFile) ([]socket, error) {
	var list []socket
	have := map[string]bool{}
	for _, f := range passed {
		l, err := net.FileListener(f.File)
		f.File.Close()
		unix, ok := l.(*net.UnixListener)
		if err != nil || !ok {
			return nil, fmt.Errorf("the socket %s that systemd passed is not a unix stream socket", f.Name)
		}
		unix.SetUnlinkOnClose(false)
		path := unix.Addr().String()
		have[path] = true
		list = append(list, socket{unix, roleOf(path)})
	}
	for _, path := range socketPaths(conf, len(passed) > 0) {
		if have[path] {
			continue
		}
		l, err := makeSocket(conf, path)
		if err != nil {
			return nil, err
		}
		list = append(list, socket{l, roleOf(path)})
	}
	return list, nil
}

// socketPaths are the names under which clients look for this daemon. Those that
// units are installed for are systemd's where it passed any.
func socketPaths(conf *config, units bool) (names []string) {
	if !units {
		names = []string{"virtvzd-sock", "virtvzd-sock-ro", "virtvzd-admin-sock", "virtopenvzd-sock", "virtopenvzd-sock-ro"}
	}
	if conf.LXCSocket {
		names = append(names, "virtlxcd-sock", "virtlxcd-sock-ro")
	}
	for i, name := range names {
		names[i] = filepath.Join(conf.UnixSockDir, name)
	}
	return names
}

func makeSocket(conf *config, path string) (*net.UnixListener, error) {
	perms := map[role]string{readWrite: conf.UnixSockRWPerms, readOnly: conf.UnixSockROPerms, admin: conf.UnixSockAdminPerms}
	mode, err := permissions(perms[roleOf(path)])
	if err != nil {
		return nil, err
	}
	group, err := user.LookupGroup(conf.UnixSockGroup)
	if err != nil {
		return nil, fmt.Errorf("unix_sock_group: %w", err)
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return nil, err
	}
	return rpc.Listen(path, mode, gid)
}
