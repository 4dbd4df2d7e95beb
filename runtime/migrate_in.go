package runtime

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"virtvzd/xml"
)

// IncomingOptions say how an environment comes.
type IncomingOptions struct {
	Session
	Address string // where this host can be asked later what became of it; "": nowhere
	Paused  bool   // it is to stay as it comes, frozen
	Unsafe  bool   // what may go wrong is no reason to refuse it

	// Definition is what its caller keeps of it once it runs here, and then says so
	// (Defined): until then it outlives this host with the decision.
	Definition string
}

// Incoming is an environment on its way here, from PrepareMigration until Commit
// or Abort.
type Incoming struct {
	r       *Runtime
	env     *xml.Environment
	offer   MigrationOffer
	options IncomingOptions
	want    welcome
	session *session
	arrival *arrival
	cancel  context.CancelFunc
	ctx     context.Context
	ended   chan struct{}
	memory  func() error // awaitMemory, once

	deciding sync.Mutex     // held while it is decided
	writing  sync.WaitGroup // what has come is written to the disk

	mu        sync.Mutex
	outcome   Outcome
	idle      chan struct{} // closed when nothing is taken from a source any more; nil: none has come
	started   chan error    // the start that waits for what comes, once there is one
	instance  *Instance     // once all is here
	lazy      *lazyPages    // memory follows
	whole     bool          // the disk of one that does not run is here
	traffic   InterfaceStats
	unwritten error // why some of it could not be
}

// PrepareMigration makes room for an environment, or says why it cannot come. env
// is what it is to be here.
func (r *Runtime) PrepareMigration(ctx context.Context, env *xml.Environment, offer MigrationOffer, o IncomingOptions) (*Incoming, error) {
	if !o.Valid() {
		return nil, errors.New("the migration has no ID")
	}
	if err := errors.Join(r.checkOffer(ctx, env, &offer, o.Unsafe), r.RefuseLeft(env.UUID)); err != nil {
		return nil, err
	}
	e := *env
	e.IDMap = offer.IDMap
	if offer.Inactive {
		e.IDMap = env.IDMap
	}
	in := &Incoming{r: r, env: &e, offer: offer, options: o, arrival: newArrival(), ended: make(chan struct{})}
	in.ctx, in.cancel = context.WithCancel(context.WithoutCancel(ctx))
	in.memory = sync.OnceValue(in.awaitMemory)
	if err := in.planDisk(); err != nil {
		return nil, err
	}
	if err := r.expect(in); err != nil {
		return nil, err
	}
	err := r.saveSession(in.session)
	if err == nil {
		err = in.stage()
	}
	if err != nil {
		return nil, errors.Join(err, in.Abort(ctx))
	}
	return in, nil
}

// expect lets sources use a session, unless there is or was one of its ID: what
// became of that has to be remembered.
func (r *Runtime) expect(in *Incoming) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.incoming[in.options.ID]; known || exists(r.sessionDir(in.options.ID)) {
		return errors.New("there is a migration with this ID already")
	}
	r.incoming[in.options.ID] = in
	return nil
}

