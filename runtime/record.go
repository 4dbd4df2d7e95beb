package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"virtvzd/xml"
)

// record is what the daemon must know to adopt an environment, or to remove what
// is left of one, when it remembers nothing. It is written before the thing it
// names comes into being, so a crash at any moment leaves nothing unrecorded.
type record struct {
	Version   int // 1; fields are only ever added
	UUID      string
	Name      string
	Phase     phase
	Scope     string
	Slice     string
	Cgroup    string // below cgroupRoot; known once the scope exists
	Init      int    // host PID, 0 until created
	InitStart uint64 // start time in ticks: tells a reused PID apart
	Kind      InitKind
	IDMap     xml.IDMap
	CPUs      []int
	Template  string        // digest of the root's template
	Root      *recordedRoot `json:",omitempty"`
	Writes    *rootNode     `json:",omitempty"` // to which root of the host's
	Consoles  []recordedConsole
	Unsettled bool               // limits are being changed
	InForce   []*xml.Environment `json:",omitempty"` // and may be of any of these
	Killed    bool               `json:",omitempty"` // by Kill: its end is no crash
	Links     []*recordedLink
	Mounts    []recordedMount // filesystems below the root
	Disks     []recordedDisk  `json:",omitempty"` // that are images
	Numbers   []int           `json:",omitempty"` // of their devices, also of those that are detached
	Frozen    []ownFilesystem `json:",omitempty"` // filesystems that are
	Freezing  bool            `json:",omitempty"` // or not yet all of them
	Server    *recordedServer `json:",omitempty"` // of the root's image, which grows

	Checkpoint *recordedCheckpoint `json:",omitempty"`
	Dumping    string              `json:",omitempty"` // the file that a dump is being written to
	Restoring  string              `json:",omitempty"` // cgroup of those who restore it
	Aside      []string            `json:",omitempty"` // cgroups that are frozen until init leads, see initFirst
	Migration  *Leave              `json:",omitempty"` // it is about to leave
	Session    string              `json:",omitempty"` // ID of the migration it comes by, until that is done
	Follows    string              `json:",omitempty"` // ID of the migration by which its memory still comes: with this daemon that is lost
}

// recordedCheckpoint is one that is being made, or was and is to be used.
type recordedCheckpoint struct {
	Dir       string
	WasFrozen bool
	Path, ID  string `json:",omitempty"` // of the image that it goes to
}

type recordedConsole struct {
	ID     string // xml.Console's; "" for the only one, in records of the first version
	Number int    // of its descriptor with the service manager
	Path   string // slave, as seen inside
	Log    string
}

type phase string

const (
	starting phase = "starting" // anything may exist; recovery removes it
	created  phase = "created"  // paused before the first instruction
	held     phase = "held"     // came from another host, and must not run before that is decided
	running  phase = "running"
)

const recordName = "record.json"

// claim is what the environment holds.
func (r *record) claim() claim { return claim{spans(r.IDMap), r.CPUs, r.Writes, r.Numbers} }

func (r *record) save(dir string) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, recordName), body, 0o600)
}

// loadRecord returns nil without an error for a directory in which no record was
// written yet: then nothing else was made either.
func loadRecord(dir string) (*record, error) {
	body, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("%s/%s: %w", dir, recordName, err)
	}
	return r, nil
}

// replaceFile writes a file that is always either the old or the new one. State
// lives on a tmpfs: it need not survive a crash of the host, so no fsync.
func replaceFile(name string, body []byte, mode os.FileMode) error {
	if err := os.WriteFile(name+".new", body, mode); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func parseUUID(s string) (u [16]byte, ok bool) {
	var a, b, c, d, e []byte
	if len(s) != 36 {
		return u, false
	}
	if n, err := fmt.Sscanf(s, "%8x-%4x-%4x-%4x-%12x", &a, &b, &c, &d, &e); n != 5 || err != nil {
		return u, false
	}
	if copy(u[:], append(append(append(append(a, b...), c...), d...), e...)) != 16 {
		return u, false
	}
	return u, formatUUID(u) == s
}
