package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Enter runs a command on the caller's terminal, as Exec does for the daemon,
// which is not asked: it is for root on the host. What runs inside has a
// terminal of its own there, and none of the host's files.
func Enter(stateDir, oci, uuid string, c Command) (status int, err error) {
	r := &Runtime{config: Config{StateDir: stateDir}}
	if err := r.host.probeOCI(oci); err != nil {
		return 0, err
	}
	id, ok := parseUUID(uuid)
	if !ok {
		return 0, fmt.Errorf("'%s' is no UUID", uuid)
	}
	rec, err := loadRecord(r.dir(id))
	if err == nil && (rec == nil || rec.Phase != running) {
		err = errors.New("it does not run")
	}
	if err != nil {
		return 0, err
	}
	pidfd, err := openPidfd(rec.Init, rec.InitStart)
	if err != nil {
		return 0, err
	}
	defer pidfd.Close()
	i := newInstance(r, rec, pidfd)
	if frozen, err := i.Frozen(); err != nil || frozen {
		return 0, errors.Join(err, errors.New("it is paused: resume it first"))
	}
	dir, err := os.MkdirTemp(i.dir, "exec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	process := filepath.Join(dir, "process.json")
	if err := i.writeProcess(process, c, true); err != nil {
		return 0, err
	}
	cgroup, err := i.openInitCgroup()
	if err != nil {
		return 0, err
	}
	defer cgroup.Close()
	cmd := inCgroup(context.Background(), cgroup, r.host.OCI, "--root", r.ociRoot(), "--cgroup-manager=disabled", "exec", "--process", process, uuid)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}
