package runtime

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"virtvzd/xml"
)

// A running environment moves to another host on one connection between the two
// daemons, a channel. The side that has it sends parts; the other answers each
// with "done" when it is where it belongs:
//
//	source                               destination
//	                                     PrepareMigration: is there room, are the ids free, …
//	hello ----------------------------->
//	  <------------------------- welcome what is missing here
//	template, layers ------------------>
//	disk ------------------------------> first pass of the mirror
//	images of a round -----------------> CRIU's pre-dump, while all goes on
//	disk ------------------------------> what has changed
//	  … again, until little is left, or for the last time
//	switch ----------------------------> a scope and a stub are made meanwhile
//	(frozen, and cut off)
//	disk ------------------------------> last pass, while CRIU dumps
//	images ----------------------------> restored, frozen before the first instruction
//	  <---------------------------- done held: either side can still give up
//
// Nothing is decided yet. Whoever asked for the migration asks the destination
// to Commit, and it answers that it did, or that nothing is left there. From its
// Commit on the environment runs there. The source, frozen, asks in case of doubt
// (SettleMigration), and lets its own go on only when the destination says that it gave
// up. What the destination decides outlives its daemon and its host, see session,
// and so does at the source that it has to ask, see Leave; an environment
// whose memory follows does not, and its source is told that it was lost.
//
//	migrate_out.go       the source's side; migrate_rounds.go what is sent while all goes on,
//	                     migrate_send.go how; migrate_settle.go what became of it
//	migrate_in.go        the destination's, migrate_commit.go its decision; migrate_receive.go what is made of what comes,
//	                     migrate_disk.go how the disk is exchanged and put back
//	postcopy.go          memory that follows when it runs there already
//	migrate_offline.go   the disk of an environment that is shut off
//	migrate_check.go     whether it can work, before anything is sent
//	channel.go, mirror.go the connection, and directory trees on it
const migrationVersion = 1

// Session is one try to move an environment. Who knows its secret may use it.
type Session struct {
	ID     string // 32 hexadecimal digits
	Secret string // the same
}

// NewSession makes one up.
func NewSession() Session {
	var b [32]byte
	rand.Read(b[:])
	return Session{ID: fmt.Sprintf("%x", b[:16]), Secret: fmt.Sprintf("%x", b[16:])}
}

// Valid tells whether it can be one.
func (s Session) Valid() bool { return validLayerID(s.ID) && validLayerID(s.Secret) }

// MigrationOffer is what the source tells of an environment before anything is
// sent.
type MigrationOffer struct {
	Version  int
	UUID     string
	Name     string
	IDMap    xml.IDMap
	Paused   bool          `json:",omitempty"`
	Inactive bool          `json:",omitempty"` // only its disk moves
	Root     MigrationRoot // where it lives
	Memory   uint64        // bytes in use
	Kernel   [2]int        // version and patch level
	CRIU     [3]int        `json:",omitempty"`
	CPU      []byte        `json:",omitempty"` // CRIU's cpuinfo.img
}

// MigrationRoot is what of an environment's disk there may be to send.
type MigrationRoot struct {
	Type     string     // xml.Filesystem's
	Template Generation `json:",omitempty"`
	Name     string     `json:",omitempty"` // of the template
	Layers   []Layer    `json:",omitempty"` // between the two, top down
	LayerIDs []string   `json:",omitempty"`
	Marker   string     `json:",omitempty"` // file in a directory: who sees it has the same
	Used     uint64     // bytes
	Dir      string     `json:"-"` // what the environment writes to
}

// hello is the first message, of the side that has the environment.
type hello struct {
	Version int
	Session
	Settle bool `json:",omitempty"` // only ask what became of it
	Pull   bool `json:",omitempty"` // of the destination: send the disk that waits
}

// welcome is the answer.
type welcome struct {
	Template bool     `json:",omitempty"` // it is missing
	Layers   []string `json:",omitempty"` // those that are missing
	Disk     bool     `json:",omitempty"` // it is to be sent
	Outcome  Outcome  `json:",omitempty"` // if that was asked
}

// part announces what is sent next.
type part struct {
	What     string          // one of the part… constants
	Name     string          `json:",omitempty"` // of a template, a layer, or a directory of images
	Parent   string          `json:",omitempty"` // directory of the images before
	About    json.RawMessage `json:",omitempty"` // Generation or Layer
	Packages []byte          `json:",omitempty"` // of a template
	Still    bool            `json:",omitempty"` // of the disk: the last pass
	Lazy     bool            `json:",omitempty"` // of the last images: the memory follows
}

const (
	partTemplate = "template"
	partLayer    = "layer"
	partDisk     = "disk"
	partImages   = "images"
	partSwitch   = "switch" // the rest comes in one go
	partEnd      = "end"    // of one of which only the disk moves
	partSettle   = "settle" // say what became of it, and give up if nothing did
	partForget   = "forget" // the source knows what became of it
)

// done answers a part.
type done struct {
	Outcome Outcome `json:",omitempty"` // of partSettle
}

// Outcome is what became of a session.
type Outcome string

const (
	Undecided Outcome = ""
	Committed Outcome = "committed" // it runs at the destination
	Lost      Outcome = "lost"      // it ran there, and ended because some of its memory was still at the source
	Aborted   Outcome = "aborted"   // nothing of it is left there
	Forgotten Outcome = "unknown"   // the destination remembers no such session
)

// Moved tells whether it left for good: it never goes on at the source.
func (o Outcome) Moved() bool { return o == Committed || o == Lost }

// imagesDir is the name of a directory of CRIU's images.
var imagesDir = regexp.MustCompile(`^(images|round-[0-9]{1,3})$`)

// imageFile is the name of what is in one.
var imageFile = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

// MigrationStats tells how far a migration is.
type MigrationStats struct {
	Started     time.Time
	Round       int           // pre-dumps begun
	MemoryTotal uint64        // bytes
	MemorySent  uint64        //
	DiskTotal   uint64        //
	DiskSent    uint64        //
	Rate        uint64        // bytes a second, of the last part
	DirtyRate   uint64        // bytes of memory a second
	Setup       time.Duration // until anything was sent
	Frozen      time.Time     // since when it stands still; zero: not yet
	Down        time.Duration // for how long it did, once that is known
	// Of that: until all processes stood still, until memory and disk were read,
	// and until both were at the destination and the processes were there.
	Freezing, Dumping, Restoring time.Duration
}
