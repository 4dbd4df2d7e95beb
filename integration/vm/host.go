package vm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// hostKey changes with this machine's kernel and its QEMU: what was probed with
// one, or frozen by one, is not valid for another.
func hostKey() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	version, _ := exec.Command("qemu-system-x86_64", "--version").Output()
	return shortHash(string(kernel), string(version))
}

// hostCPU is the model and the features of this machine's first processor.
func hostCPU() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	var lines []string
	for line := range strings.Lines(string(info)) {
		name, _, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name", "stepping", "microcode", "flags":
			lines = append(lines, line)
		case "":
			return strings.Join(lines, "")
		}
	}
	return strings.Join(lines, "")
}

func shortHash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:12]
}

// freePort is one that nobody listens on now; it may be taken before it is
// used, so its users try again with another.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startTime is when a process started, in clock ticks since boot: together with
// the pid it names the process for good. It is 0 when there is no such process
// or it is a zombie.
func startTime(pid int) uint64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return parseStartTime(string(stat))
}

// parseStartTime reads field 22 of /proc/PID/stat. The name in field 2 may
// contain blanks and parentheses.
func parseStartTime(stat string) uint64 {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0
	}
	ticks, _ := strconv.ParseUint(fields[19], 10, 64)
	return ticks
}
