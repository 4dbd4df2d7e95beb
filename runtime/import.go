package runtime

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
	"golang.org/x/sys/unix"
)

// Limits are the most that a root may take on the disk.
type Limits struct {
	Bytes int64 // of data, in blocks as most file systems have
	Files int64 // entries of all kinds
}

// DefaultLimits hold where nothing else is said: 16 GiB in a million files.
var DefaultLimits = Limits{Bytes: 16 << 30, Files: 1_000_000}

// ImportOptions may be zero.
type ImportOptions struct {
	Limits Limits // zero fields: the default
	// Progress, if not nil, is told how much was read of how much; of 0 when
	// that is not known.
	Progress func(done, total int64)
}

func (o ImportOptions) progress(done, total int64) {
	if o.Progress != nil {
		o.Progress(done, total)
	}
}

// OCIPrefix before a source means an OCI image layout in a directory, with the
// tag after another colon where it has several: "oci:DIR:TAG".
const OCIPrefix = "oci:"

// Import makes a generation of a root tar (plain, or compressed with gzip, xz
// or zstd), a directory or an OCI image layout. Whatever is in it, nothing is
// written outside, and not more than the limits allow.
func (t *Templates) Import(ctx context.Context, name, source string, o ImportOptions) (Generation, error) {
	if o.Limits.Bytes <= 0 {
		o.Limits.Bytes = DefaultLimits.Bytes
	}
	if o.Limits.Files <= 0 {
		o.Limits.Files = DefaultLimits.Files
	}
	made, err := t.makeGeneration(ctx, name, func(dir string) (Generation, error) {
		if layout, ok := strings.CutPrefix(source, OCIPrefix); ok {
			return importOCI(ctx, layout, dir, o)
		}
		info, err := os.Stat(source)
		switch {
		case err != nil:
			return Generation{}, errnoOf(err)
		case info.IsDir():
			return importDir(ctx, source, dir, o)
		}
		return importTar(ctx, source, dir, o)
	})
	if err != nil {
		return made, fmt.Errorf("import %s: %w", source, err)
	}
	return made, nil
}

// absolute is a source as the manifest tells it.
func absolute(source string) string {
	if full, err := filepath.Abs(source); err == nil {
		return full
	}
	return source
}

// openSource opens a file that is read to its end. A FIFO would wait for who
// writes it, and neither that nor a read of it ends with the context.
func openSource(name string) (*os.File, int64, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, errnoOf(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// importTar unpacks into dir/rootfs.
func importTar(ctx context.Context, tarFile, dir string, o ImportOptions) (Generation, error) {
	made := Generation{Source: absolute(tarFile)}
	f, size, err := openSource(tarFile)
	if err != nil {
		return made, err
	}
	defer f.Close()
	u, err := newUnpacker(filepath.Join(dir, "rootfs"), o.Limits)
	if err != nil {
		return made, err
	}
	defer u.close()
	digest := sha256.New()
	counted := &countingReader{ctx: ctx, r: f, total: size, progress: o.progress}
	if err := u.unpackStream(counted, digest); err != nil {
		return made, err
	}
	if err := u.finish(ctx, &made); err != nil {
		return made, err
	}
	made.Digest = fmt.Sprintf("sha256-%x", digest.Sum(nil))
	return made, nil
}

type countingReader struct {
	ctx         context.Context
	r           io.Reader
	done, total int64
	progress    func(done, total int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.progress(c.done, c.total)
	return n, err
}

// Bounds of the memory that a compressed archive can ask for: twice what xz -9
// makes of it, and what zstd --long=28 does.
const (
	maxXZDictionary = 128 << 20
	maxZstdWindow   = 256 << 20
)

// tooMuchMemory makes a sentence of what a decoder says of those.
func tooMuchMemory(err error) error {
	switch {
	case errors.Is(err, xz.ErrMemlimit):
		return fmt.Errorf("its dictionary is larger than %d MiB: compress it with xz -9 or less", maxXZDictionary>>20)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("its window is larger than %d MiB: compress it with zstd --long=28 or less", maxZstdWindow>>20)
	}
	return err
}

// decompress goes by the first bytes, not by the name.
func decompress(r *bufio.Reader) (io.Reader, error) {
	magic, err := r.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return xz.NewReader(r, maxXZDictionary)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(maxZstdWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return r, nil
}
