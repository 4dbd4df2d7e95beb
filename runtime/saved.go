package runtime

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// A saved image is one file with a checkpoint and what is to be known to
// restore it:
//
//	8 bytes   savedMagic
//	4 bytes   length of the header, big endian
//	          header: SavedHeader as JSON
//	          a tar of the checkpoint's files, compressed with zstd
//	32 bytes  SHA-256 of everything before
type SavedHeader struct {
	Version int    // 1; fields are only ever added
	ID      string // of this one save
	UUID    string
	Name    string
	XML     string // definition, with secrets
	Paused  bool   // how it is to go on
	Size    int64  // bytes of the checkpoint's files
	Kernel  string // release, of the host it was saved on
}

const (
	savedMagic     = "VZSAVED\n"
	savedVersion   = 1
	maxSavedHeader = 16 << 20
	maxSavedFiles  = 1 << 20
)

// NotSavedError tells that a file is no saved image, or not a whole one.
type NotSavedError struct {
	Path string
	err  error
}

func (e *NotSavedError) Error() string {
	return fmt.Sprintf("%s cannot be restored: %v", e.Path, e.err)
}
func (e *NotSavedError) Unwrap() error { return e.err }

// savedFile is what a checkpoint consists of: nothing else is taken out of an image.
var savedFile = regexp.MustCompile(`^(manifest\.json|images/[A-Za-z0-9._-]{1,100})$`)

// WriteSaved writes the checkpoint in dir to path, which is replaced as a whole
// once all is on disk; begun is called as soon as there is what PartOfSaved names,
// so that it can be removed after a crash. After an error nothing of it is left.
// progress is told of bytes of h.Size.
func WriteSaved(ctx context.Context, path string, h SavedHeader, dir string, progress func(done, total uint64), begun func() error) (err error) {
	files, size, err := checkpointFiles(dir)
	if err != nil {
		return err
	}
	h.Version, h.Size = savedVersion, size
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Kernel = string(bytes.TrimRight(uts.Release[:], "\x00"))
	}
	return replaceSaved(path, begun, func(w io.Writer) error {
		if err := writeSavedHeader(w, h); err != nil {
			return err
		}
		z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			return err
		}
		err = writeFiles(ctx, z, dir, files, size, progress)
		return errors.Join(err, z.Close())
	})
}

// writeFiles writes a tar of files of a checkpoint.
func writeFiles(ctx context.Context, w io.Writer, dir string, files []string, size int64, progress func(done, total uint64)) error {
	t := tar.NewWriter(w)
	done := uint64(0)
	for _, name := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := addFile(ctx, t, dir, name)
		if err != nil {
			return err
		}
		done += uint64(n)
		progress(done, uint64(size))
	}
	return t.Close()
}

// PartOfSaved is what a save that was cut off leaves beside its file.
func PartOfSaved(path string) string { return path + ".part" }

// replaceSaved writes a file with its checksum and puts it in place of any other.
func replaceSaved(path string, begun func() error, write func(io.Writer) error) error {
	sum := sha256.New()
	return replaceWhole(path, begun, func(f io.Writer) error {
		if err := write(io.MultiWriter(f, sum)); err != nil {
			return err
		}
		_, err := f.Write(sum.Sum(nil))
		return err
	})
}

// createPart makes the file that becomes path when it is whole.
func createPart(path string) (*os.File, error) {
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory: name a file", path)
	}
	part := PartOfSaved(path)
	f, err := os.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%s is there: it belongs to a save that is going on, or was cut off: remove it in that case", part)
	}
	return f, err
}

// checkPart tells why createPart would fail, to those who have yet to make what
// is to be written.
func checkPart(path string) error {
	f, err := createPart(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// replaceWhole writes a file and puts it in place of any other, once all of it
// is on the disk; begun is called before anything is written.
func replaceWhole(path string, begun func() error, write func(io.Writer) error) (err error) {
	f, err := createPart(path)
	if err != nil {
		return err
	}
	part := f.Name()
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(part)
			if errors.Is(err, unix.ENOSPC) {
				err = fmt.Errorf("there is no room for %s: %w", path, err)
			}
		}
	}()
	if err := begun(); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // nobody reads it soon
	if err := os.Rename(part, path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func writeSavedHeader(w io.Writer, h SavedHeader) error {
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if len(body) > maxSavedHeader {
		return errors.New("the definition is too long")
	}
	head := append([]byte(savedMagic), binary.BigEndian.AppendUint32(nil, uint32(len(body)))...)
	_, err = w.Write(append(head, body...))
	return err
}

// checkpointFiles are those of a checkpoint that go into an image.
func checkpointFiles(dir string) (names []string, size int64, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, "images"))
	if err != nil {
		return nil, 0, err
	}
	names = []string{manifestName}
	for _, e := range entries {
		names = append(names, "images/"+e.Name())
	}
	for _, name := range names {
		if !savedFile.MatchString(name) {
			return nil, 0, fmt.Errorf("CRIU has written a file that is called %q", name)
		}
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return nil, 0, err
		}
		if !info.Mode().IsRegular() {
			return nil, 0, fmt.Errorf("%s is not a regular file", name)
		}
		size += info.Size()
	}
	return names, size, nil
}

