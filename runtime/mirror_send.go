package runtime

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// mirrorSource is the side of a mirror that has the tree.
type mirrorSource struct {
	root   int
	device uint64
	silent bool // writing to a mapped file may leave its times as they are
	seed   maphash.Seed
	have   *mirrored // what the other side has; nil: nothing yet
	hashes int       // kept of all files
}

// mirrored is what the other side has of an entry.
type mirrored struct {
	inode    uint64
	changed  unix.Timespec // time of its last change; zero: it has to be sent again
	kind     uint32        // S_IFMT
	children map[string]*mirrored
	blocks   map[int64]uint64 // of a large file: hash of each block that is no hole
}

const (
	// largeFile is the size from which on blocks are told apart.
	largeFile   = 1 << 20
	mirrorBlock = 128 << 10
	// maxMirrored and maxHashes bound what is kept in memory of a tree.
	maxMirrored = 4 << 20
	maxHashes   = 16 << 20
	// clockTick is more than the kernel's clock for change times may lag.
	clockTick = 100 * time.Millisecond
)

// PassStats is what a pass has sent.
type PassStats struct {
	Bytes   uint64 // of files
	Entries int    // records of files, directories and others
}

func newMirrorSource(dir string) (*mirrorSource, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		unix.Close(root)
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil {
		unix.Close(root)
		return nil, err
	}
	// A file system in memory writes no page back, so it waits for no first write.
	silent := fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
	return &mirrorSource{root: root, device: st.Dev, silent: silent, seed: maphash.MakeSeed()}, nil
}

// close may be called again.
func (m *mirrorSource) close() {
	if m.root >= 0 {
		unix.Close(m.root)
	}
	m.root = -1
}

