package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// A kept program outlives the daemon that started it, as one does that an agent
// inside has started. In the directory kept-NUMBER of its environment are
//
//	kept.json  what it is
//	0          what it reads, if there is more than a pipe holds
//	1, 2       what it has written, as far as that is captured
//	pid        by the OCI runtime
//	1.more     is there when more was written than is kept
//	ended      how it ended
//
// The service manager has our ends of its pipes, its pidfd, and the open file 0,
// which knows how far it was read. What goes through the pipes is spliced
// between them and the files, so that nothing is ever in this process alone.

// ErrEndUnknown is returned for a kept program that ended without a daemon, or
// under one that was not its parent, before Linux 6.15.
var ErrEndUnknown = errors.New("how it ended is not known, for the daemon was restarted meanwhile (Linux 6.15 and later tell)")

// Kept is what is kept of a program.
type Kept struct {
	Number   int // of the caller's choice, by which it is found again
	Out, Err bool
	Merged   bool  // what goes to Err is in Out
	Limit    int64 // of each output, in bytes
}

type keptProgram struct {
	Kept
	i     *Instance
	files [3]*os.File
}

const (
	keptPrefix = "kept-"
	keptName   = "kept.json"
	endedName  = "ended"
	moreSuffix = ".more"
)

func keptFDPrefix(uuid string) string { return "vz-kept-" + uuid + "-" }

// keptParts name the descriptors with the service manager.
var keptParts = []string{"0", "1", "2", "input", "pid"}

func (p *keptProgram) fdName(part string) string {
	return fmt.Sprintf("%s%d-%s", keptFDPrefix(p.i.rec.UUID), p.Number, part)
}

func (i *Instance) keptDir(number int) string {
	return filepath.Join(i.dir, keptPrefix+strconv.Itoa(number))
}

func (p *keptProgram) path(name string) string { return filepath.Join(p.i.keptDir(p.Number), name) }

func (p *keptProgram) store(part string, f *os.File) error { return p.i.r.storeFD(p.fdName(part), f) }

// drop lets go of all descriptors.
func (p *keptProgram) drop() {
	closeAll(p.files[:])
	for _, part := range keptParts {
		p.i.r.dropFD(p.fdName(part))
	}
}

// ExecKept is Exec for a program that outlives the daemon. Its Stdin is read to
// the end before, Stdout and Stderr are not used: see KeptOutput. What is kept
// stays until ForgetKept, or the end of the environment.
func (i *Instance) ExecKept(ctx context.Context, c Command, k Kept) (syscall.WaitStatus, error) {
	if err := i.executes(); err != nil {
		return 0, err
	}
	p := &keptProgram{Kept: k, i: i}
	defer p.drop()
	if err := p.prepare(c.Stdin); err != nil {
		return 0, err
	}
	uid, gid := i.rootIDs()
	s, err := openPipes(k.Merged, uid, gid)
	if err != nil {
		return 0, err
	}
	if err := p.connect(s); err != nil {
		s.close()
		return 0, err
	}
	ws, err := i.exec(ctx, i.keptDir(k.Number), c, s, func(pidfd *os.File) error { return p.store("pid", pidfd) })
	return p.ended(ws, err)
}

