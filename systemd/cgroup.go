package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const cgroupMount = "/sys/fs/cgroup"

// ControlGroup is the cgroup of a unit as systemd knows it, relative to the mount of cgroup2 and starting with "/":
// /machine.slice/machine-vz\x2dweb1.scope. ErrNoSuchUnit if the unit has none.
func (c *Conn) ControlGroup(ctx context.Context, unit string) (string, error) {
	v, err := c.Property(ctx, unit, "ControlGroup")
	if err != nil {
		return "", err
	}
	path, _ := v.(string)
	if path == "" {
		return "", about(unit, ErrNoSuchUnit)
	}
	return path, nil
}

// ControlGroupOf is ControlGroup without a round trip: it looks where the kernel has process pid, which is one of the
// unit's. Deriving the path from the slice's name instead would break wherever systemd does not run at the root of
// the hierarchy.
func ControlGroupOf(pid int, unit string) (string, error) {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", fmt.Errorf("cgroup of process %d: %w", pid, err)
	}
	path, ok := unitCgroup(line, unit)
	if !ok {
		return "", fmt.Errorf("process %d is not in unit %s (its cgroups: %q): %w", pid, unit, bytes.TrimSpace(line), ErrNoSuchUnit)
	}
	return path, nil
}

// OwnControlGroup is the cgroup that this process is in.
func OwnControlGroup() (string, error) {
	file, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(file)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("this process is in no cgroup of version 2 (its cgroups: %q)", bytes.TrimSpace(file))
}

// unitCgroup finds unit in the contents of /proc/PID/cgroup. The process may be in a child, made by the init inside.
func unitCgroup(file []byte, unit string) (string, bool) {
	for line := range strings.Lines(string(file)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::") // version 2; others are a hybrid host's
		if !ok {
			continue
		}
		if i := strings.Index(path+"/", "/"+unit+"/"); i >= 0 {
			return path[:i+1+len(unit)], true
		}
	}
	return "", false
}

// populated tells whether any process is in a cgroup or below it; when in doubt, yes.
func (c *Conn) populated(cgroup string) bool {
	root := c.cgroups
	if root == "" {
		root = cgroupMount
	}
	if cgroup == "" {
		return false
	}
	events, err := os.ReadFile(filepath.Join(root, cgroup, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Join(root, "cgroup.controllers"))
		return err != nil // no cgroup2 there at all: nothing can be said
	}
	return err != nil || !bytes.Contains(events, []byte("populated 0"))
}
