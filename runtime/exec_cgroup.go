package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// join puts the shell into the cgroup that is open as descriptor 3, and has it
// become a command.
const join = `echo 0 >/proc/self/fd/3/cgroup.procs && exec 3<&- && exec "$@"`

// inCgroup is a command that runs in a cgroup of an environment. It goes there by
// itself: root inside may freeze it at any time, and a fork into a frozen cgroup
// (CLONE_INTO_CGROUP) does not return before it is thawed, with the lock of all
// forks held and the collector of garbage waiting, which is the whole daemon.
func inCgroup(ctx context.Context, cgroup *os.File, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", join, "sh"}, argv...)...)
	cmd.ExtraFiles = []*os.File{cgroup}
	return cmd
}

// refuseFrozenCgroup tells of one in which nothing would run.
func (i *Instance) refuseFrozenCgroup(cgroup *os.File) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/cgroup.events", cgroup.Fd()))
	if err == nil && strings.Contains(string(text), "frozen 1") {
		err = errors.New("the cgroup of its init is frozen: resume it, or destroy it if root inside has done that")
	}
	return err
}