// prepare makes the files.
func (p *keptProgram) prepare(input io.Reader) error {
	if err := os.Mkdir(p.i.keptDir(p.Number), 0o700); err != nil {
		return err
	}
	body, err := json.Marshal(p.Kept)
	if err == nil {
		err = os.WriteFile(p.path(keptName), body, 0o600)
	}
	for n, wanted := range []bool{input != nil, p.Out, p.Err} {
		if err == nil && wanted {
			p.files[n], err = os.OpenFile(p.path(keptParts[n]), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		}
	}
	if err == nil && input != nil {
		if _, err = io.Copy(p.files[0], input); err == nil {
			_, err = p.files[0].Seek(0, io.SeekStart)
		}
	}
	return err
}

// connect joins files and pipes, and stores what a later daemon needs of them.
func (p *keptProgram) connect(s *streams) error {
	if p.files[0] == nil || s.ours[0] == nil || pour(p.files[0], s.ours[0], false) {
		s.ours[0].Close() // it has all of it
		s.feed = func(*os.File) {}
	} else {
		s.feed = func(pipe *os.File) {
			if pour(p.files[0], pipe, true) {
				p.i.r.dropFD(p.fdName("0")) // or it does not end
			}
		}
		if err := errors.Join(p.store("0", s.ours[0]), p.store("input", p.files[0])); err != nil {
			return err
		}
	}
	for n := 1; n < len(s.ours); n++ {
		if s.ours[n] == nil {
			continue
		}
		s.take[n] = func(pipe *os.File) {
			drain(pipe, p.files[n], p.Limit, func() { os.WriteFile(p.path(keptParts[n]+moreSuffix), nil, 0o600) })
		}
		if err := p.store(keptParts[n], s.ours[n]); err != nil {
			return err
		}
	}
	return nil
}

// ended writes down how it ended, if it did.
func (p *keptProgram) ended(ws syscall.WaitStatus, err error) (syscall.WaitStatus, error) {
	if errors.Is(err, unix.ENODATA) {
		err = ErrEndUnknown
	}
	if err != nil && !errors.Is(err, ErrEndUnknown) {
		return ws, err
	}
	text := strconv.Itoa(int(ws))
	if err != nil {
		text = "unknown"
	}
	return ws, errors.Join(err, replaceFile(p.path(endedName), []byte(text), 0o600))
}

// Kept are the programs of an earlier daemon, whether they have ended or not.
func (i *Instance) Kept() (list []Kept) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, number := range slices.Sorted(maps.Keys(i.kept)) {
		list = append(list, i.kept[number].Kept)
	}
	return list
}

// adoptKept finds them again. Of one that had not begun nothing is kept, and who
// started it was not told of it.
func (i *Instance) adoptKept(stored map[string]*os.File) {
	entries, _ := os.ReadDir(i.dir)
	for _, e := range entries {
		number, err := strconv.Atoi(strings.TrimPrefix(e.Name(), keptPrefix))
		if err != nil || e.Name() != keptPrefix+strconv.Itoa(number) {
			continue
		}
		p := &adoptedProgram{keptProgram: keptProgram{i: i}, stored: map[string]*os.File{}}
		body, err := os.ReadFile(filepath.Join(i.dir, e.Name(), keptName))
		if err == nil {
			err = json.Unmarshal(body, &p.Kept)
		}
		if p.Number != number || err != nil || !exists(p.path(pidName)) {
			os.RemoveAll(filepath.Join(i.dir, e.Name()))
			continue
		}
		for _, part := range keptParts {
			name := p.fdName(part)
			if f := stored[name]; f != nil {
				delete(stored, name)
				p.stored[part], _ = pollable(f) // without a pipe it is still told of
			}
		}
		if i.kept == nil {
			i.kept = map[int]*adoptedProgram{}
		}
		i.kept[number] = p
	}
}

// adoptedProgram is one that an earlier daemon has started.
type adoptedProgram struct {
	keptProgram
	stored map[string]*os.File
}

// pollable is a descriptor of the service manager's for the poller.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := dupFD(f)
	if err != nil {
		return nil, err
	}
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// AwaitKept is the rest of ExecKept for one of Kept.
func (i *Instance) AwaitKept(ctx context.Context, number int) (syscall.WaitStatus, error) {
	i.mu.Lock()
	p := i.kept[number]
	i.mu.Unlock()
	if p == nil {
		return 0, fmt.Errorf("no program %d of %s is kept", number, i.Name())
	}
	defer p.drop()
	if text, err := os.ReadFile(p.path(endedName)); err == nil {
		closeAll(slices.Collect(maps.Values(p.stored)))
		ws, err := strconv.Atoi(string(text))
		if err != nil {
			return 0, ErrEndUnknown
		}
		return syscall.WaitStatus(ws), nil
	}
	s, err := p.rejoin()
	if err != nil {
		return 0, err
	}
	defer s.close()
	pid, pidfd, err := p.process()
	if errors.Is(err, unix.ESRCH) {
		s.end()
		return p.ended(0, ErrEndUnknown)
	}
	if err != nil {
		return 0, err
	}
	defer pidfd.Close()
	return p.ended(i.awaitProgram(ctx, i.keptDir(number), pid, pidfd, s))
}

