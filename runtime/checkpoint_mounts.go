package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// externalMount is a mount that an environment has of the host's: CRIU leaves
// it out of a dump and binds Source again at a restore.
type externalMount struct {
	Target string // inside
	Source string // on the host
}

// hostMounts are the file systems of the host's of which files are mounted
// inside, by device, and the files.
type hostMounts map[string]hostMount

type hostMount struct {
	dir   string
	files []string // from the file system's root
}

func (h Host) hostMounts() hostMounts {
	m := hostMounts{}
	var nodes []string
	for _, node := range hostNodes {
		nodes = append(nodes, strings.TrimPrefix(node, "/dev"))
	}
	m.add("/dev", nodes)
	if h.LXCFS != "" {
		m.add(h.LXCFS, h.LXCFSFiles)
	}
	return m
}

func (m hostMounts) add(dir string, files []string) {
	info, err := os.Stat(dir)
	if err != nil {
		return
	}
	dev := info.Sys().(*syscall.Stat_t).Dev
	m[fmt.Sprintf("%d:%d", dev>>8&0xfff|dev>>32&^0xfff, dev&0xff|dev>>12&^0xff)] = hostMount{dir, files}
}

// savedTypes are the file systems that CRIU makes again as they were, with
// what is in them where that is in memory.
var savedTypes = []string{"tmpfs", "proc", "sysfs", "cgroup2", "devpts"}

// plainTarget is a path that means itself in CRIU's configuration.
var plainTarget = regexp.MustCompile(`^/[A-Za-z0-9/._@%+=-]+$`)

// sortMounts tells of all mounts below an environment's root (in the form of
// proc_pid_mountinfo(5)) which are the host's, and which cannot be
// checkpointed, each as what to do. The text is the environment's: what it names
// is believed of those files only which the host gives to all.
func sortMounts(text string, host hostMounts) (external []externalMount, obstacles []string) {
	type mount struct{ dev, root, point, kind string }
	var mounts []mount
	whole := map[string]bool{} // devices of which all is mounted somewhere
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 2 {
			continue
		}
		mounts = append(mounts, mount{f[2], f[3], unescape.Replace(f[4]), g[0]})
		whole[f[2]] = whole[f[2]] || f[3] == "/"
	}
	for _, m := range mounts {
		given, ours := host[m.dev]
		switch {
		case m.point == "/":
		case ours && slices.Contains(given.files, m.root) && plainTarget.MatchString(m.point):
			external = append(external, externalMount{m.point, filepath.Join(given.dir, m.root)})
		case slices.Contains(savedTypes, m.kind) && (whole[m.dev] || m.kind == "cgroup2"):
		default:
			obstacles = append(obstacles, fmt.Sprintf("the filesystem on %s (%s): detach it, or unmount it inside", plainText(m.point), plainText(m.kind)))
		}
		if len(obstacles) == 20 {
			break
		}
	}
	return external, obstacles
}

// lines are these mounts for CRIU's configuration: a dump calls each by its
// target, a restore by its source.
func externalLines(list []externalMount, restore bool) (lines []string) {
	for _, m := range list {
		value := m.Target
		if restore {
			value = m.Source
		}
		lines = append(lines, fmt.Sprintf("external mnt[%s]:%s", m.Target, value))
	}
	return lines
}
