package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"virtvzd/systemd"
)

// Ended is an environment that Recover found a record of and no living init.
type Ended struct {
	UUID    [16]byte
	Name    string
	Started bool // it had been started (perhaps paused), or was decided to run here, and ended while no daemon looked; false: its start was cut off
	Exit    Exit
}

// askTime is how long Recover as a whole asks libvirt's daemons, which may hang:
// nobody is served meanwhile, and the service manager does not wait for ever.
const askTime = 20 * time.Second

// Recover continues where an earlier daemon stopped, however it did: running
// environments are adopted, what is left of others is removed. stored are the
// descriptors the service manager kept, by name; they are ours from here on.
// It is called once, before the first Start. An error about one
// environment does not keep it from the others.
func (r *Runtime) Recover(ctx context.Context, stored map[string]*os.File) (adopted []*Instance, ended []Ended, err error) {
	entries, err := os.ReadDir(r.config.StateDir)
	if err != nil {
		return nil, nil, err
	}
	var failures []error
	asking, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	for _, e := range entries {
		uuid, ok := parseUUID(e.Name())
		if !ok || !e.IsDir() {
			continue
		}
		rec, err := r.recordOf(uuid)
		if err != nil {
			failures = append(failures, err)
			leave(stored, formatUUID(uuid))
			continue
		}
		if i := r.adopt(rec, stored); i != nil {
			adopted = append(adopted, i)
			failures = append(failures, i.releaseAside(), i.keepLeaving(), i.serveAgain(ctx))
			continue
		}
		if err := r.cutOff(rec); err != nil {
			failures = append(failures, err)
		}
		if space := stored[spaceFDName(rec.UUID)]; space != nil {
			r.holdSpace(uuid, space)
			delete(stored, spaceFDName(rec.UUID))
		}
		started := rec.Phase != starting && (rec.Phase != held || r.committedHere(rec.Session))
		gone := Ended{UUID: uuid, Name: rec.Name, Started: started, Exit: exitFromStore(rec, stored).of(rec)}
		if err := r.cleanupWithin(ctx, asking, rec); err != nil {
			failures = append(failures, err)
		}
		ended = append(ended, gone)
	}
	failures = append(failures, r.endUnfinishedImages(ctx), r.sweepSaves(adopted))
	r.asked, err = r.recoverSessions()
	failures = append(failures, err)
	for name, f := range stored {
		f.Close()
		r.dropFD(name)
	}
	go func() { // libvirt's daemons may be slow, or away
		ctx := context.WithoutCancel(ctx)
		r.retryDebts(ctx)
		for _, i := range adopted {
			i.renewFilters(ctx)
		}
	}()
	return adopted, ended, errors.Join(failures...)
}

// recordOf reads the record, or makes one with which nothing but the directory
// is removed: before the record is written nothing else is made, and one that
// cannot be read cannot be acted upon.
func (r *Runtime) recordOf(uuid [16]byte) (*record, error) {
	rec, err := loadRecord(r.dir(uuid))
	if err != nil {
		return nil, fmt.Errorf("the record of a running environment cannot be read, so it is left alone: %w", err)
	}
	if rec == nil {
		rec = &record{UUID: formatUUID(uuid), Name: formatUUID(uuid), Phase: starting}
	}
	if rec.UUID != formatUUID(uuid) {
		return nil, fmt.Errorf("%s: the record is another environment's (%s)", r.dir(uuid), rec.UUID)
	}
	return rec, nil
}

// leave keeps the service manager's descriptors of an environment for a later
// daemon; our duplicates are closed.
func leave(stored map[string]*os.File, uuid string) {
	for name, f := range stored {
		if name == initFDName(uuid) || name == spaceFDName(uuid) || strings.HasPrefix(name, "vz-console-"+uuid+"-") || strings.HasPrefix(name, keptFDPrefix(uuid)) {
			f.Close()
			delete(stored, name)
		}
	}
}

// adopt returns the instance of a record whose init lives, or nil.
func (r *Runtime) adopt(rec *record, stored map[string]*os.File) *Instance {
	if rec.Phase == starting || rec.Init == 0 || rec.Follows != "" || rec.Phase == held && !r.committedHere(rec.Session) {
		return nil
	}
	pidfd, err := openPidfd(rec.Init, rec.InitStart)
	if err != nil {
		return nil
	}
	if dead(pidfd) || !inScope(rec) {
		pidfd.Close()
		return nil
	}
	i := newInstance(r, rec, pidfd)
	if f := stored[initFDName(rec.UUID)]; f != nil {
		f.Close() // the one just opened is the same process; keep that in the store
		delete(stored, initFDName(rec.UUID))
	}
	for _, c := range rec.Consoles {
		if console := takeConsole(c, stored, consoleFDName(rec.UUID, c.Number)); console != nil {
			i.consoles = append(i.consoles, console)
		}
	}
	r.adoptLinks(i, stored[spaceFDName(rec.UUID)])
	delete(stored, spaceFDName(rec.UUID))
	i.adoptKept(stored)
	i.watch()
	r.keep(i, rec.claim())
	i.mu.Lock()
	i.guardFrozen()
	i.mu.Unlock()
	if rec.Freezing { // who asked for it was never told that it is done
		if _, err := i.thawFilesystems(nil); err != nil {
			i.warn(fmt.Sprintf("file systems of %s may be frozen: %v", rec.Name, err))
		}
	}
	return i
}

// inScope guards against a record that names somebody else's process.
func inScope(rec *record) bool {
	cgroup, err := systemd.ControlGroupOf(rec.Init, rec.Scope)
	return err == nil && cgroup == rec.Cgroup
}

// takeConsole returns nil when the master was not kept.
func takeConsole(c recordedConsole, stored map[string]*os.File, name string) *Console {
	f := stored[name]
	if f == nil {
		return nil
	}
	delete(stored, name)
	fd, err := dupFD(f) // for a file that the poller takes, which f need not be
	f.Close()
	if err != nil {
		return nil
	}
	log, _ := openLog(c.Log, true) // without its log the console is still of use
	return newConsole(masterFile(fd), c, log)
}

// exitFromStore asks the kept pidfd how init ended.
func exitFromStore(rec *record, stored map[string]*os.File) Exit {
	f := stored[initFDName(rec.UUID)]
	if f == nil || !dead(f) {
		return Exit{}
	}
	return collect(f)
}