// pass sends what has changed. still says that nobody writes to the tree any more.
func (m *mirrorSource) pass(ctx context.Context, to io.Writer, still bool, progress func(bytes uint64)) (PassStats, error) {
	p := &mirrorPass{
		mirrorSource: m, ctx: ctx, to: bufio.NewWriterSize(to, 256<<10), still: still,
		began: time.Now(), links: map[uint64]firstName{}, progress: progress,
	}
	if !still {
		// From now on the first write to any page that is mapped changes the time.
		if err := unix.Syncfs(m.root); err != nil {
			return p.stats, err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(m.root, &st); err != nil {
		return p.stats, err
	}
	have, err := p.directory(m.root, "", m.have, &st)
	if err != nil {
		return p.stats, err
	}
	m.have = have
	if err := writeRecord(p.to, recordEnd); err != nil {
		return p.stats, err
	}
	return p.stats, p.to.Flush()
}

type mirrorPass struct {
	*mirrorSource
	ctx      context.Context
	to       *bufio.Writer
	still    bool
	began    time.Time
	links    map[uint64]firstName // of files that have several
	entries  int
	depth    int
	buf      []byte
	stats    PassStats
	progress func(bytes uint64)
}

// firstName is where a file with several names was met first in a pass.
type firstName struct {
	path    string
	made    bool          // the other side makes another file there, which its other names have to be, too
	changed unix.Timespec // as it was sent
}

// entry begins what is to be said of an entry that is opened as /proc/… file.
func (p *mirrorPass) entry(file, path string, st *unix.Stat_t) (*mirrorEntry, error) {
	e := &mirrorEntry{
		Path: []byte(path), Mode: st.Mode, UID: st.Uid, GID: st.Gid, Device: st.Rdev,
		Accessed: pairOf(st.Atim), Modified: pairOf(st.Mtim),
	}
	names, err := attributes(file)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if localAttribute(name) || path == "" && !ownAttribute(name) {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Lgetxattr(file, name, value)
		if err == unix.ENODATA {
			continue // taken away meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		if e.Attributes == nil {
			e.Attributes = map[string][]byte{}
		}
		e.Attributes[name] = value[:n]
	}
	return e, nil
}

// directory sends what has changed in one. The top's path is "".
func (p *mirrorPass) directory(fd int, name string, have *mirrored, st *unix.Stat_t) (*mirrored, error) {
	if p.depth++; p.depth > maxTreeDepth {
		return nil, fmt.Errorf("directories are nested deeper than %d", maxTreeDepth)
	}
	defer func() { p.depth-- }()
	if have != nil && have.kind != unix.S_IFDIR {
		have = nil
	}
	now := &mirrored{inode: st.Ino, changed: p.noted(st.Ctim, time.Now()), kind: unix.S_IFDIR, children: map[string]*mirrored{}}
	touched := have == nil || have.changed != st.Ctim || have.inode != st.Ino
	if have == nil {
		if err := writeEntry(p.to, recordDirectory, &mirrorEntry{Path: []byte(name)}); err != nil {
			return nil, err
		}
		have = &mirrored{}
	}
	names, err := readNames(fd)
	if err != nil {
		return nil, err
	}
	before := p.stats.Entries
	for _, base := range names {
		if err := p.ctx.Err(); err != nil {
			return nil, err
		}
		child, err := p.child(fd, base, path.Join(name, base), have.children[base])
		if err != nil {
			return nil, mirrorError(base, err)
		}
		if child != nil {
			now.children[base] = child
		}
	}
	for base := range have.children {
		if now.children[base] == nil {
			if err := writeRecord(p.to, recordRemove, []byte(path.Join(name, base))); err != nil {
				return nil, err
			}
			p.stats.Entries++
		}
	}
	if touched || p.stats.Entries != before {
		e, err := p.entry(procPath(fd, "."), name, st)
		if err != nil {
			return nil, err
		}
		if err := writeEntry(p.to, recordAttributes, e); err != nil {
			return nil, err
		}
		p.stats.Entries++
	}
	return now, nil
}

// child sends an entry if it has changed. It returns nil for one that is gone.
func (p *mirrorPass) child(dir int, base, name string, have *mirrored) (*mirrored, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if st.Dev != p.device {
		return nil, errors.New("it is on another file system")
	}
	if p.entries++; p.entries > maxMirrored {
		return nil, fmt.Errorf("there are more than %d files", maxMirrored)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		fd, err := openDirectory(dir, base)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return nil, nil // replaced meanwhile: the next pass sees by what
		}
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		return p.directory(fd, name, have, &st)
	}
	first, linked := p.links[st.Ino]
	known := have != nil && have.inode == st.Ino && have.kind == kind
	if known && have.changed == st.Ctim && !first.made && !(p.silent && p.still && kind == unix.S_IFREG) {
		if st.Nlink > 1 && !linked {
			p.links[st.Ino] = firstName{name, false, st.Ctim}
		}
		return have, nil
	}
	p.stats.Entries++
	now := &mirrored{inode: st.Ino, changed: p.noted(st.Ctim, time.Now()), kind: kind}
	if linked {
		if first.changed != st.Ctim { // it was sent as it was before, or as another that had this inode
			now.changed = unix.Timespec{}
		}
		return now, writeEntry(p.to, recordNode, &mirrorEntry{Path: []byte(name), Mode: st.Mode, Same: []byte(first.path)})
	}
	var err error
	if kind == unix.S_IFREG {
		now, err = p.file(dir, base, name, have, now)
	} else {
		now, err = p.node(dir, base, name, &st, now)
	}
	if now != nil && st.Nlink > 1 {
		p.links[st.Ino] = firstName{name, true, now.changed}
	}
	return now, err
}

func (p *mirrorPass) node(dir int, base, name string, st *unix.Stat_t, now *mirrored) (*mirrored, error) {
	e, err := p.entry(procPath(dir, base), name, st)
	if err == nil && now.kind == unix.S_IFLNK {
		target := make([]byte, unix.PathMax)
		var n int
		n, err = unix.Readlinkat(dir, base, target)
		e.Target = target[:max(n, 0)]
	}
	if errors.Is(err, unix.ENOENT) || err == unix.EINVAL { // replaced meanwhile
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return now, writeEntry(p.to, recordNode, e)
}

// noted is the time of change to be kept of what is read from now on: none if it
// could change once more without that being another. For a file clean is from when
// on the first write to each page that is mapped changes it.
func (p *mirrorPass) noted(changed unix.Timespec, clean time.Time) unix.Timespec {
	if !p.still && time.Unix(changed.Unix()).After(clean.Add(-clockTick)) {
		return unix.Timespec{}
	}
	return changed
}

func (p *mirrorPass) file(dir int, base, name string, have, now *mirrored) (*mirrored, error) {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENXIO {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != now.inode {
		return nil, nil
	}
	clean := p.began
	if !p.still && time.Unix(st.Ctim.Unix()).After(clean.Add(-clockTick)) {
		// It may be mapped, and pages that were written to after the pass began
		// are written to again without a trace.
		clean = time.Now()
		if err := unix.Fdatasync(fd); err != nil {
			return nil, err
		}
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
	}
	e, err := p.entry(procPath(dir, base), name, &st)
	if errors.Is(err, unix.ENOENT) { // replaced meanwhile
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e.Size = st.Size
	now.changed = p.noted(st.Ctim, clean)
	if st.Size >= largeFile && p.hashes < maxHashes {
		now.blocks = map[int64]uint64{}
	}
	var known map[int64]uint64                                       // what the other side has of it
	if have != nil && have.inode == now.inode && now.blocks != nil { // another file may have other names there
		known = have.blocks
	}
	e.Changed = known != nil
	if err := writeEntry(p.to, recordFile, e); err != nil {
		return nil, err
	}
	if err := p.data(fd, st.Size, known, now); err != nil {
		return nil, err
	}
	return now, writeRecord(p.to, recordDone)
}

// data sends the blocks of a file that are different from what the other side
// has, and keeps their hashes if it is large.
func (p *mirrorPass) data(fd int, size int64, known map[int64]uint64, now *mirrored) error {
	if p.buf == nil {
		p.buf = make([]byte, mirrorBlock)
	}
	p.hashes -= len(known)
	for at := int64(0); at < size; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // the rest is a hole
		}
		if err != nil {
			return err
		}
		at = start / mirrorBlock * mirrorBlock
		if err := p.ctx.Err(); err != nil {
			return err
		}
		n, err := preadFull(fd, p.buf[:min(mirrorBlock, size-at)], at)
		if err != nil {
			return err
		}
		if n == 0 {
			break // shorter than it was
		}
		if err := p.block(at, p.buf[:n], known, now); err != nil {
			return err
		}
		at += mirrorBlock
	}
	for at := range known {
		if _, there := now.blocks[at]; !there && at < size {
			if err := writeRecord(p.to, recordHole, offset(at), offset(min(mirrorBlock, size-at))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *mirrorPass) block(at int64, data []byte, known map[int64]uint64, now *mirrored) error {
	if now.blocks != nil {
		hash := maphash.Bytes(p.seed, data)
		now.blocks[at] = hash
		p.hashes++
		if old, there := known[at]; there && old == hash {
			return nil
		}
	}
	p.stats.Bytes += uint64(len(data))
	if p.progress != nil {
		p.progress(p.stats.Bytes)
	}
	return writeRecord(p.to, recordData, offset(at), data)
}

func offset(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// preadFull reads as much as there is, up to len(p).
func preadFull(fd int, p []byte, at int64) (n int, err error) {
	n, err = io.ReadFull(io.NewSectionReader(readerAt(fd), at, int64(len(p))), p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}
