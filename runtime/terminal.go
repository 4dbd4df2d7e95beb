package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// The first console is init's /dev/console, a pty the OCI runtime opens. The
// others are ptys that the daemon opens in the environment's own devpts, so
// that there /dev/pts, tty(1) and the limit of ptys are right for them as well.

// Consoles are the environment's, the first one first.
func (i *Instance) Consoles() []*Console {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.consoles)
}

// Console returns the console with an id of the definition, see
// xml.ConsoleID.
func (i *Instance) Console(id string) (*Console, error) {
	for _, c := range i.Consoles() {
		if c.id == id || c.id == "" {
			return c, nil
		}
	}
	return nil, ErrNoConsole
}

// recordedConsoles are those the environment has, for a change to those of
// env.
func (i *Instance) recordedConsoles(env *xml.Environment) (list []xml.Console) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range i.rec.Consoles {
		if c.ID == "" && len(env.Consoles) > 0 {
			c.ID = env.Consoles[0].ID
		}
		list = append(list, xml.Console{ID: c.ID, LogFile: c.Log, LogAppend: true})
	}
	return list
}

// addConsole gives the environment one more console: a pty, and a link to it
// such as /dev/tty2 where that name is free.
func (i *Instance) addConsole(c xml.Console) error {
	log, err := openLog(c.LogFile, c.LogAppend)
	if err != nil {
		return err
	}
	master, number, err := i.openTerminal(ttyName(c.ID))
	if err != nil {
		log.close()
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	rec := recordedConsole{ID: c.ID, Number: i.freeNumber(), Path: fmt.Sprintf("/dev/pts/%d", number), Log: c.LogFile}
	i.rec.Consoles = append(i.rec.Consoles, rec)
	if err := i.rec.save(i.dir); err != nil {
		i.rec.Consoles = i.rec.Consoles[:len(i.rec.Consoles)-1]
		log.close()
		return errors.Join(err, master.Close())
	}
	i.consoles = append(i.consoles, newConsole(master, rec, log))
	return i.r.storeFD(consoleFDName(i.rec.UUID, rec.Number), master)
}

func (i *Instance) freeNumber() int {
	n := 0
	for slices.ContainsFunc(i.rec.Consoles, func(c recordedConsole) bool { return c.Number == n }) {
		n++
	}
	return n
}

// removeConsole hangs up: who has the terminal open inside gets SIGHUP and
// the end of file.
func (i *Instance) removeConsole(id string) error {
	i.mu.Lock()
	at := slices.IndexFunc(i.consoles, func(c *Console) bool { return c.id == id })
	if at < 0 {
		i.mu.Unlock()
		return nil // lost earlier
	}
	c := i.consoles[at]
	i.consoles = slices.Delete(i.consoles, at, at+1)
	i.rec.Consoles = slices.DeleteFunc(i.rec.Consoles, func(c recordedConsole) bool { return c.ID == id })
	err := i.rec.save(i.dir)
	i.mu.Unlock()
	i.r.dropFD(consoleFDName(i.rec.UUID, c.number))
	c.finish()
	return errors.Join(err, i.removeLink(ttyName(id), strings.TrimPrefix(c.path, "/dev/")))
}

// changeConsoles adds, removes and has others logged elsewhere: all or none.
func (i *Instance) changeConsoles(before, after []xml.Console) (err error) {
	is := func(c xml.Console) func(xml.Console) bool {
		return func(o xml.Console) bool { return o.ID == c.ID }
	}
	if len(before) > 0 && !slices.ContainsFunc(after, is(before[0])) {
		return fmt.Errorf("the first console of a running environment is its init's and cannot be taken away: use --config, it holds from the next start on: %w", ErrUnsupported)
	}
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()
	for _, c := range after {
		at := slices.IndexFunc(before, is(c))
		switch {
		case at < 0:
			undo = append(undo, func() error { return i.removeConsole(c.ID) })
			err = i.addConsole(c)
		case before[at] != c:
			undo = append(undo, func() error { return i.logConsole(before[at]) })
			err = i.logConsole(c)
		}
		if err != nil {
			return err
		}
	}
	for _, c := range before {
		if !slices.ContainsFunc(after, is(c)) {
			if err := i.removeConsole(c.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// logConsole has a console logged where c says.
func (i *Instance) logConsole(c xml.Console) error {
	console, err := i.Console(c.ID)
	if err != nil {
		return err
	}
	log, err := openLog(c.LogFile, c.LogAppend)
	if err != nil {
		return err
	}
	console.setLog(log)
	i.mu.Lock()
	defer i.mu.Unlock()
	for n := range i.rec.Consoles {
		if i.rec.Consoles[n].Number == console.number {
			i.rec.Consoles[n].Log = c.LogFile
		}
	}
	return i.rec.save(i.dir)
}

// ttyName is what a console is called inside besides its number: that of port
// 1 is tty2, as in libvirt's lxc driver. "" for one of another type.
func ttyName(id string) string {
	port := 0
	if n, err := fmt.Sscanf(id, "lxc %d", &port); n != 1 || err != nil {
		return ""
	}
	return fmt.Sprintf("tty%d", port+1)
}

// openTerminal opens a pty in the devpts of the environment. Its slave belongs
// to root there.
func (i *Instance) openTerminal(link string) (master *os.File, number int, err error) {
	type terminal struct {
		master *os.File
		number int
	}
	t, err := patiently(context.Background(), i, func() (made terminal, err error) {
		err = i.asUser(Owner{}, "console", func(t *tree) error {
			fd, err := openMaster(t)
			if err != nil {
				return err
			}
			if made.number, err = unlockSlave(fd); err != nil {
				unix.Close(fd)
				return err
			}
			made.master = masterFile(fd)
			if link != "" {
				if dev, err := t.open("dev", unix.O_PATH|unix.O_DIRECTORY); err == nil {
					unix.Symlinkat(fmt.Sprintf("pts/%d", made.number), dev, link) // a name that is taken stays what it is
					unix.Close(dev)
				}
			}
			return nil
		})
		return made, err
	})
	return t.master, t.number, err
}

func openMaster(t *tree) (int, error) {
	pts, err := openDevpts(t)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pts)
	fd, err := openIn(pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOSPC) {
		return -1, errors.New("it has as many ptys as it may (numpty)")
	}
	return fd, err
}

func openDevpts(t *tree) (int, error) {
	dir, err := t.open("dev/pts", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return -1, err
	}
	var fs unix.Statfs_t
	if err = unix.Fstatfs(dir, &fs); err == nil && fs.Type != unix.DEVPTS_SUPER_MAGIC {
		err = errors.New("its /dev/pts is not devpts any more")
	}
	if err != nil {
		unix.Close(dir)
		return -1, err
	}
	return dir, nil
}

// unlockSlave is unlockpt(3), and ptsname(3)'s number.
func unlockSlave(master int) (number int, err error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	n, err := unix.IoctlGetUint32(master, unix.TIOCGPTN)
	return int(n), err
}

// removeLink removes a link in /dev that is still what it was made as.
func (i *Instance) removeLink(link, target string) error {
	if link == "" {
		return nil
	}
	return i.inTime(func() error {
		return i.asUser(Owner{}, "console", func(t *tree) error {
			dev, err := t.open("dev", unix.O_PATH|unix.O_DIRECTORY)
			if err != nil {
				return nil // without a /dev there is no link either
			}
			defer unix.Close(dev)
			buf := make([]byte, 64)
			if n, err := unix.Readlinkat(dev, link, buf); err == nil && string(buf[:n]) == target {
				unix.Unlinkat(dev, link, 0)
			}
			return nil
		})
	})
}
