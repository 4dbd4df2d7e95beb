package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// Commit decides that the environment runs here, and lets it go. Until it
// returns without an error nothing has; after that, also if this host crashes,
// it never goes on at the source.
func (in *Incoming) Commit(ctx context.Context) (*Instance, error) {
	in.deciding.Lock()
	defer in.deciding.Unlock()
	in.mu.Lock()
	i, outcome := in.instance, in.outcome
	in.mu.Unlock()
	switch {
	case outcome != Undecided || in.ctx.Err() != nil:
		return nil, errors.New("the migration was given up")
	case i == nil && !in.offer.Inactive, in.offer.Inactive && !in.complete():
		return nil, errors.New("the environment is not here yet")
	}
	if i != nil {
		select {
		case <-i.Exited():
			return nil, errors.New("the environment has ended while it was held")
		default:
		}
	}
	if err := in.written(); err != nil {
		return nil, err
	}
	if err := atStep("commit"); err != nil {
		return nil, err
	}
	s := *in.session
	s.Outcome = Committed
	if err := in.r.saveSession(&s); err != nil {
		return nil, err
	}
	in.settle(Committed)
	if err := atStep("committed"); err != nil {
		return i, err
	}
	in.r.setAccount(in.env.UUID, in.traffic)
	if i == nil { // the source has nothing to ask about
		return nil, errors.Join(in.r.keepDisk(&s), in.r.forgetSession(s.ID))
	}
	err := i.FinishMigration(ctx, in.env.Interfaces)
	if !in.Follows() {
		err = errors.Join(err, os.RemoveAll(in.dir()))
	}
	return i, err
}

// writeBack has what has come below dir written to the disk, beside all else.
func (in *Incoming) writeBack(dir string) error {
	f, err := os.Open(dir) // which may be moved meanwhile
	if err != nil {
		return err
	}
	write := syncfs
	in.writing.Go(func() {
		defer f.Close()
		if err := write(int(f.Fd())); err != nil {
			in.mu.Lock()
			in.unwritten = fmt.Errorf("what has come cannot be written to the disk: %w", err)
			in.mu.Unlock()
		}
	})
	return nil
}

// written waits until all that has come is on the disk: the source deletes what
// it has of it when it is decided that the environment runs here.
func (in *Incoming) written() error {
	in.writing.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.unwritten
}

// syncfs is the kernel's; a test lets it fail.
var syncfs = unix.Syncfs

// settle notes what was decided. Of what it notes sources are told that ask, but
// only when no memory follows any more.
func (in *Incoming) settle(o Outcome) {
	in.mu.Lock()
	in.outcome = o
	in.mu.Unlock()
	if o == Aborted || !in.Follows() {
		in.forget()
	}
	if o == Aborted {
		close(in.ended)
	}
}

// forget ends what expect began: from here on the session on the disk is asked.
func (in *Incoming) forget() {
	in.r.mu.Lock()
	defer in.r.mu.Unlock()
	delete(in.r.incoming, in.session.ID)
}

// FinishMigration lets an environment go that came here, also one that an earlier
// daemon had decided about. After an error it is here all the same, and Resume
// lets it go if that did not: with an interface that is not connected it stays
// frozen.
func (i *Instance) FinishMigration(ctx context.Context, interfaces []xml.Interface) error {
	i.mu.Lock()
	id := i.rec.Session
	i.mu.Unlock()
	if id == "" {
		return nil
	}
	s, err := i.r.loadSession(id)
	if err != nil {
		return err
	}
	failed := i.replugLinks(interfaces)
	i.mu.Lock()
	i.rec.Session, i.rec.Phase = "", running
	err = i.rec.save(i.dir)
	i.mu.Unlock()
	if err != nil {
		return errors.Join(failed, err)
	}
	if failed == nil && !s.Paused {
		failed = i.thaw(ctx)
	}
	go i.register(context.WithoutCancel(ctx), i.machine())
	return errors.Join(failed, i.announce(), i.r.keepDisk(s))
}

// Abort gives it up: nothing of it is left, and what was here is again. It
// returns errCommitted if it runs here already.
func (in *Incoming) Abort(ctx context.Context) error {
	in.deciding.Lock()
	defer in.deciding.Unlock()
	switch in.Outcome() {
	case Committed, Lost:
		return errCommitted
	case Aborted:
		return nil
	}
	in.cancel()
	in.arrival.fail(errors.New("the migration was given up"))
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := in.endProcesses(undo); err != nil {
		return err // it may run: nothing is decided
	}
	err := errors.Join(os.RemoveAll(in.dir()), in.r.undoDisk(in.session))
	if err == nil {
		s := *in.session
		s.Outcome = Aborted
		err = in.r.saveSession(&s)
	}
	in.settle(Aborted)
	return err
}

// endProcesses waits for a start that cannot succeed any more, or ends what it
// has started.
func (in *Incoming) endProcesses(ctx context.Context) error {
	in.mu.Lock()
	idle, started := in.idle, in.started
	in.mu.Unlock()
	for _, end := range []func() bool{
		func() bool { return idle == nil || closedBefore(ctx, idle) },
		func() bool {
			if started == nil {
				return true
			}
			select {
			case err := <-started:
				started <- err
				return true
			case <-ctx.Done():
				return false
			}
		},
	} {
		if !end() {
			return fmt.Errorf("%s cannot be given up: %w", in.env.Name, ctx.Err())
		}
	}
	in.mu.Lock()
	i, lazy := in.instance, in.lazy
	in.mu.Unlock()
	if lazy != nil {
		defer lazy.end()
	}
	if i == nil {
		return nil
	}
	if err := i.Kill(ctx); err != nil {
		return err
	}
	return i.Release(ctx)
}
