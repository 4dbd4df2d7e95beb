package runtime

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// block is what the smallest file takes on most file systems.
const block = 4096

// ErrTooLarge is returned for a root that is more than the limits allow.
var ErrTooLarge = errors.New("the root is too large")

// budget counts what a root takes, before it is taken.
type budget struct {
	limits       Limits
	bytes, files int64
	names        int64 // bytes of memory for names that are kept
}

// file counts an entry of n bytes of data and attributes.
func (b *budget) file(n int64) error {
	if b.files++; b.files > b.limits.Files {
		return b.tooManyFiles()
	}
	return b.data(n)
}

func (b *budget) tooManyFiles() error {
	return fmt.Errorf("%w: it has more than the %d files that are allowed", ErrTooLarge, b.limits.Files)
}

func (b *budget) data(n int64) error {
	if n < 0 || n > b.limits.Bytes-b.bytes {
		return fmt.Errorf("%w: it has more than the %d MiB that are allowed", ErrTooLarge, b.limits.Bytes>>20)
	}
	b.bytes += (n + block - 1) / block * block
	return nil
}

// Bounds of the names that are kept in memory to the end.
const (
	maxNames = 128 << 20
	perName  = 64 // what a map takes for each beside its text
)

// name counts one that is kept.
func (b *budget) name(name string) error {
	if b.names += int64(len(name)) + perName; b.names > maxNames {
		return fmt.Errorf("%w: the names of its files have more than the %d MiB that are allowed", ErrTooLarge, maxNames>>20)
	}
	return nil
}

// boundedReader ends a stream that is longer than a root within the limits can
// make it: an archive may consist of what is skipped.
type boundedReader struct {
	r    io.Reader
	left int64
}

// bound leaves room for headers: three blocks of 512 bytes and a name for each
// file.
func (b *budget) bound(r io.Reader) *boundedReader {
	return &boundedReader{r, b.limits.Bytes + b.limits.Files*(3*512+maxTarName)}
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: the archive goes on after all that is allowed", ErrTooLarge)
	}
	return n, err
}

// ParseSize reads a number of bytes, with K, M, G or T for powers of 1024.
func ParseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiB ")
	n, err := strconv.ParseInt(digits, 10, 64)
	unit := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSpace(text[len(digits):]), "B"), "i")
	shift, known := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	if err != nil || !known || n <= 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is no size: give a number with K, M, G or T, as 4G", text)
	}
	return n << shift, nil
}
