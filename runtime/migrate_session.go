package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// session is what the destination remembers of one migration, on the disk: the
// source may have to ask what became of it when this daemon, or this host, was
// started anew since.
//
//	migration/ID/session.json   this
//	migration/ID/disk/          what comes, until it is exchanged for what was there
//	migration/ID/layers/        layers that come with it
//	migration/ID/replaced/      the disk that was there
type session struct {
	Session
	UUID    string
	Name    string
	Address string // where this host can be asked, "" if only over libvirt
	Outcome Outcome
	Began   time.Time
	Paused  bool `json:",omitempty"` // it stays frozen

	Definition string `json:",omitempty"` // to be kept once it runs here, until that is done

	Root   string            // type of the root
	Target string            `json:",omitempty"` // directory of a root of type mount
	Stage  string            `json:",omitempty"` // where that is until then
	Moved  bool              `json:",omitempty"` // the disk is exchanged, or about to be
	Layers []string          `json:",omitempty"` // that came with it
	Owners map[string]string `json:",omitempty"` // whose they are
}

// What was decided is remembered for so long. A source that has not asked by
// then never will.
const (
	rememberCommitted = 30 * 24 * time.Hour
	rememberAborted   = 7 * 24 * time.Hour
)

func (r *Runtime) sessionsDir() string { return filepath.Join(r.config.DataDir, "migration") }

func (r *Runtime) sessionDir(id string) string { return filepath.Join(r.sessionsDir(), id) }

// save writes it so that it survives a crash of the host.
func (r *Runtime) saveSession(s *session) error {
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.sessionDir(s.ID), 0o700); err != nil {
		return err
	}
	return replaceFileSynced(filepath.Join(r.sessionDir(s.ID), "session.json"), body)
}

func (r *Runtime) loadSession(id string) (*session, error) {
	if !validLayerID(id) {
		return nil, fmt.Errorf("%q is no migration", printable(id, 64))
	}
	body, err := os.ReadFile(filepath.Join(r.sessionDir(id), "session.json"))
	if err != nil {
		return nil, err
	}
	s := &session{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("migration %s: %w", id, err)
	}
	return s, nil
}

// sessions lists those on the disk.
func (r *Runtime) sessions() (list []*session, err error) {
	entries, err := os.ReadDir(r.sessionsDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		s, bad := r.loadSession(e.Name())
		if errors.Is(bad, fs.ErrNotExist) { // it was never begun
			bad = os.RemoveAll(r.sessionDir(e.Name()))
		} else if bad == nil {
			list = append(list, s)
		}
		err = errors.Join(err, bad)
	}
	return list, err
}

// editSession changes what is remembered of a migration.
func (r *Runtime) editSession(id string, edit func(*session)) error {
	r.editing.Lock()
	defer r.editing.Unlock()
	s, err := r.loadSession(id)
	if err != nil {
		return err
	}
	edit(s)
	return r.saveSession(s)
}

// decide changes what became of a migration.
func (r *Runtime) decide(id string, o Outcome) error {
	return r.editSession(id, func(s *session) { s.Outcome = o })
}

// Undefined are definitions of what came here and that are not kept yet, by the
// ID of the migration: an earlier daemon, or the host, ended before. They are
// known after Recover.
func (r *Runtime) Undefined() (map[string]string, error) {
	list, err := r.sessions()
	docs := map[string]string{}
	for _, s := range list {
		if s.undefined() {
			docs[s.ID] = s.Definition
		}
	}
	return docs, err
}

func (s *session) undefined() bool { return s.Outcome.Moved() && s.Definition != "" }

// Defined is called when the definition is kept that came by a migration.
func (r *Runtime) Defined(id string) error {
	return r.editSession(id, func(s *session) { s.Definition = "" })
}

// cutOff is for an environment whose memory followed when an earlier daemon
// ended. It is not adopted: CRIU has ended, too, and what is missing is zeros. If
// it was not let go yet, nobody was told that it would be, and it goes on at the
// source.
func (r *Runtime) cutOff(rec *record) error {
	if rec.Follows == "" || !r.committedHere(rec.Follows) {
		return nil
	}
	if rec.Phase == held {
		return r.decide(rec.Follows, Undecided)
	}
	lost := fmt.Errorf("%s came here by a migration, and was killed because some of its memory was still at the source when the daemon ended: it is lost", rec.Name)
	return errors.Join(lost, r.decide(rec.Follows, Lost))
}

// committedHere tells whether a migration was decided for this host.
func (r *Runtime) committedHere(id string) bool {
	s, err := r.loadSession(id)
	return err == nil && s.Outcome == Committed
}

// forgetSession is for what the source knows. What is not kept yet of it is
// remembered for a while more.
func (r *Runtime) forgetSession(id string) error {
	r.editing.Lock()
	defer r.editing.Unlock()
	if s, err := r.loadSession(id); err == nil && s.undefined() {
		return nil
	}
	return os.RemoveAll(r.sessionDir(id))
}

// recoverSessions gives up what was not decided when an earlier daemon ended, and
// finishes what was. It tells where the source may ask for the rest.
func (r *Runtime) recoverSessions() (addresses []string, err error) {
	list, err := r.sessions()
	err = errors.Join(err, r.resetFaults())
	for _, s := range list {
		switch {
		case s.Outcome == Undecided:
			err = errors.Join(err, r.undoDisk(s))
			s.Outcome = Aborted
			err = errors.Join(err, r.saveSession(s))
		case s.Outcome.Moved():
			err = errors.Join(err, r.keepDisk(s))
		}
		limit := rememberAborted
		if s.Outcome.Moved() {
			limit = rememberCommitted
		}
		if time.Since(s.Began) > limit {
			err = errors.Join(err, r.forgetSession(s.ID))
		} else if s.Address != "" {
			addresses = append(addresses, s.Address)
		}
	}
	return addresses, err
}

// Asked are the addresses at which hosts may still ask what became of
// migrations that an earlier daemon has served. They are known after Recover.
func (r *Runtime) Asked() []string { return r.asked }
