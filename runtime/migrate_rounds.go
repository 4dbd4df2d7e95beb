package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// maxRounds bounds what is sent while the environment runs: one that writes
	// faster than can be sent stands still after that for as long as it takes.
	maxRounds = 8
	// converging is by how much a round must be less than the one before for
	// another to be worth while.
	converging = 0.8
)

// rounds sends memory and disk while the environment runs, again and again what
// has changed meanwhile, until little enough is left.
func (m *outgoing) rounds(ctx context.Context) error {
	var before time.Duration // the last round took
	var last uint64          // and sent
	worse := 0
	for m.round = 1; m.round <= maxRounds && !m.Control.switching(); m.round++ {
		if !m.i.Started() {
			return nil
		}
		m.Begun(m.round)
		m.Control.note(func(s *MigrationStats) { s.Round = m.round })
		began := time.Now()
		sent, err := m.oneRound(ctx)
		if err != nil {
			if ended := m.ended(); ended != nil {
				return ended
			}
			if m.Strict || m.torn || ctx.Err() != nil || m.ch.ended() != nil {
				return err
			}
			return nil // the last round has all of what this one has not, see oneRound
		}
		took := time.Since(began)
		if m.round == 1 {
			before, last = took, sent
			continue
		}
		// What was written to while the round before was sent makes this one; what
		// is written to during this one is what there is to do afterwards.
		dirty := float64(sent) / before.Seconds()
		speed := float64(sent) / took.Seconds()
		m.Control.note(func(s *MigrationStats) { s.DirtyRate = uint64(dirty) })
		if left := time.Duration(dirty * took.Seconds() / max(speed, 1) * float64(time.Second)); left <= m.Control.Downtime() {
			return nil
		}
		if float64(sent) > converging*float64(last) {
			if worse++; worse == 2 {
				return nil
			}
		}
		before, last = took, sent
	}
	return nil
}

// oneRound sends what has changed since the one before, and tells how many bytes
// of memory that was.
func (m *outgoing) oneRound(ctx context.Context) (uint64, error) {
	if err := atStep("migrate round"); err != nil {
		return 0, err
	}
	if err := m.sendDisk(ctx, false); err != nil {
		return 0, err
	}
	name := fmt.Sprintf("round-%d", m.round)
	before := m.Control.Stats().MemorySent
	err := m.i.dumpTo(ctx, m.dir, dumpOptions{images: name, parent: m.parent, before: true})
	if err == nil {
		err = m.sendImages(ctx, name, nil)
	}
	if err != nil {
		// CRIU has the kernel count anew what is written to before it writes what was:
		// that may be nowhere now. What is dumped next has to be whole.
		m.parent = ""
		return 0, err
	}
	m.parent = name
	return m.Control.Stats().MemorySent - before, nil
}

// ended tells of an environment that has ended, and so cannot move.
func (m *outgoing) ended() error {
	select {
	case <-m.i.Exited():
		return errors.New("the environment ended while it was about to move")
	default:
		return nil
	}
}
