package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"virtvzd/runtime"
)

const (
	// maxFiles bounds those that are open. A client that ends leaves its own
	// behind, so one that was not used for fileIdle makes room for another.
	maxFiles = 64
	fileIdle = 5 * time.Minute
	// maxRead is the most that one guest-file-read gives; its base64 fits an
	// answer.
	maxRead     = 2 << 20
	defaultRead = 4096
)

// openModes are those of fopen(3).
var openModes = map[string]int{
	"": os.O_RDONLY, "r": os.O_RDONLY, "rb": os.O_RDONLY,
	"w": os.O_WRONLY | os.O_CREATE | os.O_TRUNC, "wb": os.O_WRONLY | os.O_CREATE | os.O_TRUNC,
	"a": os.O_WRONLY | os.O_CREATE | os.O_APPEND, "ab": os.O_WRONLY | os.O_CREATE | os.O_APPEND,
	"r+": os.O_RDWR, "rb+": os.O_RDWR, "r+b": os.O_RDWR,
	"w+": os.O_RDWR | os.O_CREATE | os.O_TRUNC, "wb+": os.O_RDWR | os.O_CREATE | os.O_TRUNC, "w+b": os.O_RDWR | os.O_CREATE | os.O_TRUNC,
	"a+": os.O_RDWR | os.O_CREATE | os.O_APPEND, "ab+": os.O_RDWR | os.O_CREATE | os.O_APPEND, "a+b": os.O_RDWR | os.O_CREATE | os.O_APPEND,
}

func (a *Agent) fileOpen(ctx context.Context, args struct {
	Path string `json:"path"`
	Mode string `json:"mode"`
}) (any, error) {
	flags, ok := openModes[args.Mode]
	if !ok {
		return nil, fmt.Errorf("invalid file open mode '%.8s'", args.Mode)
	}
	f, err := a.guest.OpenFile(ctx, runtime.Owner{}, args.Path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.files) >= maxFiles {
		a.closeIdle()
	}
	n, err := a.handle(len(a.files), maxFiles, "files are open")
	if err != nil {
		f.Close()
		return nil, err
	}
	a.files[n] = &openFile{f, time.Now()}
	return n, nil
}

// openFile is a file with the time of its last use.
type openFile struct {
	*runtime.File
	used time.Time
}

// closeIdle makes room where somebody has left one open. a.mu is held.
func (a *Agent) closeIdle() {
	oldest, since := 0, time.Now().Add(-fileIdle)
	for n, f := range a.files {
		if !f.used.After(since) {
			oldest, since = n, f.used
		}
	}
	if f := a.files[oldest]; f != nil {
		f.Close()
		delete(a.files, oldest)
	}
}

type fileArgs struct {
	Handle int `json:"handle"`
}

func (a *Agent) file(handle int) (*runtime.File, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.files[handle]; f != nil {
		f.used = time.Now()
		return f.File, nil
	}
	return nil, fmt.Errorf("handle '%d' has not been found", handle)
}

func (a *Agent) fileClose(_ context.Context, args fileArgs) (any, error) {
	f, err := a.file(args.Handle)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	delete(a.files, args.Handle)
	a.mu.Unlock()
	f.Close()
	return none{}, nil
}

func (a *Agent) fileRead(ctx context.Context, args struct {
	Handle int  `json:"handle"`
	Count  *int `json:"count"`
}) (any, error) {
	count := defaultRead
	if args.Count != nil {
		count = *args.Count
	}
	if count < 0 || count > maxRead {
		return nil, fmt.Errorf("count '%d' is out of range, 0 to %d are accepted", count, maxRead)
	}
	f, err := a.file(args.Handle)
	if err != nil {
		return nil, err
	}
	body, err := f.Read(ctx, count)
	end := errors.Is(err, io.EOF) // as feof(3) tells after fread(3)
	if err != nil && !end {
		return nil, err
	}
	return map[string]any{"count": len(body), "buf-b64": body, "eof": end}, nil
}

func (a *Agent) fileWrite(ctx context.Context, args struct {
	Handle int    `json:"handle"`
	Body   []byte `json:"buf-b64"`
	Count  *int   `json:"count"`
}) (any, error) {
	body := args.Body
	if args.Count != nil {
		if *args.Count < 0 || *args.Count > len(body) {
			return nil, fmt.Errorf("count '%d' is not within what is given", *args.Count)
		}
		body = body[:*args.Count]
	}
	f, err := a.file(args.Handle)
	if err != nil {
		return nil, err
	}
	n, err := f.Write(ctx, body)
	return map[string]any{"count": n, "eof": false}, err
}

// fileSeek takes whence as a number or as "set", "cur" and "end".
func (a *Agent) fileSeek(ctx context.Context, args struct {
	Handle int             `json:"handle"`
	Offset int64           `json:"offset"`
	Whence json.RawMessage `json:"whence"`
}) (any, error) {
	whence, ok := map[string]int{"0": io.SeekStart, `"set"`: io.SeekStart, "1": io.SeekCurrent, `"cur"`: io.SeekCurrent, "2": io.SeekEnd, `"end"`: io.SeekEnd}[string(args.Whence)]
	if !ok {
		return nil, errors.New("whence is none of set, cur and end")
	}
	f, err := a.file(args.Handle)
	if err != nil {
		return nil, err
	}
	at, err := f.Seek(ctx, args.Offset, whence)
	return map[string]any{"position": at, "eof": false}, err
}

func (a *Agent) fileFlush(ctx context.Context, args fileArgs) (any, error) {
	f, err := a.file(args.Handle)
	if err != nil {
		return nil, err
	}
	return none{}, f.Sync(ctx)
}
