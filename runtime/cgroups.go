package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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

// restoreLeaf is the cgroup in which CRIU works until all processes are where
// they were: one that gives controllers to its children may have none itself.
const restoreLeaf = "virtvzd-restore"

// restoreCgroups makes the saved cgroups in a fresh scope, whose own processes
// go to the leaf if there may be none.
func restoreCgroups(scope string, list []savedCgroup, uids, gids []idRange) error {
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

func moveToLeaf(scope string) error {
	leaf := filepath.Join(scope, restoreLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	for { // they may fork
		text, err := os.ReadFile(filepath.Join(scope, "cgroup.procs"))
		if err != nil {
			return err
		}
		pids := strings.Fields(string(text))
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(pid), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move to the cgroup %s: %w", leaf, err)
			}
		}
	}
	return nil
}

// leaveLeaf takes the leaf away again, and those that crun makes because the
// scope itself can have no process.
func leaveLeaf(scope string) error {
	for _, name := range []string{restoreLeaf, "proxy-crun", ".proxy-crun"} {
		if err := os.Remove(filepath.Join(scope, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
