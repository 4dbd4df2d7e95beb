package runtime

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Root inside has to do with what belongs to others there by capabilities in the
// environment's user namespace, which only a process with one thread may enter.
// So a child of ours does, with our descriptors: it opens one file, and its exit
// status is the error. The kernel then grants what it would grant root inside,
// and a directory of the host stays what it is to it.

// rootOpen is all that the child needs. After the fork it must not allocate.
type rootOpen struct {
	user, mount int // descriptors of the namespaces
	header      unix.CapUserHeader
	rights      [2]unix.CapUserData
	name        *byte
	how         unix.OpenHow
	root        int // AT_FDCWD
	place       int // the descriptor that becomes the file's
}

// openAsRoot is openIn for root inside, with its capabilities. It is not for a
// thread that is inside itself.
func (i *Instance) openAsRoot(name string, flags int, mode uint32) (fd int, err error) {
	fail := func(err error) (int, error) { return -1, fmt.Errorf("%s of %s: %w", name, i.Name(), err) }
	rights, err := i.fileRights()
	if err != nil {
		return fail(err)
	}
	r := &rootOpen{header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, how: openHow(flags, mode), root: unix.AT_FDCWD}
	r.rights[0] = unix.CapUserData{Effective: rights, Permitted: rights}
	if r.name, err = unix.BytePtrFromString(name); err != nil {
		return fail(err)
	}
	for kind, to := range map[string]*int{"user": &r.user, "mnt": &r.mount} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", i.rec.Init, kind))
		if err != nil {
			return fail(err)
		}
		defer f.Close()
		*to = int(f.Fd())
	}
	if dead(i.pidfd) { // the PID may have been another process's by now
		return fail(errors.New("it has ended"))
	}
	if r.place, err = unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	if err := r.open(); err != nil {
		unix.Close(r.place)
		return fail(err)
	}
	return r.place, nil
}

func (r *rootOpen) open() error {
	goruntime.LockOSThread() // with which the child would end
	defer goruntime.UnlockOSThread()
	pid, errno := cloneOpening(r)
	if errno != 0 {
		return errno
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	switch {
	case status.Signaled():
		return fmt.Errorf("who opens it was ended by %v", status.Signal())
	case status.ExitStatus() != 0:
		return unix.Errno(status.ExitStatus())
	}
	return nil
}

// cloneOpening forks the child, which shares our descriptors, and nothing else.
// As that of clonePaused it does raw system calls only.
//
//go:norace
//go:noinline
func cloneOpening(o *rootOpen) (pid int, errno syscall.Errno) {
	const same = ^uintptr(0)
	r, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, unix.CLONE_FILES|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 || r != 0 {
		return int(r), e
	}
	_, _, e = syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(o.user), unix.CLONE_NEWUSER, 0)
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_SETNS, uintptr(o.mount), unix.CLONE_NEWNS, 0) // "/" is its root from now on
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_SETRESGID, same, 0, same)
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_SETRESUID, same, 0, same)
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&o.header)), uintptr(unsafe.Pointer(&o.rights)), 0)
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	}
	for tries := 0; e == 0 || e == unix.EAGAIN && tries < maxOpenTries; tries++ {
		r, _, e = syscall.RawSyscall6(unix.SYS_OPENAT2, uintptr(o.root), uintptr(unsafe.Pointer(o.name)), uintptr(unsafe.Pointer(&o.how)), unsafe.Sizeof(o.how), 0, 0)
		if e == 0 {
			break
		}
	}
	if e == 0 {
		_, _, e = syscall.RawSyscall(unix.SYS_DUP3, r, uintptr(o.place), unix.O_CLOEXEC)
		syscall.RawSyscall(unix.SYS_CLOSE, r, 0, 0)
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
}

// fileRights are the capabilities of root inside for files of others.
func (i *Instance) fileRights() (rights uint32, err error) {
	p, err := i.process()
	if err != nil || p.Capabilities == nil {
		return 0, err
	}
	for name, number := range map[string]int{"CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH} {
		if slices.Contains(p.Capabilities.Effective, name) {
			rights |= 1 << number
		}
	}
	return rights, nil
}
