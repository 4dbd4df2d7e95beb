package runtime

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// arrival is what a start waits for whose environment is still on its way.
type arrival struct {
	once            sync.Once
	disk, processes chan struct{}
	failed          chan struct{}
	err             error
	lazy            bool // memory follows; known with the processes
}

func newArrival() *arrival {
	return &arrival{disk: make(chan struct{}), processes: make(chan struct{}), failed: make(chan struct{})}
}

func (a *arrival) fail(err error) {
	a.once.Do(func() {
		a.err = err
		close(a.failed)
	})
}

func (a *arrival) await(ctx context.Context, what chan struct{}) error {
	select {
	case <-what:
		return nil
	case <-a.failed:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

var digestPattern = regexp.MustCompile(`^sha256-[0-9a-f]{64}$`)

func validDigest(digest string) bool { return digestPattern.MatchString(digest) }

// part puts where it belongs what the source sends next.
func (in *Incoming) part(ctx context.Context, ch *channel, p part) error {
	switch p.What {
	case partTemplate:
		return in.takeTemplate(ctx, ch, p)
	case partLayer:
		return in.takeLayer(ctx, ch, p)
	case partDisk:
		return in.takeDisk(ctx, ch, p)
	case partImages:
		return in.takeImages(ctx, ch, p)
	case partSwitch:
		if in.started != nil || in.offer.Inactive {
			return errors.New("the other host cannot switch now")
		}
		in.begin()
		if !in.want.Disk { // there is nothing to wait for
			return in.placeDisk()
		}
		return nil
	case partEnd:
		if !in.offer.Inactive {
			return errors.New("the environment runs, and not only its disk was to come")
		}
		if in.complete() {
			return errors.New("the disk is here already")
		}
		if in.want.Disk {
			if err := in.r.placeDisk(in.session); err != nil {
				return err
			}
		}
		in.mu.Lock()
		in.whole = true
		in.mu.Unlock()
		return nil
	}
	return fmt.Errorf("the other host sends the unknown part %q", printable(p.What, 64))
}

// receive reads the data of a part, which may be compressed.
func (in *Incoming) receive(ctx context.Context, ch *channel, do func(io.Reader) error) error {
	return ch.receiveData(ctx, func(r io.Reader) error {
		var head [4]byte
		n, err := io.ReadFull(r, head[:])
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return err
		}
		all := io.MultiReader(strings.NewReader(string(head[:n])), r)
		if n < 4 || head != [4]byte{0x28, 0xb5, 0x2f, 0xfd} { // no record and no tar begins so
			return do(all)
		}
		z, err := zstd.NewReader(all, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer z.Close()
		return do(z)
	})
}

// takeTree receives one pass of a mirror.
func (in *Incoming) takeTree(ctx context.Context, ch *channel, dir string) error {
	m, err := newMirrorTarget(dir)
	if err != nil {
		return err
	}
	defer m.close()
	err = in.receive(ctx, ch, func(r io.Reader) error { return m.pass(ctx, r) })
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("there is no room for it: %w", err)
	}
	if err != nil {
		return err
	}
	return in.writeBack(dir)
}

func (in *Incoming) takeTemplate(ctx context.Context, ch *channel, p part) error {
	var g Generation
	if err := unmarshalAbout(p, &g); err != nil {
		return err
	}
	if !in.want.Template || g.Digest != in.offer.Root.Template.Digest {
		return errors.New("the other host sends a template that is not missing")
	}
	t := in.r.Templates()
	if err := t.makeDirs(); err != nil {
		return err
	}
	work, done, err := t.workDir()
	if err != nil {
		return err
	}
	defer done()
	if err := os.Mkdir(filepath.Join(work, "rootfs"), 0o755); err != nil {
		return err
	}
	if err := in.takeTree(ctx, ch, filepath.Join(work, "rootfs")); err != nil {
		return err
	}
	if len(p.Packages) > 0 {
		if err := os.WriteFile(filepath.Join(work, "packages"), p.Packages, 0o600); err != nil {
			return err
		}
	}
	if err := describe(work, &g); err != nil {
		return err
	}
	name := p.Name
	if checkTemplateName(name) != nil {
		name = ""
	}
	return t.locked(unix.LOCK_EX, func() error { return t.place(work, g.Digest, name) })
}

// place makes a generation of one that came from another host. A name that there
// is not yet is its; where there is another generation of that name, that stays
// the current one.
func (t *Templates) place(work, digest, name string) error {
	final := t.digestDir(digest)
	if err := os.Rename(work, final); err != nil && !exists(filepath.Join(final, "rootfs")) {
		return err
	}
	if name == "" || isFile(filepath.Join(t.dir, name)) {
		return nil
	}
	if err := os.WriteFile(filepath.Join(final, "names", name), nil, 0o600); err != nil {
		return err
	}
	if exists(filepath.Join(t.dir, name)) {
		return nil
	}
	return replaceLink(filepath.Join(".digest", digest), filepath.Join(t.dir, name))
}

func (in *Incoming) takeLayer(ctx context.Context, ch *channel, p part) error {
	var layer Layer
	if err := unmarshalAbout(p, &layer); err != nil {
		return err
	}
	if !slices.Contains(in.want.Layers, p.Name) || !validDigest(layer.Template) || layer.Below != "" && !validLayerID(layer.Below) {
		return errors.New("the other host sends a layer that is not missing")
	}
	if _, ok := parseUUID(layer.Of); !ok {
		return errors.New("the other host sends a layer that is nobody's")
	}
	dir := filepath.Join(in.r.sessionDir(in.session.ID), "layers", p.Name)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700); err != nil {
		return err
	}
	if err := in.takeTree(ctx, ch, filepath.Join(dir, "rootfs")); err != nil {
		return err
	}
	layer.ID = p.Name
	layer.Released = true // a snapshot stays where it was made
	return in.r.Layers().describe(dir, layer)
}