// planDisk decides what has to be sent.
func (in *Incoming) planDisk() error {
	if len(in.env.Filesystems) == 0 {
		return fmt.Errorf("%s has no root of its own here: %w", in.env.Name, ErrUnsupported)
	}
	r, root, fs := in.r, in.offer.Root, in.env.Filesystems[0]
	s := &session{
		Session: in.options.Session, UUID: in.offer.UUID, Name: in.env.Name, Address: in.options.Address,
		Began: time.Now(), Paused: in.options.Paused, Definition: in.options.Definition, Root: root.Type, Owners: map[string]string{},
	}
	in.session = s
	if fs.Type != root.Type {
		return fmt.Errorf("the root is of type '%s' there and would be of type '%s' here: they must be the same", root.Type, fs.Type)
	}
	switch root.Type {
	case "template":
		if root.Template.Digest == "" {
			return nil // it never started, and begins here as it would there
		}
		if !validDigest(root.Template.Digest) || len(root.Layers) != len(root.LayerIDs) || len(root.Layers) > maxChain {
			return errors.New("what the other host says of the disk cannot be")
		}
		in.want.Disk = true
		in.want.Template = !exists(filepath.Join(r.Templates().digestDir(root.Template.Digest), "rootfs"))
		for n, id := range root.LayerIDs {
			if !validLayerID(id) {
				return fmt.Errorf("%q is no layer", printable(id, 64))
			}
			if exists(filepath.Join(r.Layers().layerDir(id), "rootfs")) {
				if have, err := r.Layers().layer(id); err == nil && (have.Joining || root.Layers[n].Joining) {
					return differsHere(id)
				}
			} else {
				in.want.Layers = append(in.want.Layers, id)
				s.Layers = append(s.Layers, id)
				s.Owners[id] = root.Layers[n].Of
			}
		}
	case "mount":
		if sharesRoot(fs.Source, root.Marker) {
			return nil
		}
		if err := emptyDirectory(fs.Source); err != nil {
			return err
		}
		in.want.Disk = true
		s.Target = fs.Source
		s.Stage = filepath.Join(filepath.Dir(fs.Source), ".virtvzd-incoming-"+s.ID)
	default:
		return fmt.Errorf("a root of type '%s' cannot come: %w", root.Type, ErrUnsupported)
	}
	return nil
}

// stage makes what the source will send things into.
func (in *Incoming) stage() error {
	if !in.want.Disk {
		return nil
	}
	if err := os.Mkdir(filepath.Join(in.r.sessionDir(in.session.ID), "layers"), 0o700); err != nil {
		return err
	}
	return in.r.stageDisk(in.session, &in.offer, in.env.Filesystems[0])
}

// Ended is closed when it was given up.
func (in *Incoming) Ended() <-chan struct{} { return in.ended }

// Copies tells whether the disk is sent, too, and not the same here and there.
func (in *Incoming) Copies() bool { return in.want.Disk }

// ServeMigration serves a connection of a source, which says which migration it
// means: it may be one that is on its way, or one that it only asks about.
func (r *Runtime) ServeMigration(ctx context.Context, link io.ReadWriteCloser) error {
	ch := answerChannel(link)
	greeting, cancel := context.WithTimeout(ctx, channelPatience)
	defer cancel()
	var h hello
	if err := ch.receive(greeting, &h); err != nil {
		ch.close(err)
		return err
	}
	err := r.serveHello(ctx, ch, h)
	if err != nil {
		ch.fail(err)
	}
	ch.close(nil)
	return err
}

// errNoSession tells nothing of whether there is one of that ID.
var errNoSession = errors.New("there is no such migration here")

func (r *Runtime) serveHello(ctx context.Context, ch *channel, h hello) error {
	if h.Version != migrationVersion {
		return fmt.Errorf("the other daemon speaks version %d of the migration, this one version %d", h.Version, migrationVersion)
	}
	if !h.Valid() {
		return errNoSession
	}
	if h.Pull {
		return r.servePull(ctx, ch, h)
	}
	r.mu.Lock()
	in := r.incoming[h.ID]
	r.mu.Unlock()
	switch {
	case in != nil && !sameSecret(in.options.Secret, h.Secret):
		return errNoSession
	case in != nil && !h.Settle:
		ch.room.Store(maxFrame)
		return in.serve(ctx, ch)
	case h.Settle:
		outcome, err := r.SettleSession(ctx, h.Session)
		if err != nil {
			return err
		}
		return ch.send(welcome{Outcome: outcome})
	}
	return errNoSession
}

