package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"virtvzd/xml"
)

// Leave is a migration that an environment is leaving by.
type Leave struct {
	Session
	UUID    [16]byte `json:"-"` // of the environment
	Name    string
	Address string  // of the destination
	Flags   uint32  // the caller's
	Sent    bool    // all of it: only the destination knows what became of it
	Outcome Outcome `json:",omitempty"` // what that said, while something is still to be done here
}

func (i *Instance) noteMigration(m *Leave, dir string, wasFrozen bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Migration, i.rec.Checkpoint = m, &recordedCheckpoint{Dir: dir, WasFrozen: wasFrozen}
	return i.rec.save(i.dir)
}

// noteSent writes it down so that it survives a crash of the host, too.
func (i *Instance) noteSent() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	l := *i.rec.Migration
	l.UUID, l.Name, l.Sent = i.uuid, i.rec.Name, true
	if err := i.r.saveLeave(&l); err != nil {
		return err
	}
	i.rec.Migration = &l
	return i.rec.save(i.dir)
}

// keepLeaving is noteSent for what an earlier daemon has noted in its state alone.
func (i *Instance) keepLeaving() error {
	l := i.Leaving()
	if l == nil {
		return nil
	}
	if known, err := i.r.Left(i.uuid); err != nil || known != nil {
		return err
	}
	l.Name = i.Name()
	return i.r.saveLeave(l)
}

// leavesDir has a file for each environment that may run elsewhere, from before
// its destination can have all of it until it is known, and done, what follows.
func (r *Runtime) leavesDir() string { return filepath.Join(r.config.DataDir, "leaving") }

func (r *Runtime) leaveFile(uuid [16]byte) string {
	return filepath.Join(r.leavesDir(), formatUUID(uuid)+".json")
}

func (r *Runtime) saveLeave(l *Leave) error {
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.leavesDir(), 0o700); err != nil {
		return err
	}
	return replaceFileSynced(r.leaveFile(l.UUID), body)
}

// Left is Leaving of an environment that may not be here any more: of one that
// ended with this host, or by itself.
func (r *Runtime) Left(uuid [16]byte) (*Leave, error) {
	body, err := os.ReadFile(r.leaveFile(uuid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	l := &Leave{UUID: uuid}
	if err == nil {
		err = json.Unmarshal(body, l)
	}
	if err != nil {
		return nil, fmt.Errorf("it may run on another host, and the file that says on which cannot be read: %s: %w", r.leaveFile(uuid), err)
	}
	return l, nil
}

// AllLeft lists them.
func (r *Runtime) AllLeft() (list []*Leave, err error) {
	entries, err := os.ReadDir(r.leavesDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		name, isLeave := strings.CutSuffix(e.Name(), ".json")
		uuid, ok := parseUUID(name)
		if !isLeave || !ok {
			continue
		}
		l, bad := r.Left(uuid)
		if l != nil {
			list = append(list, l)
		}
		err = errors.Join(err, bad)
	}
	return list, err
}

// ForgetLeft is for an environment of which it is known, or was said, that it
// does not run elsewhere, or that it does and nothing more is to be done here. It
// tells whether there was anything to be forgotten.
func (r *Runtime) ForgetLeft(uuid [16]byte) (bool, error) {
	err := os.Remove(r.leaveFile(uuid))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil { // it must not be back after a crash of the host
		err = syncDirectory(r.leavesDir())
	}
	return true, err
}

// ErrLeft is ErrLeaving for one of which nothing runs here any more.
var ErrLeft = errors.New("what became of it there is not known yet: 'virsh start --force-boot' if it does not run there, 'virsh destroy' if it does")

// RefuseLeft is for what would make another of it.
func (r *Runtime) RefuseLeft(uuid [16]byte) error {
	l, err := r.Left(uuid)
	if err == nil && l != nil {
		err = fmt.Errorf("%s was sent to %s, and %w", l.Name, l.Address, ErrLeft)
	}
	return err
}

// Leaving tells of a migration of which only the destination knows what became,
// also of one that an earlier daemon began; nil: there is none.
func (i *Instance) Leaving() *Leave {
	i.mu.Lock()
	defer i.mu.Unlock()
	if m := i.rec.Migration; m != nil && m.Sent {
		l := *m
		l.UUID = i.uuid
		return &l
	}
	return nil
}

// ErrLeaving is returned for what would make another of an environment that may
// run elsewhere, or connect it again.
var ErrLeaving = errors.New("it was sent to another host, and what became of it there is not known yet: 'virsh resume' if it does not run there, 'virsh destroy' if it does")

// RefuseLeaving is for that.
func (i *Instance) RefuseLeaving() error {
	if i.Leaving() != nil {
		return fmt.Errorf("%s: %w", i.Name(), ErrLeaving)
	}
	return nil
}

// settleTimeout bounds one question to the destination. It may have to end
// processes before it can answer.
const settleTimeout = time.Minute

// SettleMigration asks the destination what became of the environment that was sent
// there: if nothing did so far, nothing will. dial makes a connection if that of
// the migration has ended. While memory follows, the answer takes as long as that.
func (i *Instance) SettleMigration(ctx context.Context, dial func(context.Context) (io.ReadWriteCloser, error)) (Outcome, error) {
	l := i.Leaving()
	if l == nil {
		return Aborted, nil
	}
	i.mu.Lock()
	m := i.migration
	i.mu.Unlock()
	if m != nil {
		if outcome, err := m.settle(ctx); err == nil {
			return outcome, nil
		}
	}
	return AskDestination(ctx, l.Session, dial)
}

// AskDestination is SettleMigration on a connection that dial makes, for an
// environment of which nothing is here any more.
func AskDestination(ctx context.Context, s Session, dial func(context.Context) (io.ReadWriteCloser, error)) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	link, err := dial(ctx)
	if err != nil {
		return Forgotten, err
	}
	ch := newChannel(link)
	defer ch.close(nil)
	if err := ch.send(hello{Version: migrationVersion, Session: s, Settle: true}); err != nil {
		return Forgotten, err
	}
	var w welcome
	err = ch.receive(ctx, &w)
	return w.Outcome, err
}

// settle asks on the connection of the migration. Where memory follows on it, the
// connection ends by itself when nothing is heard.
func (m *outgoing) settle(ctx context.Context) (Outcome, error) {
	if !m.lazy {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, settleTimeout)
		defer cancel()
	}
	if err := m.ch.send(part{What: partSettle}); err != nil {
		return Forgotten, err
	}
	var answer done
	err := m.ch.receive(ctx, &answer)
	return answer.Outcome, err
}

