package rpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Listen makes a socket. A stale one at the path is replaced; one that is in
// use is not.
func Listen(path string, mode os.FileMode, gid int) (*net.UnixListener, error) {
	if probe, err := net.Dial("unix", path); err == nil {
		probe.Close()
		return nil, fmt.Errorf("%s is in use: another daemon serves it", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s exists and is not a socket: remove it", path)
		}
		os.Remove(path)
	}
	return listenUnix(path, mode, gid)
}

// listenUnix makes a socket with its final mode from the start: it is bound
// under another name and renamed when mode and group are set.
func listenUnix(path string, mode os.FileMode, gid int) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	temporary := path + ".new"
	os.Remove(temporary)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	err = errors.Join(os.Chown(temporary, -1, gid), os.Chmod(temporary, mode))
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temporary)
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return l, nil
}
