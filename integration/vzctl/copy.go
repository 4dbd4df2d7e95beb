package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// chunk is written by one guest-file-write.
const chunk = 1 << 20

// source is a file of this host that is copied into all; it is read by many
// at once, a chunk at a time.
type source struct {
	name string
	mode uint32
	file *os.File
}

func openSource(name string) (*source, error) {
	// What is no file, such as a FIFO, is not waited for.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, failf(exitSystem, "%v", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = failf(exitValue, "%s is no regular file: copy an archive of it, and unpack that with vzctl fleet exec", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &source{filepath.Base(name), info.Sys().(*syscall.Stat_t).Mode & 0o7777, f}, nil
}

// copy puts each file into a directory, or one in the place of a file. It is
// there whole or not at all, belongs to root, and has the mode it has here.
func (f *fleet) copy() (work, error) {
	files, to := f.args[:len(f.args)-1], f.args[len(f.args)-1]
	if !path.IsAbs(to) {
		return nil, failf(exitValue, "%s is no absolute path inside", to)
	}
	var sources []*source
	for _, name := range files {
		s, err := openSource(name)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s) // open until the program ends
	}
	return func(ctx context.Context, g *guest, r *result) error {
		e, err := g.shell(ctx, `[ ! -d "$1" ] || echo directory`, []string{to}, nil, nil)
		if err != nil {
			return err
		}
		directory := strings.TrimSpace(string(e.Out)) == "directory"
		if !directory && (len(sources) > 1 || strings.HasSuffix(to, "/")) {
			return fmt.Errorf("%s is no directory there", to)
		}
		for _, s := range sources {
			target := to
			if directory {
				target = path.Join(to, s.name)
			}
			if err := s.into(ctx, g, target, r); err != nil {
				return err
			}
			if r.Status = r.byExit(); r.Status != ok {
				return nil
			}
			r.Files = append(r.Files, target)
		}
		return nil
	}, nil
}

// placeScript has a file become its target. Into a directory mv would move it,
// and not every mv knows that it is not to.
const placeScript = `if [ -d "$3" ]; then
	echo "$3 is a directory: name a file, or remove it first" >&2
	exit 1
fi
chmod "$1" "$2" && mv -f "$2" "$3"`

// into writes a file beside its target, which it then becomes.
func (s *source) into(ctx context.Context, g *guest, target string, r *result) (err error) {
	part := path.Join(path.Dir(target), ".vzctl-"+rand.Text())
	var handle int
	if err := g.call(ctx, "guest-file-open", map[string]string{"path": part, "mode": "w"}, &handle); err != nil {
		return err
	}
	moved := false
	defer func() {
		if moved {
			return
		}
		late, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		g.shell(late, `rm -f "$1"`, []string{part}, nil, nil)
	}()
	err = s.write(ctx, g, handle)
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if e := g.call(late, "guest-file-close", map[string]int{"handle": handle}, &struct{}{}); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	e, err := g.shell(ctx, placeScript, []string{fmt.Sprintf("%o", s.mode), part, target}, nil, nil)
	r.ended(e)
	moved = err == nil && e.ok()
	return err
}

func (s *source) write(ctx context.Context, g *guest, handle int) error {
	buf := make([]byte, chunk)
	for at := int64(0); ; {
		n, err := s.file.ReadAt(buf, at)
		at += int64(n)
		for body := buf[:n]; len(body) > 0; {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			var wrote struct{ Count int }
			if err := g.call(ctx, "guest-file-write", map[string]any{"handle": handle, "buf-b64": body}, &wrote); err != nil {
				return err
			}
			if wrote.Count < 1 || wrote.Count > len(body) {
				return errors.New("nothing more could be written")
			}
			body = body[wrote.Count:]
		}
		if errors.Is(err, io.EOF) {
			return g.call(ctx, "guest-file-flush", map[string]int{"handle": handle}, &struct{}{})
		}
		if err != nil {
			return err
		}
	}
}
