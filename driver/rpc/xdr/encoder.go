package xdr

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// An Encoder appends XDR to a buffer. The zero value is ready to use. The first
// error sticks, so that callers check Err once, at the end; what was encoded is
// then of no use.
type Encoder struct {
	buf []byte
	err error
}

// NewEncoder returns an Encoder that appends to buf.
func NewEncoder(buf []byte) *Encoder { return &Encoder{buf: buf} }

// Bytes returns everything encoded so far. It aliases the Encoder's buffer.
func (e *Encoder) Bytes() []byte { return e.buf }

// Err returns the first error met.
func (e *Encoder) Err() error { return e.err }

// Fail records err, unless an earlier error stands.
func (e *Encoder) Fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

// Len returns the number of bytes encoded so far.
func (e *Encoder) Len() int { return len(e.buf) }

// Grow makes room for n more bytes, so that the next n bytes are appended
// without another allocation.
func (e *Encoder) Grow(n int) { e.buf = slices.Grow(e.buf, n) }

// Int32 writes an int, an enum, or a C char or short, which take a word too.
func (e *Encoder) Int32(v int32) { e.Uint32(uint32(v)) }

// Uint32 writes an unsigned int.
func (e *Encoder) Uint32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }

// Int64 writes a hyper.
func (e *Encoder) Int64(v int64) { e.Uint64(uint64(v)) }

// Uint64 writes an unsigned hyper.
func (e *Encoder) Uint64(v uint64) { e.buf = binary.BigEndian.AppendUint64(e.buf, v) }

// Float64 writes a double.
func (e *Encoder) Float64(v float64) { e.Uint64(math.Float64bits(v)) }

// Bool writes 0 or 1; it is also the flag before an optional value.
func (e *Encoder) Bool(v bool) {
	if v {
		e.Uint32(1)
	} else {
		e.Uint32(0)
	}
}

// Count writes the number of elements of a list, at most max.
func (e *Encoder) Count(n int, max uint32) {
	if uint64(n) > uint64(max) {
		e.Fail(fmt.Errorf("list has %d elements, the protocol allows %d: ask for fewer at a time", n, max))
		return
	}
	e.Uint32(uint32(n))
}

// String writes s, at most max bytes. It ends at the first NUL byte, as every
// string that a C peer could have sent does.
func (e *Encoder) String(s string, max uint32) {
	if i := strings.IndexByte(s, 0); i >= 0 {
		s = s[:i]
	}
	if uint64(len(s)) > uint64(max) {
		e.Fail(fmt.Errorf("string is %d bytes long, the protocol allows %d: shorten it", len(s), max))
		return
	}
	e.Uint32(uint32(len(s)))
	e.buf = append(e.buf, s...)
	e.pad(len(s))
}

// Opaque writes a length and packed bytes, at most max.
func (e *Encoder) Opaque(b []byte, max uint32) {
	if uint64(len(b)) > uint64(max) {
		e.Fail(fmt.Errorf("data is %d bytes long, the protocol allows %d: send less at a time", len(b), max))
		return
	}
	e.Uint32(uint32(len(b)))
	e.FixedOpaque(b)
}

// FixedOpaque writes packed bytes whose number both sides know.
func (e *Encoder) FixedOpaque(b []byte) {
	e.buf = append(e.buf, b...)
	e.pad(len(b))
}

// Chars writes a length and one word for each C char, at most max of them.
func (e *Encoder) Chars(b []byte, max uint32) {
	if e.Count(len(b), max); e.err == nil {
		e.FixedChars(b)
	}
}

// FixedChars writes one word for each C char. Chars are signed, as on amd64:
// the peer keeps only the low byte, so the choice shows in the bytes alone.
func (e *Encoder) FixedChars(b []byte) {
	for _, c := range b {
		e.Int32(int32(int8(c)))
	}
}

func (e *Encoder) pad(n int) {
	for ; n%4 != 0; n++ {
		e.buf = append(e.buf, 0)
	}
}
