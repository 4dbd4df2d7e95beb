package runtime

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CPUTime is the processor time used so far, in nanoseconds.
func (i *Instance) CPUTime() (uint64, error) {
	stat, err := i.cgroupTable("cpu.stat")
	return stat["usage_usec"] * 1000, err
}

// CPUUserSystem splits CPUTime into time in user and in kernel mode.
func (i *Instance) CPUUserSystem() (user, system uint64, err error) {
	stat, err := i.cgroupTable("cpu.stat")
	return stat["user_usec"] * 1000, stat["system_usec"] * 1000, err
}

// Memory is what the environment uses and may use, in bytes; max is
// math.MaxUint64 when there is no limit.
func (i *Instance) Memory() (current, max uint64, err error) {
	if current, err = i.cgroupNumber("memory.current"); err != nil {
		return 0, 0, err
	}
	max, err = i.cgroupNumber("memory.max")
	return current, max, err
}

// Tasks is the number of its processes and threads.
func (i *Instance) Tasks() (uint64, error) { return i.cgroupNumber("pids.current") }

func (i *Instance) cgroupNumber(name string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(i.CgroupPath(), name))
	if err != nil {
		return 0, err
	}
	if string(bytes.TrimSpace(text)) == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
}

// cgroupTable reads a file of "name number" lines.
func (i *Instance) cgroupTable(name string) (map[string]uint64, error) {
	text, err := os.ReadFile(filepath.Join(i.CgroupPath(), name))
	if err != nil {
		return nil, err
	}
	table := map[string]uint64{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), " "); ok {
			table[key], _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return table, nil
}

// namespaceOrder is the order in which libvirt's clients enter namespaces
// (virProcessGetNamespaces): the user namespace first, for the right to enter
// the others.
var namespaceOrder = []string{"user", "ipc", "uts", "net", "pid", "mnt"}

// Namespaces opens the environment's namespaces in libvirt's order. A kind that it
// shares with the host is there, too, as in libvirt; entering it is no error
// there. The caller closes the files.
func (i *Instance) Namespaces() ([]*os.File, error) {
	var files []*os.File
	for _, kind := range namespaceOrder {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", i.rec.Init, kind))
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("namespaces of %s: %w", i.Name(), err)
		}
		files = append(files, f)
	}
	if dead(i.pidfd) { // the PID may have been another process's by now
		closeAll(files)
		return nil, fmt.Errorf("%s has ended", i.Name())
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Hostname is what gethostname(2) tells inside.
func (i *Instance) Hostname() (string, error) {
	var uts unix.Utsname
	err := i.inside("hostname", []string{"uts"}, func() error { return unix.Uname(&uts) })
	return unix.ByteSliceToString(uts.Nodename[:]), err
}
