package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"virtvzd/xml"
)

// Leave is a migration that an environment is leaving by.
type Leave struct {
	Session
	Address string // of the destination
	Flags   uint32 // the caller's
	Sent    bool   // all of it: only the destination knows what became of it
}

func (i *Instance) noteMigration(m *Leave, dir string, wasFrozen bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Migration, i.rec.Checkpoint = m, &recordedCheckpoint{Dir: dir, WasFrozen: wasFrozen}
	return i.rec.save(i.dir)
}

func (i *Instance) noteSent() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Migration.Sent = true
	return i.rec.save(i.dir)
}

// Leaving tells of a migration of which only the destination knows what became,
// also of one that an earlier daemon began; nil: there is none.
func (i *Instance) Leaving() *Leave {
	i.mu.Lock()
	defer i.mu.Unlock()
	if m := i.rec.Migration; m != nil && m.Sent {
		l := *m
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
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	link, err := dial(ctx)
	if err != nil {
		return Forgotten, err
	}
	ch := newChannel(link)
	defer ch.close(nil)
	if err := ch.send(hello{Version: migrationVersion, Session: l.Session, Settle: true}); err != nil {
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
// destination may forget it: a daemon that is killed before asks again.
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
	var err error
	switch o {
	case Committed, Lost:
		err = i.Kill(ctx)
	case Aborted:
		err = i.abandonMigration(ctx, interfaces)
	default:
		err = fmt.Errorf("it is not known what became of %s at its destination", i.Name())
	}
	if err == nil && m != nil {
		m.ch.send(part{What: partForget}) // else it remembers it for a while
	}
	return errors.Join(left, err)
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
	case <-i.exited:
		return nil // there is nothing to go on
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
	return errors.Join(err, i.announce())
}