// EndMigration is for an environment of which it is known what became of it:
// what runs elsewhere ends here, and what does not goes on. Only then the
// destination may forget it: a daemon that is killed before asks again. What
// ended here is remembered until ForgetLeft: it must not be started again before
// all is done that follows.
func (i *Instance) EndMigration(ctx context.Context, o Outcome, interfaces []xml.Interface) error {
	if err := atStep("migrate end"); err != nil {
		return err
	}
	i.mu.Lock()
	m := i.migration
	i.migration = nil
	i.mu.Unlock()
	var left error
	if m != nil {
		defer m.ch.close(nil)
		m.endMemory()
		if m.mirror != nil {
			m.mirror.close()
		}
		left = os.RemoveAll(m.dir)
	}
	var err, known error
	switch o {
	case Committed, Lost:
		if err = i.Kill(ctx); err == nil {
			known = i.r.noteOutcome(i.uuid, o)
		}
	case Aborted:
		err = i.abandonMigration(ctx, interfaces)
	default:
		err = fmt.Errorf("it is not known what became of %s at its destination", i.Name())
	}
	if err == nil && known == nil && m != nil {
		m.ch.send(part{What: partForget}) // else it remembers it for a while
	}
	return errors.Join(left, err)
}

// noteOutcome has a later daemon not ask again.
func (r *Runtime) noteOutcome(uuid [16]byte, o Outcome) error {
	l, err := r.Left(uuid)
	if err != nil || l == nil {
		return err
	}
	l.Outcome = o
	return r.saveLeave(l)
}

// abandonMigration lets the environment go on here.
func (i *Instance) abandonMigration(ctx context.Context, interfaces []xml.Interface) error {
	i.mu.Lock()
	m, c := i.rec.Migration, i.rec.Checkpoint
	i.mu.Unlock()
	if m == nil {
		return nil
	}
	select {
	case <-i.exited: // there is nothing to go on
		_, err := i.r.ForgetLeft(i.uuid)
		return err
	default:
	}
	if err := i.AbandonCheckpoint(ctx, interfaces); err != nil {
		return err
	}
	if c != nil {
		if err := os.RemoveAll(c.Dir); err != nil {
			return err
		}
	}
	i.mu.Lock()
	i.rec.Migration = nil
	err := i.rec.save(i.dir)
	i.mu.Unlock()
	_, left := i.r.ForgetLeft(i.uuid)
	return errors.Join(err, left, i.announce())
}
