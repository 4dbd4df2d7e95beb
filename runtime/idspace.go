package runtime

import (
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// idRange is one line of a uid_map or gid_map.
type idRange struct {
	Inside, Host, Count uint32
}

// openUserNamespace returns a user namespace with the given maps that no
// process lives in: the argument of MOUNT_ATTR_IDMAP. The kernel has no way to
// make one without a process, so a child is cloned, mapped and killed; it runs
// nothing but pause(2), which is why no exec is needed.
func openUserNamespace(uids, gids []idRange) (*os.File, error) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	pid, errno := clonePaused(unix.CLONE_NEWUSER)
	if errno != 0 {
		return nil, fmt.Errorf("make a user namespace: %w (is user.max_user_namespaces 0?)", errno)
	}
	defer endPaused(pid)
	for file, ids := range map[string][]idRange{"uid_map": uids, "gid_map": gids} {
		path := fmt.Sprintf("/proc/%d/%s", pid, file)
		if err := os.WriteFile(path, []byte(mapText(ids)), 0); err != nil {
			return nil, fmt.Errorf("map the environment's ids: %w", err)
		}
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
}

// endPaused ends a child of clonePaused.
func endPaused(pid int) {
	unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return
		}
	}
}

func mapText(ids []idRange) string {
	var b strings.Builder
	for _, r := range ids {
		fmt.Fprintf(&b, "%d %d %d\n", r.Inside, r.Host, r.Count)
	}
	return b.String()
}

// clonePaused forks a child into new namespaces (CLONE_NEW…). After the fork the child
// has one thread of a Go program: it must not allocate, grow its stack or
// be preempted, so it does raw system calls only, as package syscall's own
// fork does.
//
//go:norace
//go:noinline
func clonePaused(spaces uintptr) (pid int, errno syscall.Errno) {
	r, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, spaces|uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 || r != 0 {
		return int(r), e
	}
	for {
		syscall.RawSyscall(syscall.SYS_PPOLL, 0, 0, 0)
	}
}

// becomeUser gives this thread the rights of a user to files and no other: no
// group besides gid, no capability but rights. For the kernel's settings (/proc/sys) it is
// the effective user that counts, not the one for files; the real one stays, so
// that nobody else may signal this thread. It ends with what it is for. The
// system calls are raw, for this thread alone.
func becomeUser(uid, gid, rights uint32) error {
	const same = ^uint32(0)
	if uid == same || gid == same {
		return fmt.Errorf("user %d and group %d: there are none of this number", uid, gid)
	}
	for _, c := range []struct {
		what           string
		nr, a0, a1, a2 uintptr
	}{
		{"leave the daemon's groups", unix.SYS_SETGROUPS, 0, 0, 0},
		{"become the user's group", unix.SYS_SETRESGID, uintptr(same), uintptr(gid), uintptr(same)},
		{"become the user", unix.SYS_SETRESUID, uintptr(same), uintptr(uid), uintptr(same)}, // and for files
	} {
		if _, _, errno := unix.RawSyscall(c.nr, c.a0, c.a1, c.a2); errno != 0 {
			return fmt.Errorf("%s: %w", c.what, errno)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := [2]unix.CapUserData{{Effective: rights, Permitted: rights}}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop the daemon's capabilities: %w", err)
	}
	return nil
}

// becomeOwner makes files created by this thread belong to the first id of
// the environment's range: an idmapped mount refuses (EOVERFLOW) the creation
// of a file by an id it does not map, and overlayfs keeps the credentials of its
// mounter for work of its own. Changing the fsuid drops the file capabilities
// from the effective set; they are put back. The caller has locked its thread.
func becomeOwner(uid, gid uint32) error {
	if err := unix.Setfsgid(int(gid)); err != nil {
		return fmt.Errorf("take the environment's group: %w", err)
	}
	if err := unix.Setfsuid(int(uid)); err != nil {
		return fmt.Errorf("take the environment's user: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	for n := range sets {
		sets[n].Effective = sets[n].Permitted
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("keep own capabilities: %w", err)
	}
	return nil
}