func sameSecret(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// SettleSession tells what became of a migration, which is given up if nothing
// did so far. While memory follows it waits: the source, which has that memory,
// ends when it is told.
func (r *Runtime) SettleSession(ctx context.Context, s Session) (Outcome, error) {
	r.mu.Lock()
	in := r.incoming[s.ID]
	r.mu.Unlock()
	if in != nil && sameSecret(in.options.Secret, s.Secret) {
		switch err := in.Abort(ctx); {
		case errors.Is(err, errCommitted):
			return in.settled(ctx)
		case err != nil && in.Outcome() != Aborted:
			return Forgotten, err
		}
		return Aborted, nil
	}
	known, err := r.loadSession(s.ID)
	switch {
	case errors.Is(err, os.ErrNotExist) || err == nil && !sameSecret(known.Secret, s.Secret):
		return Forgotten, nil
	case err != nil:
		return Forgotten, err
	case known.Outcome == Undecided: // it was given up, and something of it could not be removed: the next daemon tries again
		return Aborted, nil
	}
	return known.Outcome, nil
}

// Defined is called when its definition is kept.
func (in *Incoming) Defined() error { return in.r.Defined(in.session.ID) }

// Outcome is what became of it so far.
func (in *Incoming) Outcome() Outcome {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.outcome
}

// serve takes what the source sends, and then answers it until it knows what
// became of the environment, or the connection ends.
func (in *Incoming) serve(ctx context.Context, ch *channel) error {
	idle := make(chan struct{})
	in.mu.Lock()
	if in.idle != nil || in.outcome != Undecided {
		in.mu.Unlock()
		return errors.New("this migration has begun already")
	}
	in.idle = idle
	in.mu.Unlock()
	giveUp := context.AfterFunc(in.ctx, func() { ch.close(errors.New("the migration was given up")) })
	err := in.take(in.ctx, ch)
	close(idle)
	giveUp()
	goesOn := errors.As(err, new(*PeerError)) // at the source, which has said so
	switch {
	case err == nil:
	case in.Held() && !in.Follows() && !goesOn, in.complete(), in.Outcome().Moved(): // whoever asked for the migration decides, and the source may ask again
		return nil
	default:
		return errors.Join(err, in.Abort(ctx))
	}
	outcome, err := in.r.SettleSession(context.WithoutCancel(ctx), in.options.Session)
	if err == nil {
		err = ch.send(done{Outcome: outcome})
	}
	if err != nil {
		return err
	}
	var p part
	if ch.receive(ctx, &p) == nil && p.What == partForget {
		return in.r.forgetSession(in.session.ID)
	}
	return nil // it may ask again
}

// take puts all where it belongs that the source sends, until it asks what
// became of it. It returns an error when the connection ends, too.
func (in *Incoming) take(ctx context.Context, ch *channel) error {
	if err := ch.send(in.want); err != nil {
		return err
	}
	for {
		var p part
		if err := ch.receive(ctx, &p); err != nil {
			return err
		}
		switch p.What {
		case partSettle:
			return nil
		case partForget:
			if !in.Outcome().Moved() {
				return errors.New("it is not decided that the environment runs here")
			}
			return errors.Join(in.r.forgetSession(in.session.ID), io.EOF) // nothing follows
		}
		if err := in.part(ctx, ch, p); err != nil {
			return err
		}
		if err := ch.send(done{}); err != nil {
			return err
		}
	}
}

// begin starts the environment from what is still to come.
func (in *Incoming) begin() {
	started := make(chan error, 1)
	in.mu.Lock()
	in.started = started
	in.mu.Unlock()
	go func() {
		i, err := in.r.Start(in.ctx, in.env, StartOptions{Checkpoint: in.dir(), Arrival: in.arrival, Session: in.session.ID})
		in.mu.Lock()
		in.instance = i
		in.mu.Unlock()
		started <- err
	}()
}

// dir is where the checkpoint is.
func (in *Incoming) dir() string { return filepath.Join(in.r.saveDir(), ".incoming-"+in.session.UUID) }

var errCommitted = errors.New("the environment runs here")

// Held tells whether all is here and only has to be let go.
func (in *Incoming) Held() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.instance != nil && in.outcome == Undecided
}

// Instance is what is held here, nil before all is here.
func (in *Incoming) Instance() *Instance {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.instance
}

// complete tells whether the disk of one that does not run is here.
func (in *Incoming) complete() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.whole
}

// closedBefore waits for a channel as long as ctx lasts.
func closedBefore(ctx context.Context, c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	case <-ctx.Done():
		return false
	}
}

func unmarshalAbout(p part, v any) error {
	if err := json.Unmarshal(p.About, v); err != nil {
		return fmt.Errorf("what the other host says of the %s: %w", p.What, err)
	}
	return nil
}
