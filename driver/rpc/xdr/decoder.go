package xdr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrShort is the error of a message that ends before its last field, or whose
// length words promise more than is there.
var ErrShort = errors.New("message ends too early")

// A Decoder reads XDR. After the first error every read returns a zero value,
// so that callers check Err once, at the end.
type Decoder struct {
	buf []byte
	err error
}

// NewDecoder returns a Decoder that reads b and never writes to it.
func NewDecoder(b []byte) *Decoder { return &Decoder{buf: b} }

// Err returns the first error met.
func (d *Decoder) Err() error { return d.err }

// Rest returns the number of bytes not read yet, 0 after an error.
func (d *Decoder) Rest() int { return len(d.buf) }

// Fail records err, unless an earlier error stands, and ends the input.
func (d *Decoder) Fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.buf = nil
}

// take returns the next n bytes, or nil after an error.
func (d *Decoder) take(n int) []byte {
	if n > len(d.buf) {
		d.Fail(ErrShort)
		return nil
	}
	b := d.buf[:n]
	d.buf = d.buf[n:]
	return b
}

// Int32 reads an int, an enum, or a C char or short.
func (d *Decoder) Int32() int32 { return int32(d.Uint32()) }

// Uint32 reads an unsigned int.
func (d *Decoder) Uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Int64 reads a hyper.
func (d *Decoder) Int64() int64 { return int64(d.Uint64()) }

// Uint64 reads an unsigned hyper.
func (d *Decoder) Uint64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Float64 reads a double.
func (d *Decoder) Float64() float64 { return math.Float64frombits(d.Uint64()) }

// Bool reads a flag: anything but zero is true, as in the C library.
func (d *Decoder) Bool() bool { return d.Uint32() != 0 }

// Count reads the number of elements of a list, at most max. Each element must
// take at least size bytes of the rest of the message, so a slice made from the
// result is never larger than the message warrants.
func (d *Decoder) Count(max uint32, size int) int {
	n := d.Uint32()
	if n > max {
		d.Fail(fmt.Errorf("list has %d elements, the protocol allows %d", n, max))
		return 0
	}
	if uint64(n)*uint64(size) > uint64(len(d.buf)) {
		d.Fail(ErrShort)
		return 0
	}
	return int(n)
}

// String reads a string of at most max bytes. A NUL byte ends it early: the
// rest is on the wire but invisible to libvirt's C code, and must stay so here,
// or a name could be checked as one thing and used as another.
func (d *Decoder) String(max uint32) string {
	b := d.opaque(max, "string")
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// Opaque reads a length and packed bytes, at most max; the result is a copy.
func (d *Decoder) Opaque(max uint32) []byte {
	return bytes.Clone(d.opaque(max, "data"))
}

func (d *Decoder) opaque(max uint32, what string) []byte {
	n := d.Uint32()
	if n > max {
		d.Fail(fmt.Errorf("%s is %d bytes long, the protocol allows %d", what, n, max))
		return nil
	}
	return d.padded(int(n))
}

// FixedOpaque fills b with packed bytes whose number both sides know.
func (d *Decoder) FixedOpaque(b []byte) {
	copy(b, d.padded(len(b)))
}

// padded returns the next n bytes and skips the padding after them, whose
// content the C library ignores.
func (d *Decoder) padded(n int) []byte {
	b := d.take((n + 3) &^ 3)
	if b == nil {
		return nil
	}
	return b[:n]
}

// Chars reads a length and one word for each C char, at most max of them.
func (d *Decoder) Chars(max uint32) []byte {
	b := make([]byte, d.Count(max, 4))
	d.FixedChars(b)
	return b
}

// FixedChars fills b, reading a word for each C char and keeping its low byte.
func (d *Decoder) FixedChars(b []byte) {
	for i := range b {
		b[i] = byte(d.Uint32())
	}
}