// rejoin goes on between pipes and files.
func (p *adoptedProgram) rejoin() (s *streams, err error) {
	s = &streams{ours: [3]*os.File{p.stored["0"], p.stored["1"], p.stored["2"]}}
	p.files[0] = p.stored["input"]
	for n, wanted := range []bool{false, p.Out, p.Err} {
		if err == nil && wanted {
			p.files[n], err = os.OpenFile(p.path(keptParts[n]), os.O_RDWR, 0)
		}
	}
	if err == nil {
		err = p.connect(s)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.begin()
	return s, nil
}

// process is the program, or an error that is ESRCH.
func (p *adoptedProgram) process() (pid int, pidfd *os.File, err error) {
	if pid, err = readPID(p.path(pidName)); err != nil {
		return 0, nil, err
	}
	if pidfd = p.stored["pid"]; pidfd != nil {
		return pid, pidfd, nil
	}
	if pidfd, err = openPidfd(pid, 0); err != nil {
		return 0, nil, err
	}
	if cgroup, err := systemd.ControlGroupOf(pid, p.i.rec.Scope); err != nil || cgroup != p.i.rec.Cgroup {
		pidfd.Close()
		return 0, nil, fmt.Errorf("process %d is another: %w", pid, unix.ESRCH)
	}
	return pid, pidfd, nil
}

// KeptOutput is what a kept program has written to its output 1 or 2 by now, up to
// the limit, and whether there was more.
func (i *Instance) KeptOutput(number, output int) (body []byte, more bool, err error) {
	name := filepath.Join(i.keptDir(number), keptParts[output])
	body, err = os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // it is not captured
	}
	return body, exists(name + moreSuffix), err
}

// ForgetKept removes what is kept of a program, which has ended or did not begin.
func (i *Instance) ForgetKept(number int) error {
	i.mu.Lock()
	delete(i.kept, number)
	i.mu.Unlock()
	return os.RemoveAll(i.keptDir(number))
}

// pour gives a pipe what is left of a file. It tells whether that was all, which
// it waits for if it shall.
func pour(file, pipe *os.File, wait bool) (all bool) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return false
	}
	raw.Write(func(fd uintptr) bool {
		for {
			n, err := int64(0), error(os.ErrClosed)
			withFd(file, func(from int) { n, err = unix.Splice(from, nil, int(fd), nil, maxPipe, unix.SPLICE_F_NONBLOCK) })
			switch {
			case err == unix.EINTR || n > 0:
			case err == unix.EAGAIN:
				return !wait
			default: // the end of it, or nobody reads any more
				all = true
				return true
			}
		}
	})
	return all
}

// drain moves what comes out of a pipe to the end of a file, or nowhere, until
// the pipe has ended or its deadline is over. The file gets no more than limit
// bytes, and what it has room for; dropped is called when there is more.
func drain(pipe, file *os.File, limit int64, dropped func()) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return
	}
	var at int64
	if file != nil {
		at, _ = file.Seek(0, io.SeekEnd)
	}
	rest := make([]byte, 32<<10)
	move := func(fd int) (n int, err error) {
		if file != nil && at < limit {
			moved, err := int64(0), error(os.ErrClosed)
			withFd(file, func(to int) {
				moved, err = unix.Splice(fd, nil, to, &at, int(min(limit-at, maxPipe)), unix.SPLICE_F_NONBLOCK)
			})
			if err != unix.ENOSPC {
				return int(moved), err
			}
			limit = at
		}
		if n, err = unix.Read(fd, rest); n > 0 && file != nil {
			dropped()
			dropped = func() {}
		}
		return n, err
	}
	// moveAll tells whether more may come.
	moveAll := func(fd, most int) bool {
		for most > 0 {
			switch n, err := move(fd); {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				return true
			case err != nil || n == 0:
				return false
			default:
				most -= n
			}
		}
		return true
	}
	err = raw.Read(func(fd uintptr) bool { return !moveAll(int(fd), math.MaxInt) })
	if errors.Is(err, os.ErrDeadlineExceeded) && pipe.SetReadDeadline(time.Time{}) == nil {
		raw.Read(func(fd uintptr) bool { moveAll(int(fd), maxPipe); return true }) // what was written before
	}
}
