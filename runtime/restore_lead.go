package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A systemd inside that was restored has to read its state again (renewManagers)
// before a service tells it anything, or that is lost: also the sign of life of
// one with a watchdog, the next of which may come too late. So init goes on
// first. What is in the cgroups beside its own stays frozen until init has taken
// the signal; from then on it reads nothing else before it has done that.

// leadPatience is how long init may take for that. It was perhaps saved while it
// read its state, and ends that first: seconds on a host that is busy.
var leadPatience = 30 * time.Second

// maxAside is how many cgroups there may be beside init's: a systemd has three.
const maxAside = 1000

// initFirst has thaw let a frozen environment go on.
func (i *Instance) initFirst(ctx context.Context, thaw func(context.Context) error) error {
	if i.rec.Kind != Systemd || i.deaf.Load() || !i.isPending(syscall.SIGHUP) {
		return thaw(ctx)
	}
	if err := i.holdAside(); err != nil {
		i.warn(fmt.Sprintf("%s goes on all at once: what a service tells its systemd now may be lost: %v", i.Name(), err))
	}
	err := thaw(ctx)
	for end := time.Now().Add(leadPatience); err == nil && ctx.Err() == nil && i.isPending(syscall.SIGHUP); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			i.deaf.Store(true) // it may never take it, and is not waited for again
			break
		}
	}
	return errors.Join(err, i.releaseAside())
}

// isPending tells whether init has been sent a signal and has not taken it.
func (i *Instance) isPending(s syscall.Signal) bool {
	set, _ := strconv.ParseUint(statusField(i.rec.Init, "ShdPnd"), 16, 64)
	return set&(1<<(s-1)) != 0 && !dead(i.pidfd)
}

// holdAside freezes the cgroups beside init's that are not frozen by themselves,
// while that of the scope is. A later daemon finds them in the record.
func (i *Instance) holdAside() error {
	own, err := i.initCgroup()
	if err != nil {
		return err
	}
	own, _, _ = strings.Cut(strings.TrimPrefix(own, "/"), "/")
	entries, err := os.ReadDir(i.CgroupPath())
	if err != nil {
		return err
	}
	var aside []string
	for _, e := range entries {
		if own == "" || !e.IsDir() || e.Name() == own {
			continue
		}
		if state, _ := readProc(filepath.Join(i.CgroupPath(), e.Name(), "cgroup.freeze")); string(state) == "0\n" {
			aside = append(aside, e.Name())
		}
	}
	if len(aside) > maxAside {
		return fmt.Errorf("it has %d cgroups", len(aside))
	}
	if err := i.noteAside(aside); err != nil {
		return err
	}
	for _, name := range aside {
		if err := i.freezeAside(name, "1"); err != nil {
			return err
		}
	}
	return nil
}

// releaseAside undoes holdAside, also an earlier daemon's.
func (i *Instance) releaseAside() error {
	i.mu.Lock()
	aside := i.rec.Aside
	i.mu.Unlock()
	if len(aside) == 0 {
		return nil
	}
	var errs []error
	for _, name := range aside {
		errs = append(errs, i.freezeAside(name, "0"))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return i.noteAside(nil)
}

func (i *Instance) noteAside(names []string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Aside = names
	return i.rec.save(i.dir)
}

// freezeAside is not in the way of a cgroup that is gone.
func (i *Instance) freezeAside(name, value string) error {
	err := os.WriteFile(filepath.Join(i.CgroupPath(), name, "cgroup.freeze"), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
