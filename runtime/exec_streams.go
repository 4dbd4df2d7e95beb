package runtime

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// streams are a command's standard input and output: pipes always, for root
// inside would be given a file of the host, as /dev/null is one. They belong to
// it, so that a program may open them again: /dev/stderr.
type streams struct {
	program [3]*os.File // its ends
	ours    [3]*os.File
	feed    func(input *os.File)     // gives the program its input
	take    [3]func(output *os.File) // takes what it writes, as long as the deadline of that allows
	copies  sync.WaitGroup           // of output
}

func openStreams(c Command, uid, gid uint32) (*streams, error) {
	s, err := openPipes(c.Stderr == c.Stdout, uid, gid)
	if err != nil {
		return nil, err
	}
	s.feed = func(input *os.File) {
		if c.Stdin != nil {
			io.Copy(input, c.Stdin)
		}
	}
	for n, to := range map[int]io.Writer{1: c.Stdout, 2: c.Stderr} {
		if to == nil {
			to = io.Discard
		}
		s.take[n] = func(output *os.File) { copyOutput(to, output) }
	}
	return s, nil
}

// openPipes makes them of this owner; merged are both outputs one, in the order
// in which it was written.
func openPipes(merged bool, uid, gid uint32) (s *streams, err error) {
	s = &streams{}
	for n := range s.program {
		r, w, err := os.Pipe()
		if err == nil {
			s.program[n], s.ours[n] = w, r
			if n == 0 {
				s.program[n], s.ours[n] = r, w
			}
			if uid != 0 {
				err = w.Chown(int(uid), int(gid))
			}
		}
		if err != nil {
			s.close()
			return nil, err
		}
	}
	if merged {
		closeAll([]*os.File{s.program[2], s.ours[2]})
		s.program[2], s.ours[2] = s.program[1], nil
	}
	return s, nil
}

// begin copies, once the program has its ends: what is left of them ends with it.
func (s *streams) begin() {
	closeAll(s.program[:])
	go func() {
		s.feed(s.ours[0])
		s.ours[0].Close()
	}()
	for n, f := range s.ours {
		if n > 0 && f != nil {
			s.copies.Go(func() { s.take[n](f) })
		}
	}
}

// maxPipe is what a pipe may hold.
const maxPipe = 1 << 20

// copyOutput copies until the pipe has ended or its deadline is over. A reader
// who took his time until then has still to get what was written before.
func copyOutput(to io.Writer, from *os.File) {
	if _, err := io.Copy(to, from); !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	if from.SetReadDeadline(time.Time{}) != nil {
		return // it is closed
	}
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	rest := make([]byte, maxPipe)
	n := 0
	raw.Read(func(fd uintptr) bool { // without waiting
		for got := 1; got > 0 && n < len(rest); n += max(got, 0) {
			got, _ = unix.Read(int(fd), rest[n:])
		}
		return true
	})
	to.Write(rest[:n])
}

// outputPatience is how long output may come after the program's end: a daemon
// that it left may hold it open.
const outputPatience = time.Second

// end is once the program has ended: what it has written is copied to the end.
func (s *streams) end() {
	late := time.Now().Add(outputPatience)
	for _, f := range s.ours[1:] {
		f.SetReadDeadline(late) // of none it is none
	}
	s.copies.Wait()
}

// close ends what still goes on. Nothing is written any more after it.
func (s *streams) close() {
	closeAll(s.program[:])
	closeAll(s.ours[:])
	s.copies.Wait()
}
