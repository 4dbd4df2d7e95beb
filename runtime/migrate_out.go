package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"virtvzd/xml"
)

// Outgoing is how an environment is to move.
type Outgoing struct {
	Session
	Address    string // of the destination, for a later daemon that has to ask
	Flags      uint32 // for that, too
	Dial       func(context.Context) (io.ReadWriteCloser, error)
	Interfaces []xml.Interface
	Root       MigrationRoot // as it was offered
	Live       bool          // send most of it while it runs
	Strict     bool          // what fails while it runs is not made up for later
	Compress   bool          // with zstd
	Control    *MigrationControl
	// Begun is told of each round before it begins, and Frozen when the
	// environment stands still.
	Begun  func(round int)
	Frozen func()
}

// MigrationControl is what may be changed, and asked, while an environment moves.
type MigrationControl struct {
	mu        sync.Mutex
	bandwidth uint64        // bytes a second; 0: as much as there is
	following uint64        // the same of memory that follows
	downtime  time.Duration // how long it may stand still
	channel   *channel
	stats     MigrationStats
	now       chan struct{} // closed: the last round is to begin
	follows   bool          // memory may follow
	lazy      bool          // and does
}

// DefaultDowntime is how long an environment may stand still unless something
// else is said, as for QEMU.
const DefaultDowntime = 300 * time.Millisecond

// NewMigrationControl begins with what the domain's settings are.
func NewMigrationControl(bandwidth uint64, downtime time.Duration) *MigrationControl {
	return &MigrationControl{bandwidth: bandwidth, downtime: downtime, now: make(chan struct{}), stats: MigrationStats{Started: time.Now()}}
}

// Stats tells how far it is.
func (c *MigrationControl) Stats() MigrationStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

func (c *MigrationControl) note(edit func(*MigrationStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	edit(&c.stats)
}

// SetBandwidth limits what is sent, in bytes a second; 0 lifts the limit.
func (c *MigrationControl) SetBandwidth(bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bandwidth = bytes
	if c.channel != nil {
		c.channel.limit.SetLimit(limitOf(bytes))
	}
}

// SetPostCopyBandwidth limits memory that follows.
func (c *MigrationControl) SetPostCopyBandwidth(bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.following = bytes
	if c.channel != nil {
		c.channel.following.SetLimit(limitOf(bytes))
	}
}

// SetDowntime says how long the environment may stand still.
func (c *MigrationControl) SetDowntime(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.downtime = d
}

// Downtime is what SetDowntime said.
func (c *MigrationControl) Downtime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.downtime
}

// Switch has the last round begin as soon as what is being sent is there.
func (c *MigrationControl) Switch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.now:
	default:
		close(c.now)
	}
}

// Moved notes since when the environment runs elsewhere. For how long it stood
// still is not known where an earlier daemon has stopped it.
func (c *MigrationControl) Moved(at time.Time) {
	c.note(func(s *MigrationStats) {
		if !s.Frozen.IsZero() {
			s.Down = at.Sub(s.Frozen)
		}
	})
}

// AllowPostCopy lets memory follow when the environment has moved, if PostCopy
// says so.
func (c *MigrationControl) AllowPostCopy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.follows = true
}

// PostCopy has the last round begin, and the memory that was not sent follow. It
// tells whether that is allowed.
func (c *MigrationControl) PostCopy() bool {
	c.mu.Lock()
	c.lazy = c.follows
	allowed := c.follows
	c.mu.Unlock()
	if allowed {
		c.Switch()
	}
	return allowed
}

func (c *MigrationControl) isLazy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lazy
}

func (c *MigrationControl) switching() bool {
	select {
	case <-c.now:
		return true
	default:
		return false
	}
}

func limitOf(bytes uint64) rate.Limit {
	if bytes == 0 {
		return rate.Inf
	}
	return rate.Limit(bytes)
}

func (c *MigrationControl) use(ch *channel) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.channel = ch
	ch.limit.SetLimit(limitOf(c.bandwidth))
	ch.following.SetLimit(limitOf(c.following))
}

// outgoing is one migration on its way.
type outgoing struct {
	Outgoing
	i       *Instance
	ch      *channel
	dir     string
	mirror  *mirrorSource // of the disk; nil: it is not sent
	round   int
	torn    bool   // nothing can follow what was sent
	parent  string // directory of the images of the last round
	mounts  []externalMount
	welcome welcome

	dumped   <-chan error // of the last dump
	stopDump func()
	lazy     bool     // its memory follows
	memory   net.Conn // CRIU, for that
}

// Migrate sends the environment to another host. It is then frozen here, cut off,
// and held there: SettleMigration and EndMigration say what is to become of it. After an
// error it goes on here as before, and nothing is left there.
func (i *Instance) Migrate(ctx context.Context, o Outgoing) (err error) {
	if err := i.Savable(ctx, true); err != nil {
		return err
	}
	m := &outgoing{Outgoing: o, i: i}
	if m.dir, err = i.r.workDir(i.uuid, "migrate"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.undo(ctx, err))
		}
	}()
	if err := m.greet(ctx); err != nil {
		return err
	}
	memory, err := i.cgroupNumber("memory.current")
	if err != nil {
		return err
	}
	o.Control.note(func(s *MigrationStats) {
		if s.MemoryTotal = memory; m.welcome.Disk {
			s.DiskTotal = o.Root.Used
		}
	})
	frozen, err := i.Frozen()
	if err != nil {
		return err
	}
	if err := i.noteMigration(&Leave{Session: o.Session, Address: o.Address, Flags: o.Flags}, m.dir, frozen); err != nil {
		return err
	}
	if err := atStep("migrate begin"); err != nil {
		return err
	}
	if err := m.sendBelow(ctx); err != nil {
		return err
	}
	if err := m.openMirror(); err != nil {
		return err
	}
	o.Control.note(func(s *MigrationStats) { s.Setup = time.Since(s.Started) })
	if o.Live && !frozen {
		if err := m.rounds(ctx); err != nil {
			return err
		}
	}
	return m.last(ctx, frozen)
}

