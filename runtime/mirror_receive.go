package runtime

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// mirrorTarget is the side of a mirror that has the copy, in a directory that
// nobody else writes to. What it is sent are the names and links of an
// environment: none of them leads out of the directory, as no link is followed.
type mirrorTarget struct {
	root int
	buf  []byte

	parentName string // the last parent, which the next entry usually shares
	parent     int

	file  *os.File // that data are for
	entry *mirrorEntry
}

func newMirrorTarget(dir string) (*mirrorTarget, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &mirrorTarget{root: root, parent: -1}, nil
}

func (m *mirrorTarget) close() {
	m.forgetParent()
	if m.file != nil {
		m.file.Close()
	}
	unix.Close(m.root)
}

// pass makes the copy what the other side's pass says.
func (m *mirrorTarget) pass(ctx context.Context, from io.Reader) error {
	in := bufio.NewReaderSize(from, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind, body, err := readRecord(in, &m.buf)
		if err != nil {
			return err
		}
		if kind == recordEnd {
			if m.file != nil {
				return errors.New("a pass ends within a file")
			}
			return nil
		}
		if err := m.record(kind, body); err != nil {
			return err
		}
	}
}

func (m *mirrorTarget) record(kind byte, body []byte) error {
	switch kind {
	case recordData, recordHole:
		return m.data(kind, body)
	case recordDone:
		return m.done()
	}
	if m.file != nil { // whose name must still be its own when it is complete
		return mirrorError(string(m.entry.Path), errors.New("something else comes before the file is complete"))
	}
	if kind == recordRemove {
		name, err := mirrorName(body)
		if err == nil {
			err = m.remove(name)
		}
		return wrapMirror(name, err)
	}
	e := &mirrorEntry{}
	if err := json.Unmarshal(body, e); err != nil {
		return fmt.Errorf("a record of the tree: %w", err)
	}
	name, err := mirrorName(e.Path)
	if err != nil {
		return err
	}
	switch kind {
	case recordDirectory:
		err = m.directory(name)
	case recordAttributes:
		err = m.directoryAttributes(name, e)
	case recordFile:
		err = m.begin(name, e)
	case recordNode:
		err = m.node(name, e)
	default:
		err = fmt.Errorf("a record of the unknown kind %q", kind)
	}
	return wrapMirror(name, err)
}

func wrapMirror(name string, err error) error {
	if err == nil {
		return nil
	}
	return mirrorError(name, err)
}

// mirrorName checks a path: relative, of plain components, "" for the top.
func mirrorName(p []byte) (string, error) {
	name := string(p)
	if name == "" {
		return "", nil
	}
	if len(name) >= unix.PathMax*maxTreeDepth || strings.ContainsRune(name, 0) || path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../") || name == "." {
		return "", fmt.Errorf("the name %q cannot be", printable(name, 256))
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > unix.NAME_MAX {
			return "", fmt.Errorf("the name %q cannot be: no part may be longer than %d bytes", printable(name, 256), unix.NAME_MAX)
		}
	}
	return name, nil
}