func (in *Incoming) takeDisk(ctx context.Context, ch *channel, p part) error {
	if !in.want.Disk || p.Still != (in.started != nil || in.offer.Inactive) {
		return errors.New("the other host sends the disk when it is not due")
	}
	if err := in.takeTree(ctx, ch, in.session.stage(in.r)); err != nil {
		return err
	}
	if p.Still && !in.offer.Inactive {
		return in.placeDisk()
	}
	return nil
}

// placeDisk lets the start go on that waits for the disk.
func (in *Incoming) placeDisk() error {
	if err := in.r.placeDisk(in.session); err != nil {
		return err
	}
	close(in.arrival.disk)
	return nil
}

// imagePath is what may be in a tar of images.
var imagePath = regexp.MustCompile(`^(manifest\.json|(images|round-[0-9]{1,3})/[A-Za-z0-9._-]{1,100})$`)

func (in *Incoming) takeImages(ctx context.Context, ch *channel, p part) error {
	last := p.Name == "images"
	if !imagesDir.MatchString(p.Name) || p.Parent != "" && (!imagesDir.MatchString(p.Parent) || p.Parent == p.Name) || last != (in.started != nil) || in.offer.Inactive {
		return errors.New("the other host sends memory when it is not due")
	}
	dir := in.dir()
	if err := os.MkdirAll(in.r.saveDir(), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, p.Name), 0o755); err != nil {
		return err
	}
	if p.Parent != "" {
		if err := os.Symlink("../"+p.Parent, filepath.Join(dir, p.Name, "parent")); err != nil {
			return err
		}
	}
	err := in.receive(ctx, ch, func(r io.Reader) error { return takeTar(dir, p.Name, r) })
	if err != nil {
		return err
	}
	if !last {
		return nil
	}
	in.mu.Lock()
	err = json.Unmarshal(p.About, &in.traffic)
	in.mu.Unlock()
	if err != nil {
		return fmt.Errorf("what the other host says of the traffic: %w", err)
	}
	if p.Lazy {
		done, err := in.beginLazy(ch)
		if err != nil {
			return err
		}
		defer done()
	}
	close(in.arrival.processes)
	select {
	case err := <-in.started:
		in.started <- err
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// beginLazy has memory be asked for that follows. done is for when the processes
// are restored.
func (in *Incoming) beginLazy(ch *channel) (done func(), err error) {
	if err := os.MkdirAll(filepath.Join(in.dir(), "work"), 0o700); err != nil {
		return nil, err
	}
	if done, err = in.r.allowFaults(); err != nil {
		return nil, err
	}
	l, err := startLazy(in.dir())
	if err != nil {
		done()
		return nil, err
	}
	in.arrival.lazy = true
	in.mu.Lock()
	in.lazy = l
	in.mu.Unlock()
	go func() {
		ch.carryPages(l.sock)
		select {
		case <-l.ended:
			return
		case <-time.After(time.Second): // it has closed its end and is about to
		}
		// What it missed would be zeros once CRIU is gone: first the processes go.
		in.mu.Lock()
		i := in.instance
		in.mu.Unlock()
		if i != nil {
			i.Kill(context.Background())
		}
		l.end()
	}()
	return done, nil
}

// AwaitMemory waits for memory that follows, after Commit. If the outcome is Lost
// then, the environment has been killed, and the error tells why.
func (in *Incoming) AwaitMemory() error { return in.memory() }

func (in *Incoming) awaitMemory() error {
	in.mu.Lock()
	l, i := in.lazy, in.instance
	in.mu.Unlock()
	if l == nil {
		return nil
	}
	defer in.forget()
	atStep("memory follows")
	<-l.ended
	if l.err == nil {
		return errors.Join(i.noteWhole(), os.RemoveAll(in.dir()))
	}
	err := fmt.Errorf("some of its memory was still at the source, and is lost: %w: %s", l.err, l.said.String())
	err = errors.Join(err, i.Kill(context.Background()), in.r.decide(in.session.ID, Lost), os.RemoveAll(in.dir()))
	in.settle(Lost)
	return err
}

// noteWhole notes that nothing of its memory is at the source any more.
func (i *Instance) noteWhole() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Follows = ""
	return i.rec.save(i.dir)
}

// settled is what is told of one that was decided, once all its memory is here.
func (in *Incoming) settled(ctx context.Context) (Outcome, error) {
	in.mu.Lock()
	l := in.lazy
	in.mu.Unlock()
	if l != nil && !closedBefore(ctx, l.ended) {
		return Forgotten, errors.New("it runs here, and some of its memory is still to come: ask again")
	}
	in.AwaitMemory()
	return in.Outcome(), nil
}

// Follows tells whether memory follows.
func (in *Incoming) Follows() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.lazy != nil
}

// takeTar writes images, and nothing else, below dir.
func takeTar(dir, name string, r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !imagePath.MatchString(h.Name) || path.Dir(h.Name) != name && (h.Name != manifestName || name != "images") {
			return fmt.Errorf("the other host sends %q, which is no image", printable(h.Name, 128))
		}
		f, err := os.OpenFile(filepath.Join(dir, h.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		if err = errors.Join(err, f.Close()); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				err = fmt.Errorf("there is no room for it: %w", err)
			}
			return err
		}
	}
}
