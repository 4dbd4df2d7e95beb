package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// savedCgroup is one cgroup that an environment has made below its scope.
type savedCgroup struct {
	Path        string // from the scope; "" is the scope itself
	Controllers string // given on to its children, as cgroup.subtree_control has them
	UID, GID    uint32 // owner, as seen inside
}

// maxCgroups is far above what a systemd with a thousand services has.
const maxCgroups = 16384

// saveCgroups lists the cgroups of an environment, parents first. CRIU itself
// knows those with processes in them, but a systemd watches empty ones, too.
func saveCgroups(scope string, uids, gids []idRange) (list []savedCgroup, err error) {
	err = filepath.WalkDir(scope, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		if len(list) == maxCgroups {
			return fmt.Errorf("there are more than %d cgroups inside", maxCgroups)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		controllers, err := os.ReadFile(filepath.Join(path, "cgroup.subtree_control"))
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // of a threaded one
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(scope, path)
		list = append(list, savedCgroup{
			Path: strings.TrimPrefix(rel, "."), Controllers: strings.TrimSpace(string(controllers)),
			UID: insideID(uids, st.Uid), GID: insideID(gids, st.Gid),
		})
		return nil
	})
	return list, err
}

// insideID is the opposite of hostID.
func insideID(ids []idRange, host uint32) uint32 {
	if len(ids) == 0 {
		return host
	}
	for _, r := range ids {
		if host >= r.Host && host-r.Host < r.Count {
			return r.Inside + host - r.Host
		}
	}
	return 65534
}

// outsideID is hostID for maps that may be empty: the host's own ids.
func outsideID(ids []idRange, inside uint32) uint32 {
	if len(ids) == 0 {
		return inside
	}
	return hostID(ids, inside)
}

// restoreLeaf is the cgroup in which init waits until it is where it was: one
// that gives controllers to its children may have no processes itself.
const restoreLeaf = "virtvzd-restore"

// crunProxy is the cgroup in which a process of crun's holds the scope while
// CRIU works.
const crunProxy = ".proxy-crun"

// restoreCgroups makes the saved cgroups in a fresh scope. init, if it is still
// in the scope itself, waits in the leaf where that may have no processes; those
// that restore go to out: they are none of the environment's, whose limits are
// not for them and which may be frozen.
func restoreCgroups(scope, out string, init int, list []savedCgroup, uids, gids []idRange) error {
	if err := moveOut(scope, out, init); err != nil {
		return err
	}
	if len(list) > 0 && list[0].Controllers != "" {
		if err := moveToLeaf(scope); err != nil {
			return err
		}
	}
	for _, c := range list {
		dir := filepath.Join(scope, c.Path)
		if !filepath.IsLocal(c.Path) && c.Path != "" {
			return fmt.Errorf("a saved cgroup is called %q", c.Path)
		}
		if c.Path != "" {
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { // CRIU has made those it knows
				return err
			}
			uid, gid := int(outsideID(uids, c.UID)), int(outsideID(gids, c.GID))
			for _, name := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
				if err := os.Lchown(filepath.Join(dir, name), uid, gid); err != nil {
					return err
				}
			}
		}
		for _, name := range strings.Fields(c.Controllers) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0); err != nil {
				return fmt.Errorf("give the controller %s to the cgroup %s: %w", name, dir, err)
			}
		}
	}
	return nil
}

// moveOut moves all but init from the scope to out. crun's proxy is to leave
// its cgroup and to remove that in the end, so it has one of its own there, too.
func moveOut(scope, out string, init int) error {
	proxies := filepath.Join(out, crunProxy)
	if err := os.MkdirAll(proxies, 0o755); err != nil {
		return err
	}
	for _, move := range []struct{ from, to string }{{scope, out}, {filepath.Join(scope, crunProxy), proxies}} {
		for more := true; more; { // they may fork
			pids, err := processesOf(move.from)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			more = false
			for _, pid := range pids {
				if pid == init {
					continue
				}
				more = true
				if err := moveTo(move.to, pid); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// moveToLeaf is for what moveOut has left: init, or nothing.
func moveToLeaf(scope string) error {
	pids, err := processesOf(scope)
	if err != nil || len(pids) == 0 {
		return err
	}
	leaf := filepath.Join(scope, restoreLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	return moveTo(leaf, pids[0])
}

func processesOf(cgroup string) (pids []int, err error) {
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	for word := range strings.FieldsSeq(string(text)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, err
}

func moveTo(cgroup string, pid int) error {
	err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("move to the cgroup %s: %w", cgroup, err)
	}
	return nil
}

// leaveLeaf takes away what was only for the restore.
func leaveLeaf(scope, out string) error {
	for _, dir := range []string{filepath.Join(scope, restoreLeaf), filepath.Join(scope, crunProxy), filepath.Join(out, crunProxy), out} {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
