package runtime

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"virtvzd/xml"
)

// The disk of an environment that is shut off moves like that of one that runs,
// in one pass. Where the source is its own client it connects to the
// destination (SendDisk). Else nobody tells it when: it waits until the
// destination connects and says which migration it means (AwaitPull, Pull).

// SendDisk sends the disk of an environment that is shut off.
func (r *Runtime) SendDisk(ctx context.Context, o Outgoing) error {
	link, err := o.Dial(ctx)
	if err != nil {
		return err
	}
	return r.sendDisk(ctx, newChannel(link), o)
}

func (r *Runtime) sendDisk(ctx context.Context, ch *channel, o Outgoing) (err error) {
	m := &outgoing{Outgoing: o, i: &Instance{r: r}, ch: ch}
	defer func() {
		if m.mirror != nil {
			m.mirror.close()
		}
		if err != nil {
			ch.fail(err)
		}
		ch.close(nil)
	}()
	o.Control.use(ch)
	if err := ch.send(hello{Version: migrationVersion, Session: o.Session}); err != nil {
		return err
	}
	if err := ch.receive(ctx, &m.welcome); err != nil {
		return err
	}
	if err := m.sendBelow(ctx); err != nil {
		return err
	}
	if err := m.openMirror(); err != nil {
		return err
	}
	if m.mirror != nil {
		if err := m.sendDisk(ctx, true); err != nil {
			return err
		}
	}
	return m.send(ctx, part{What: partEnd}, nil, nil)
}

// AwaitPull lets a destination ask for a disk, until ForgetPull.
func (r *Runtime) AwaitPull(o Outgoing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pulls[o.ID] = o
}

// ForgetPull ends that.
func (r *Runtime) ForgetPull(s Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pulls, s.ID)
}

func (r *Runtime) servePull(ctx context.Context, ch *channel, h hello) error {
	r.mu.Lock()
	o, waits := r.pulls[h.ID]
	if waits = waits && sameSecret(o.Secret, h.Secret); waits {
		delete(r.pulls, h.ID) // once
	}
	r.mu.Unlock()
	if !waits {
		return errNoSession
	}
	ch.room.Store(maxFrame)
	return r.sendDisk(ctx, ch, o)
}

// Pull has the source send the disk of an environment that is shut off, on a
// connection to it.
func (in *Incoming) Pull(ctx context.Context, link io.ReadWriteCloser) error {
	ch := newChannel(link)
	defer ch.close(nil)
	if err := ch.send(hello{Version: migrationVersion, Session: in.options.Session, Pull: true}); err != nil {
		return err
	}
	var h hello
	if err := ch.receive(ctx, &h); err != nil {
		return err
	}
	if h.ID != in.options.ID {
		return errors.New("the source sends another environment")
	}
	idle := make(chan struct{})
	in.mu.Lock()
	in.idle = idle
	in.mu.Unlock()
	defer close(idle)
	err := in.take(in.ctx, ch)
	if in.complete() {
		return nil
	}
	return errors.Join(err, errors.New("the disk did not come"))
}

// ShareRoot makes a file in a root that is a directory, by which the other host
// sees that it has the same. Where that is not possible they share nothing.
func ShareRoot(root *MigrationRoot, s Session) {
	if root.Type == "mount" {
		root.Marker = markShared(root.Dir, s)
	}
}

// UnshareRoot takes it away again.
func UnshareRoot(root MigrationRoot) {
	if root.Marker != "" {
		os.Remove(filepath.Join(root.Dir, root.Marker))
	}
}

// RootOf is what there is of an environment's disk; nothing if that cannot be
// said.
func (r *Runtime) RootOf(env *xml.Environment) MigrationRoot {
	root, err := r.offerRoot(env)
	if err != nil {
		return MigrationRoot{}
	}
	return root
}