// openBelow opens what is below a directory, through no symbolic link.
func openBelow(dir int, name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// at opens the directory of an entry, and keeps it for the next.
func (m *mirrorTarget) at(name string) (dir int, base string, err error) {
	parent, base := path.Split(name)
	if parent = strings.TrimSuffix(parent, "/"); parent == "" {
		return m.root, base, nil
	}
	if m.parent >= 0 && m.parentName == parent {
		return m.parent, base, nil
	}
	m.forgetParent()
	fd, err := m.walk(parent)
	if err != nil {
		return -1, "", err
	}
	m.parent, m.parentName = fd, parent
	return fd, base, nil
}

// walk opens a directory whose path may be longer than a system call takes.
func (m *mirrorTarget) walk(name string) (int, error) {
	dir := m.root
	for name != "" {
		head := name
		if len(head) >= unix.PathMax {
			head = name[:strings.LastIndexByte(name[:unix.PathMax-1], '/')]
		}
		name = strings.TrimPrefix(name[len(head):], "/")
		fd, err := openBelow(dir, head, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if dir != m.root {
			unix.Close(dir)
		}
		if err != nil {
			return -1, err
		}
		dir = fd
	}
	return dir, nil
}

func (m *mirrorTarget) forgetParent() {
	if m.parent >= 0 {
		unix.Close(m.parent)
	}
	m.parent, m.parentName = -1, ""
}

func (m *mirrorTarget) remove(name string) error {
	if name == "" {
		return errors.New("the tree itself cannot be removed")
	}
	dir, base, err := m.at(name)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(dir, base, 0)
	if err == unix.EISDIR || err == unix.EPERM {
		err = removeAllAt(dir, base)
		// The directory that is kept may have been below it.
		if m.parentName == name || strings.HasPrefix(m.parentName, name+"/") {
			m.forgetParent()
		}
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func (m *mirrorTarget) directory(name string) error {
	if name == "" {
		return nil
	}
	dir, base, err := m.at(name)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(dir, base, 0o700)
	if err != unix.EEXIST {
		return err
	}
	if err := m.remove(name); err != nil {
		return err
	}
	return unix.Mkdirat(dir, base, 0o700)
}

func (m *mirrorTarget) directoryAttributes(name string, e *mirrorEntry) error {
	if e.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errors.New("it is no directory")
	}
	if name == "" {
		return e.apply(m.root, ".")
	}
	dir, base, err := m.at(name)
	if err != nil {
		return err
	}
	return e.apply(dir, base)
}

func (m *mirrorTarget) begin(name string, e *mirrorEntry) error {
	if e.Size < 0 || e.Mode&unix.S_IFMT != unix.S_IFREG {
		return errors.New("a file cannot begin so")
	}
	dir, base, err := m.at(name)
	if err != nil {
		return err
	}
	var fd int
	if e.Changed {
		// Opening anything else may do something already.
		if err := sameKind(dir, base, e); err != nil {
			return err
		}
		fd, err = openBelow(dir, base, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	} else {
		if err := m.remove(name); err != nil {
			return err
		}
		fd, err = unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return err
	}
	m.file, m.entry = os.NewFile(uintptr(fd), base), e
	return nil
}

// sameKind tells whether something is what e says that it is.
func sameKind(dir int, base string, e *mirrorEntry) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if (st.Mode^e.Mode)&unix.S_IFMT != 0 {
		return errors.New("something else is there")
	}
	return nil
}

func (m *mirrorTarget) data(kind byte, body []byte) error {
	if m.file == nil || len(body) < 8 {
		return errors.New("data belong to no file")
	}
	at := int64(binary.BigEndian.Uint64(body))
	name := string(m.entry.Path)
	if at < 0 || at > m.entry.Size {
		return mirrorError(name, fmt.Errorf("data for %d, behind its end", at))
	}
	if kind == recordData {
		_, err := m.file.WriteAt(body[8:], at)
		return wrapMirror(name, errnoOf(err))
	}
	if len(body) != 16 {
		return mirrorError(name, errors.New("a hole without an end"))
	}
	n := int64(binary.BigEndian.Uint64(body[8:]))
	if n <= 0 || n > mirrorBlock || n > m.entry.Size-at {
		return mirrorError(name, errors.New("a hole behind its end"))
	}
	err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = m.file.WriteAt(make([]byte, n), at)
	}
	return wrapMirror(name, err)
}

func (m *mirrorTarget) done() error {
	if m.file == nil {
		return errors.New("a file is complete that never began")
	}
	f, e := m.file, m.entry
	m.file, m.entry = nil, nil
	err := f.Truncate(e.Size)
	if err = errors.Join(err, f.Close()); err != nil {
		return mirrorError(string(e.Path), errnoOf(err))
	}
	dir, base, err := m.at(string(e.Path))
	if err == nil {
		err = e.apply(dir, base)
	}
	return wrapMirror(string(e.Path), err)
}

func (m *mirrorTarget) node(name string, e *mirrorEntry) error {
	if name == "" {
		return errors.New("the tree itself must be a directory")
	}
	if err := m.remove(name); err != nil {
		return err
	}
	if e.Same != nil {
		return m.link(name, e.Same)
	}
	dir, base, err := m.at(name)
	if err != nil {
		return err
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		err = unix.Symlinkat(string(e.Target), dir, base)
	case unix.S_IFREG, unix.S_IFDIR:
		err = errors.New("it is no node")
	default: // a whiteout among them, which is the character device 0:0
		err = unix.Mknodat(dir, base, e.Mode&unix.S_IFMT|0o600, int(e.Device))
	}
	if err != nil {
		return err
	}
	return e.apply(dir, base)
}

func (m *mirrorTarget) link(name string, same []byte) error {
	first, err := mirrorName(same)
	if err != nil {
		return err
	}
	parent, base := path.Split(first)
	from := m.root
	if parent != "" {
		if from, err = m.walk(strings.TrimSuffix(parent, "/")); err != nil {
			return err
		}
		defer unix.Close(from)
	}
	dir, own, err := m.at(name)
	if err != nil {
		return err
	}
	return unix.Linkat(from, base, dir, own, 0)
}

// apply makes something what e says: owner, mode, attributes and times, in the
// order in which none undoes another.
func (e *mirrorEntry) apply(dir int, base string) error {
	if err := sameKind(dir, base, e); err != nil { // chmod(2) follows a link
		return err
	}
	if err := unix.Fchownat(dir, base, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	link := e.Mode&unix.S_IFMT == unix.S_IFLNK
	if !link {
		if err := unix.Fchmodat(dir, base, e.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	file := procPath(dir, base)
	have, err := attributes(file)
	if err != nil {
		return err
	}
	for _, name := range have {
		if _, keep := e.Attributes[name]; !keep && !localAttribute(name) && !strings.HasPrefix(name, "security.selinux") {
			if err := unix.Lremovexattr(file, name); err != nil && err != unix.ENODATA {
				return fmt.Errorf("attribute %s: %w", name, err)
			}
		}
	}
	for name, value := range e.Attributes {
		if err := unix.Lsetxattr(file, name, value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{timespecOf(e.Accessed), timespecOf(e.Modified)}, unix.AT_SYMLINK_NOFOLLOW)
}