func addFile(ctx context.Context, t *tar.Writer, dir, name string) (int64, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Size: info.Size(), Mode: 0o644}); err != nil {
		return 0, err
	}
	// One file may have all memory.
	return io.Copy(t, &countingReader{ctx: ctx, r: f, progress: func(int64, int64) {}})
}

// openSaved reads the header of an image; f is behind it then, and sum has it.
func openSaved(path string) (f *os.File, h SavedHeader, sum hash.Hash, err error) {
	f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, h, nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
			err = &NotSavedError{path, err}
		}
	}()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, h, nil, errors.Join(err, errors.New("it is not a regular file"))
	}
	sum = sha256.New()
	r := io.TeeReader(f, sum)
	head := make([]byte, len(savedMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(savedMagic)]) != savedMagic {
		return nil, h, nil, errors.New("it was not made by saving an environment with virtvzd")
	}
	size := binary.BigEndian.Uint32(head[len(savedMagic):])
	if size > maxSavedHeader {
		return nil, h, nil, errors.New("it is damaged: its header is too long")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, h, nil, errors.New("it is damaged: it ends within its header")
	}
	if err := json.Unmarshal(body, &h); err != nil {
		return nil, h, nil, fmt.Errorf("it is damaged: its header: %w", err)
	}
	if h.Version != savedVersion {
		return nil, h, nil, fmt.Errorf("it is of version %d, and this daemon knows version %d: use a newer one", h.Version, savedVersion)
	}
	return f, h, sum, nil
}

// ReadSaved tells what an image is of, without looking at the rest of it.
func ReadSaved(path string) (SavedHeader, error) {
	f, h, _, err := openSaved(path)
	if err != nil {
		return h, err
	}
	return h, f.Close()
}

// CheckSaved reads all of an image and compares its checksum.
func CheckSaved(path string) error {
	f, _, sum, err := openSaved(path)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := payloadOf(f, sum)
	if err != nil {
		return err
	}
	return p.check(path)
}

// EditSaved changes what an image says of itself; the checkpoint stays as it is.
func EditSaved(path string, edit func(*SavedHeader) error) error {
	f, h, sum, err := openSaved(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := edit(&h); err != nil {
		return err
	}
	return replaceSaved(path, func() error { return nil }, func(w io.Writer) error {
		if err := writeSavedHeader(w, h); err != nil {
			return err
		}
		payload, err := payloadOf(f, sum)
		if err != nil {
			return err
		}
		if _, err := io.Copy(w, payload); err != nil {
			return err
		}
		return payload.check(path)
	})
}

// payload is the compressed part of an image, and knows at its end whether the
// checksum is right.
type payload struct {
	io.Reader
	f   *os.File
	sum hash.Hash
}

func payloadOf(f *os.File, sum hash.Hash) (*payload, error) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	left := info.Size() - at - sha256.Size
	if left < 0 {
		return nil, &NotSavedError{f.Name(), errors.New("it is cut off")}
	}
	return &payload{io.TeeReader(io.LimitReader(f, left), sum), f, sum}, nil
}

// check reads what is left and compares the checksum.
func (p *payload) check(path string) error {
	if _, err := io.Copy(io.Discard, p); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(p.f, want); err != nil || !bytes.Equal(want, p.sum.Sum(nil)) {
		return &NotSavedError{path, errors.New("its checksum is wrong: it was changed, or is not whole")}
	}
	return nil
}

// ExtractSaved takes the checkpoint out of an image, into dir, which must be
// empty. Nothing there is to be used after an error.
func ExtractSaved(ctx context.Context, path, dir string, progress func(done, total uint64)) (h SavedHeader, err error) {
	f, h, sum, err := openSaved(path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	p, err := payloadOf(f, sum)
	if err != nil {
		return h, err
	}
	z, err := zstd.NewReader(p, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1)) // 1: it reads when it is asked to, not besides
	if err != nil {
		return h, err
	}
	defer z.Close()
	if err := os.Mkdir(filepath.Join(dir, "images"), 0o700); err != nil {
		return h, err
	}
	if err := extractFiles(ctx, tar.NewReader(z), dir, h.Size, progress); err != nil {
		if bad := p.check(path); bad != nil { // what it has is not to be believed
			return h, bad
		}
		return h, err
	}
	return h, p.check(path)
}

func extractFiles(ctx context.Context, t *tar.Reader, dir string, size int64, progress func(done, total uint64)) error {
	left := size
	for range maxSavedFiles {
		head, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if head.Typeflag != tar.TypeReg || !savedFile.MatchString(head.Name) || head.Size > left {
			return fmt.Errorf("there is something else than a checkpoint in it: %q", head.Name)
		}
		left -= head.Size
		out, err := os.OpenFile(filepath.Join(dir, head.Name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, t)
		if err = errors.Join(err, out.Chmod(0o644), out.Close()); err != nil {
			return err
		}
		progress(uint64(size-left), uint64(size))
	}
	return errors.New("there are too many files in it")
}