// greet makes the connection.
func (m *outgoing) greet(ctx context.Context) error {
	link, err := m.Dial(ctx)
	if err != nil {
		return fmt.Errorf("the destination cannot be reached: %w", err)
	}
	m.ch = newChannel(link)
	m.Control.use(m.ch)
	if err := m.ch.send(hello{Version: migrationVersion, Session: m.Session}); err != nil {
		return err
	}
	return m.ch.receive(ctx, &m.welcome)
}

// beginDump has CRIU dump meanwhile. Where memory follows that goes on until all
// of it has been asked for.
func (m *outgoing) beginDump(ctx context.Context, o dumpOptions) {
	dumping, stop := context.WithCancel(context.WithoutCancel(ctx))
	dumped := make(chan error, 1)
	m.dumped, m.stopDump, m.lazy = dumped, stop, o.lazy
	go func() {
		dumped <- m.i.dumpTo(dumping, m.dir, o)
		close(dumped)
	}()
}

// awaitDump waits until CRIU has written all, or all but the memory, for which it
// then waits to be asked.
func (m *outgoing) awaitDump(ctx context.Context) error {
	if !m.lazy {
		defer context.AfterFunc(ctx, m.stopDump)()
		return <-m.dumped
	}
	conn, err := m.serveLazy(ctx, m.dumped)
	if err != nil {
		return err
	}
	m.memory = conn
	if _, err := RestoreCgroupOptions(); err != nil {
		return err
	}
	if err := m.i.checkRemaps(filepath.Join(m.dir, "images", "files.img")); err != nil {
		return err
	}
	go m.ch.carryPages(conn)
	return nil
}

// endMemory ends what serves memory that follows.
func (m *outgoing) endMemory() {
	if m.stopDump != nil {
		m.stopDump()
		for range m.dumped {
		}
	}
	if m.memory != nil {
		m.memory.Close()
	}
}

// undo makes all as it was: why is what the destination is told.
func (m *outgoing) undo(ctx context.Context, why error) error {
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	told := make(chan struct{})
	go func() {
		defer close(told)
		if m.ch != nil {
			m.ch.fail(why)
		}
	}()
	m.endMemory()
	err := m.i.abandonMigration(undo, m.Interfaces)
	if m.mirror != nil {
		m.mirror.close()
	}
	<-told
	return errors.Join(err, os.RemoveAll(m.dir))
}

// send announces a part, has do send its data, and waits until the other side
// has it.
func (m *outgoing) send(ctx context.Context, p part, sent func(bytes int), do func(io.Writer) error) error {
	if err := m.ch.send(p); err != nil {
		return err
	}
	if do != nil {
		if err := m.ch.sendData(ctx, sent, func(w io.Writer) error { return m.compressed(w, do) }); err != nil {
			m.torn = true // the other side waits for the rest
			return err
		}
	}
	var answer done
	return m.ch.receive(ctx, &answer)
}

// last stops the environment and sends what is left. From its end on, the
// destination has to be asked before anything goes on here.
func (m *outgoing) last(ctx context.Context, frozen bool) error {
	i := m.i
	if err := atStep("migrate switch"); err != nil {
		return err
	}
	if err := m.send(ctx, part{What: partSwitch}, nil, nil); err != nil {
		return err
	}
	step := time.Now()
	took := func() time.Duration {
		defer func() { step = time.Now() }()
		return time.Since(step)
	}
	m.Control.note(func(s *MigrationStats) { s.Frozen = step })
	body := manifest{Version: 1, IDMap: i.rec.IDMap, Cgroup: i.rec.Cgroup, Saved: time.Now()}
	if err := i.standStill(ctx, &body, frozen, true); err != nil {
		return err
	}
	m.Control.note(func(s *MigrationStats) { s.Freezing = took() })
	m.Frozen()
	if err := atStep("migrate frozen"); err != nil {
		return err
	}
	m.beginDump(ctx, dumpOptions{images: "images", parent: m.parent, mounts: body.Mounts, lazy: m.Control.isLazy()})
	err := m.sendDisk(ctx, true)
	if err := errors.Join(err, m.awaitDump(ctx)); err != nil {
		return err
	}
	if err := writeManifest(m.dir, &body); err != nil {
		return err
	}
	m.Control.note(func(s *MigrationStats) { s.Dumping = took() })
	if err := atStep("migrate dumped"); err != nil {
		return err
	}
	traffic, err := json.Marshal(i.traffic())
	if err != nil {
		return err
	}
	// It counts as sent before the other side can say that it is, so that a
	// daemon that is killed here asks.
	if err := i.noteSent(); err != nil {
		return err
	}
	if err := m.sendImages(ctx, "images", traffic); err != nil {
		return err
	}
	m.Control.note(func(s *MigrationStats) { s.Restoring = took() })
	if err := atStep("migrate sent"); err != nil {
		return err
	}
	i.mu.Lock()
	i.migration = m
	i.mu.Unlock()
	return os.RemoveAll(filepath.Join(m.dir, "work"))
}

// traffic is what all its interfaces received and sent, over every run.
func (i *Instance) traffic() InterfaceStats {
	w, err := i.wires()
	if err == nil {
		defer w.close()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	now := map[string]InterfaceStats{}
	for _, l := range i.rec.Links {
		if s, ok := readCounters(i.r.hostLinks(), l, w); ok {
			now[l.counter()] = s
		}
	}
	all, _ := i.r.Traffic(i.uuid, now)
	return all
}
