package runtime

import (
	"fmt"
	"os"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// namespaceTypes are the kinds of namespaces inside may enter. Not the user
// namespace: what runs there keeps the rights of the host's root, so it must
// trust no path and no program it finds.
var namespaceTypes = map[string]int{"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "net": unix.CLONE_NEWNET, "mnt": unix.CLONE_NEWNS}

// A thread that is in an environment's namespaces ends with its goroutine, or
// it would keep them alive. The process's first thread cannot end, and
// /proc/self shows its namespaces: no goroutine but main's may have it.
func init() { goruntime.LockOSThread() }

// inside runs do on a thread of its own in namespaces of the environment's
// init. The thread ends with it: it is elsewhere for good. what is for the error.
func (i *Instance) inside(what string, kinds []string, do func() error) error {
	return i.enter(what, kinds, func() error { return nil }, do)
}

// enter is inside with something to be done on the same thread before.
func (i *Instance) enter(what string, kinds []string, prepare, do func() error) error {
	var spaces []*os.File
	defer func() { closeAll(spaces) }()
	for _, kind := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", i.rec.Init, kind))
		if err != nil {
			return fmt.Errorf("%s of %s: %w", what, i.Name(), err)
		}
		spaces = append(spaces, f)
	}
	if dead(i.pidfd) { // the PID may have been another process's by now
		return fmt.Errorf("%s of %s: it has ended", what, i.Name())
	}
	err := onOwnThread(func() error {
		// A thread shares its root and working directory with the others,
		// which the kernel does not let it take into a mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := prepare(); err != nil {
			return err
		}
		for n, f := range spaces {
			if err := unix.Setns(int(f.Fd()), namespaceTypes[kinds[n]]); err != nil {
				return err
			}
		}
		return do()
	})
	if err != nil {
		return fmt.Errorf("%s of %s: %w", what, i.Name(), err)
	}
	return nil
}

// onOwnThread runs do on a thread that ends with it, so that it may change what
// belongs to a thread.
func onOwnThread(do func() error) error {
	result := make(chan error)
	go func() {
		goruntime.LockOSThread()
		result <- do()
	}()
	return <-result
}
