package tee

import (
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"

	"virtvzd/driver/rpc/rpctest"
)

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// dialer connects to a socket of the daemon as the daemon's own user, because
// the admin socket lets in no other. The identity is the thread's; package
// syscall would change the whole process.
func dialer(path string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		if os.Getuid() != 0 {
			return net.Dial("unix", path)
		}
		runtime.LockOSThread()
		const keep = ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, rpctest.Nobody, keep); errno != 0 {
			return nil, errno // the thread stays locked, and ends with its goroutine
		}
		conn, err := net.Dial("unix", path)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep); errno != 0 {
			return nil, errno
		}
		runtime.UnlockOSThread()
		return conn, err
	}
}
