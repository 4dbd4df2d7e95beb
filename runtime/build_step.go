package runtime

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stepCapabilities are those over the root's own files and processes, of a user
// namespace that has nothing else.
var stepCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_SETUID, unix.CAP_SETGID,
	unix.CAP_SETFCAP, unix.CAP_KILL, unix.CAP_NET_BIND_SERVICE, unix.CAP_AUDIT_WRITE,
}

// runBuildProcess is the builder's and the step's main.
func runBuildProcess() {
	run := runBuilder
	if os.Args[0] == stepName {
		run = becomeStep
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// becomeStep prepares the namespaces that it was forked into, gives up all
// that the step needs not, and becomes it.
func becomeStep() error {
	goruntime.LockOSThread()
	var q stepRequest
	if len(os.Args) != 2 {
		return errOrphaned
	}
	if err := json.Unmarshal([]byte(os.Args[1]), &q); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		return err
	}
	// Nobody below makes user namespaces, in which they could do what they
	// cannot here.
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return fmt.Errorf("forbid user namespaces: %w", err)
	}
	if q.Network {
		if err := giveListener(); err != nil {
			return fmt.Errorf("the way to the network: %w", err)
		}
	}
	if q.API || q.Inside {
		if err := mountAPI(q); err != nil {
			return err
		}
	}
	if q.Inside {
		if err := enterView(viewTarget); err != nil {
			return err
		}
	}
	if err := dropCapabilities(q.buildStep); err != nil {
		return err
	}
	os.Clearenv()
	for _, v := range q.Env {
		name, value, _ := strings.Cut(v, "=")
		os.Setenv(name, value)
	}
	path, err := exec.LookPath(q.Argv[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, q.Argv, q.Env))
}

// mountAPI mounts what programs in the root expect, and what the step is to
// see of the host. The root may be hostile by now: no lookup leaves it.
func mountAPI(q stepRequest) error {
	// A mount of our own, which pivot_root(2) accepts and which goes with us.
	if err := unix.Mount(viewTarget, viewTarget, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	t, err := openTreeRoot(viewTarget)
	if err != nil {
		return err
	}
	defer t.Close()
	fd, err := t.directory("/proc", 0o555)
	if err != nil {
		return fmt.Errorf("/proc of the root: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Mount("proc", fmt.Sprintf("/proc/self/fd/%d", fd), "proc", unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc of the root: %w", err)
	}
	if err := bindInRoot(t, "/dev", 0); err != nil {
		return err
	}
	if q.Network && q.Inside {
		for _, name := range q.Binds {
			if err := bindInRoot(t, name, unix.MOUNT_ATTR_RDONLY); err != nil {
				return err
			}
		}
	}
	return nil
}

// bindInRoot mounts what has a name on the host at the same name in the root.
func bindInRoot(t *tree, name string, attr uint64) error {
	source, err := openTree(unix.AT_FDCWD, name, nil, attr, true)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	target, err := openTarget(t, name, source)
	if err != nil {
		return fmt.Errorf("mount point %s in the root: %w", name, err)
	}
	defer unix.Close(target)
	err = unix.MoveMount(source, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	return nil
}

// dropCapabilities leaves those of the step in the bounding set: the others
// cannot come back, not even from a file.
func dropCapabilities(step buildStep) error {
	keep := map[int]bool{}
	for _, c := range stepCapabilities {
		keep[c] = true
	}
	if !step.Inside { // package managers change into the root
		keep[unix.CAP_SYS_CHROOT], keep[unix.CAP_SETPCAP] = true, true
		keep[unix.CAP_SYS_ADMIN] = step.Mounts
	}
	var sets [2]unix.CapUserData
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if keep[c] {
			sets[c/32].Permitted |= 1 << (c % 32)
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("drop a capability: %w", err)
		}
	}
	for n := range sets {
		sets[n].Effective = sets[n].Permitted
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
