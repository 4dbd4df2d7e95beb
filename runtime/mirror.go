package runtime

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// A mirror is a copy of a directory tree on another host that is kept up while
// the tree is written to. Each pass sends what has changed since the one before,
// so the last, for which the writers stand still, is short.
//
// What has changed is told by the inode's change time, which nobody inside can
// set back; rsync goes by a file's size and modification time, which anybody can
// set, or reads all of every file. Of a large file those blocks are sent that
// are different.
//
//	mirror_send.go     the side that has the tree
//	mirror_receive.go  the side that has the copy
//
// A pass is a sequence of records: a byte that says what it is, a length of four
// bytes, and that many bytes.
const (
	recordDirectory  = 'd' // make a directory: mirrorEntry
	recordAttributes = 'a' // what the directory is like, now that all in it is there: mirrorEntry
	recordFile       = 'f' // begin a file: mirrorEntry; its data follow
	recordData       = 'b' // where, eight bytes; and what
	recordHole       = 'z' // where, and how long, eight bytes each
	recordDone       = 'c' // the file is complete
	recordNode       = 'n' // a symbolic link, a node, or another name of a file: mirrorEntry
	recordRemove     = 'r' // path
	recordEnd        = 'e' // of the pass
)

// maxRecord bounds a record. The largest entry has all the attributes that a
// file can have.
const maxRecord = 2 << 20

// mirrorEntry says what something in the tree is like. Names are any bytes.
type mirrorEntry struct {
	Path       []byte
	Mode       uint32 // as in struct stat
	UID, GID   uint32
	Device     uint64            `json:",omitempty"`
	Size       int64             `json:",omitempty"`
	Accessed   [2]int64          // seconds, nanoseconds
	Modified   [2]int64          //
	Attributes map[string][]byte `json:",omitempty"`
	Target     []byte            `json:",omitempty"` // of a symbolic link
	Same       []byte            `json:",omitempty"` // path of the same file
	Changed    bool              `json:",omitempty"` // of a file that is there: only what is different follows
}

// mirrorError is what went wrong with one entry.
func mirrorError(path string, err error) error {
	return fmt.Errorf("%s: %w", printable(path, 256), err)
}

// localAttribute tells of an attribute that is about the inode or the file
// system: a copy that had it would be taken for what it is not.
func localAttribute(name string) bool {
	switch rest, ok := strings.CutPrefix(name, overlayAttribute); rest {
	case "origin", "uuid", "impure", "upper", "nlink":
		return ok
	}
	return false
}

func writeRecord(w io.Writer, kind byte, parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > maxRecord {
		return errors.New("it has too many attributes")
	}
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(size))
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func writeEntry(w io.Writer, kind byte, e *mirrorEntry) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writeRecord(w, kind, body)
}

// readRecord reads one into buf, which grows as needed.
func readRecord(r io.Reader, buf *[]byte) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, noEOF(err)
	}
	size := int(binary.BigEndian.Uint32(head[1:]))
	if size > maxRecord {
		return 0, nil, fmt.Errorf("a record of %d bytes is longer than any can be", size)
	}
	if cap(*buf) < size {
		*buf = make([]byte, size)
	}
	body = (*buf)[:size]
	_, err = io.ReadFull(r, body)
	return head[0], body, noEOF(err)
}

// noEOF is for what must not end here.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func pairOf(t unix.Timespec) [2]int64 { return [2]int64{t.Sec, t.Nsec} }

func timespecOf(p [2]int64) unix.Timespec { return unix.Timespec{Sec: p[0], Nsec: p[1]} }
