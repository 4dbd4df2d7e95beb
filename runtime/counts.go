package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// setCounts changes the limits that systemd knows nothing of, each on its own.
func (i *Instance) setCounts(before, after xml.CountLimits) error {
	return errors.Join(i.setCgroups(before, after), i.setSharedPages(before, after), i.setTerminals(before, after))
}

// setCgroups changes how many cgroups there may be inside.
func (i *Instance) setCgroups(before, after xml.CountLimits) error {
	if before.Cgroups == after.Cgroups {
		return nil
	}
	return i.writeCgroup("cgroup.max.descendants", orMax(after.Cgroups))
}

func (i *Instance) writeCgroup(name, value string) error {
	if err := os.WriteFile(filepath.Join(i.CgroupPath(), name), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s of %s: %w", name, i.Name(), err)
	}
	return nil
}

func orMax(n uint64) string {
	if n == unlimited {
		return "max"
	}
	return strconv.FormatUint(n, 10)
}

// maxSharedPages is the kernel's default, SHMALL: no limit.
const maxSharedPages = ^uint64(0) - 1<<24

// setSharedPages sets kernel.shmall of the environment's IPC namespace, which
// is that of the thread that writes. From Linux 6.9 on that is for the
// namespace's root to do, before for the host's.
func (i *Instance) setSharedPages(before, after xml.CountLimits) error {
	pages := after.SharedPages
	if before.SharedPages == pages {
		return nil
	}
	return i.inside("shmpages", []string{"ipc"}, func() error {
		text := []byte(strconv.FormatUint(min(pages, maxSharedPages), 10))
		err := os.WriteFile("/proc/sys/kernel/shmall", text, 0)
		if !errors.Is(err, unix.EACCES) || i.rec.IDMap.Mode == xml.Privileged {
			return err
		}
		// Not unix.Setresuid, which is for all threads of the process: this one
		// ends when it is done.
		uid, _ := i.rootIDs()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			return errno
		}
		return os.WriteFile("/proc/sys/kernel/shmall", text, 0)
	})
}

// maxTerminals is the kernel's default of a devpts instance, NR_UNIX98_PTY_MAX.
const maxTerminals = 1 << 20

// setTerminals reconfigures the environment's devpts, /dev/pts in its mount
// namespace. The kernel takes all options anew, with ids of the host.
func (i *Instance) setTerminals(before, after xml.CountLimits) error {
	n := after.Terminals
	if before.Terminals == n {
		return nil
	}
	return i.inTime(func() error {
		return i.inside("numpty", []string{"mnt"}, func() error {
			t, err := openTreeRoot("/")
			if err != nil {
				return err
			}
			defer t.Close()
			dir, err := openDevpts(t)
			if err != nil {
				return err
			}
			defer unix.Close(dir)
			config, err := unix.Fspick(dir, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(config)
			options := [][2]string{{"mode", "620"}, {"ptmxmode", "666"}, {"max", strconv.FormatUint(min(n, maxTerminals), 10)}}
			if gid := hostID(ranges(i.rec.IDMap.GIDs), 5); i.rec.IDMap.Mode == xml.Privileged {
				options = append(options, [2]string{"gid", "5"})
			} else if gid != 65534 {
				options = append(options, [2]string{"gid", strconv.FormatUint(uint64(gid), 10)})
			}
			for _, o := range options {
				if err := unix.FsconfigSetString(config, o[0], o[1]); err != nil {
					return err
				}
			}
			return unix.FsconfigReconfigure(config)
		})
	})
}
