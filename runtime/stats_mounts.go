package runtime

import (
	"fmt"
	"path"
	"strings"
	"unicode"
)

// Mount is a mounted file system as seen inside.
type Mount struct {
	Point  string // where, from the environment's root
	Type   string // "overlay", "ext4"
	Source string // base name of what is mounted: "overlay", "vdb1"
}

// Mounts lists where file systems that keep data are mounted inside, at most
// limit, in the order in which they were mounted. Those of the kernel, in memory
// or of lxcfs are left out.
//
// The text is the environment's: it decides how long the list is and what the
// names are. Nothing of it is looked up.
func (i *Instance) Mounts(limit int) ([]Mount, error) {
	text, err := readProc(fmt.Sprintf("/proc/%d/mountinfo", i.rec.Init))
	if err != nil || dead(i.pidfd) { // the PID may have been another process's by now
		return nil, fmt.Errorf("mounts of %s: it has ended", i.Name())
	}
	return parseMounts(string(text), limit), nil
}

// withoutDevice are the file systems that keep data though no block device
// is seen below them.
var withoutDevice = map[string]bool{
	"overlay": true, "btrfs": true, "bcachefs": true, "zfs": true, "nfs": true, "nfs4": true, "cifs": true,
	"smb3": true, "ceph": true, "9p": true, "virtiofs": true,
}

// parseMounts reads proc_pid_mountinfo(5): id, parent, device, root, mount
// point and options, then optional fields up to a "-", type and source.
func parseMounts(text string, limit int) (list []Mount) {
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 2 {
			continue
		}
		if strings.HasPrefix(f[2], "0:") && !withoutDevice[g[0]] {
			continue
		}
		if len(list) == limit {
			break
		}
		list = append(list, Mount{Point: plainText(f[4]), Type: plainText(g[0]), Source: plainText(path.Base(g[1]))})
	}
	return list
}

// unescape undoes the kernel's escapes of what separates fields and lines.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#")

// plainText is PlainText of what the kernel has escaped.
func plainText(s string) string { return PlainText(unescape.Replace(s)) }

// PlainText makes a name that root inside chose safe to print on a terminal.
func PlainText(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
