package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// Host is what this kernel and this installation offer. It is a plain value, so
// that plans can be made for any host in tests.
type Host struct {
	Kernel     [2]int // version and patch level, as in 6.12
	OCI        string // absolute path of the OCI runtime
	CPUs       []int  // online
	LXCFS      string // directory of lxcfs's files, or empty
	LXCFSFiles []string
	Warnings   []string // what is missing but not needed; each a sentence
}

// The oldest kernel with everything used: overlayfs on idmapped mounts came
// with 5.19, of the long-term kernels 6.1 is the first to have it.
var oldestKernel = [2]int{5, 19}

const (
	cgroupRoot = "/sys/fs/cgroup"
	lxcfsRoot  = "/var/lib/lxcfs"
)

// probeHost looks at the host once, at the daemon's start. An error names
// what has to be installed or changed.
func probeHost(oci string) (Host, error) {
	var h Host
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return h, err
	}
	release := string(bytes.TrimRight(uts.Release[:], "\x00"))
	if _, err := fmt.Sscanf(release, "%d.%d", &h.Kernel[0], &h.Kernel[1]); err != nil {
		return h, fmt.Errorf("kernel version %q is not understood", release)
	}
	if h.Kernel[0] < oldestKernel[0] || h.Kernel[0] == oldestKernel[0] && h.Kernel[1] < oldestKernel[1] {
		return h, fmt.Errorf("kernel %s is too old: %d.%d or newer is needed", release, oldestKernel[0], oldestKernel[1])
	}
	if err := h.probeOCI(oci); err != nil {
		return h, err
	}
	if err := probeKernel(); err != nil {
		return h, err
	}
	if stripped, err := RestoreCgroupOptions(); err != nil {
		return h, err
	} else if stripped {
		h.Warnings = append(h.Warnings, "cgroup2 had lost nsdelegate or memory_recursiveprot (lxcfs and CRIU strip them); mounted again with both")
	}
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err == nil {
		h.CPUs, err = systemd.ParseCPUList(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return h, fmt.Errorf("read the list of online CPUs: %w", err)
	}
	h.probeLXCFS(lxcfsRoot)
	return h, nil
}

// probeOCI finds the OCI runtime. It is not run: that would take longer than
// all other steps of the daemon's start, and a runtime that cannot be executed
// says so at the first start of an environment.
func (h *Host) probeOCI(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("the OCI runtime %s is missing: install the package %s", name, filepath.Base(name))
	}
	h.OCI, err = filepath.Abs(path)
	return err
}

// probeKernel checks for what a kernel can be built or booted without.
func probeKernel() error {
	for file, what := range map[string]string{
		"/proc/self/ns/user":   "user namespaces (CONFIG_USER_NS)",
		"/proc/self/ns/cgroup": "cgroup namespaces (CONFIG_CGROUPS)",
		"/proc/self/ns/pid":    "PID namespaces (CONFIG_PID_NS)",
		"/proc/self/ns/net":    "network namespaces (CONFIG_NET_NS)",
	} {
		if _, err := os.Lstat(file); err != nil {
			return fmt.Errorf("this kernel has no %s", what)
		}
	}
	if _, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0); err != nil {
		return errors.New("this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)")
	}
	if text, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil {
		if n, _ := strconv.Atoi(strings.TrimSpace(string(text))); n == 0 {
			return errors.New("user namespaces are switched off: set the sysctl user.max_user_namespaces")
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return errors.New("cgroup2 is not mounted at " + cgroupRoot + ": boot with systemd.unified_cgroup_hierarchy=1")
	}
	return nil
}

// RestoreCgroupOptions mounts cgroup2 again with nsdelegate and
// memory_recursiveprot where they are missing, and tells whether they were.
// Without nsdelegate root in an environment without a user namespace can
// raise its own limits. The options belong to the hierarchy: any mount of it
// from the initial namespace without them clears them, as lxcfs does when it
// starts and CRIU when it dumps.
func RestoreCgroupOptions() (stripped bool, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	if has, ok := cgroupOptions(string(text)); !ok || has {
		return false, nil
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "nsdelegate,memory_recursiveprot"); err != nil {
		return true, fmt.Errorf("mount cgroup2 again with nsdelegate and memory_recursiveprot: %w", err)
	}
	return true, nil
}

// cgroupOptions finds the cgroup2 mount in a mountinfo text.
func cgroupOptions(mountinfo string) (has, found bool) {
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 7 || f[4] != cgroupRoot {
			continue
		}
		options := "," + f[len(f)-1] + ","
		return strings.Contains(options, ",nsdelegate,") && strings.Contains(options, ",memory_recursiveprot,"), true
	}
	return false, false
}

// lxcfsWanted are the files that show an environment its own limits.
var lxcfsWanted = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo",
	"/proc/stat", "/proc/swaps", "/proc/uptime", "/sys/devices/system/cpu/online",
}

func (h *Host) probeLXCFS(root string) {
	for _, file := range lxcfsWanted {
		if _, err := os.Stat(root + file); err == nil {
			h.LXCFSFiles = append(h.LXCFSFiles, file)
		}
	}
	if len(h.LXCFSFiles) == 0 {
		h.Warnings = append(h.Warnings, "lxcfs is not running: free and uptime inside show the host's values; install the package lxcfs")
		return
	}
	h.LXCFS = root
}
