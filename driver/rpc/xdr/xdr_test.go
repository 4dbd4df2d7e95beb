package xdr

import (
	"bytes"
	"math"
	"runtime"
	"strings"
	"testing"
)

// The expected bytes are what glibc's and libtirpc's xdr_* functions produce.
func TestEncoding(t *testing.T) {
	for _, tt := range []struct {
		name   string
		encode func(*Encoder)
		want   string
	}{
		{"int", func(e *Encoder) { e.Int32(-2) }, "\xff\xff\xff\xfe"},
		{"unsigned", func(e *Encoder) { e.Uint32(0x20008086) }, "\x20\x00\x80\x86"},
		{"hyper", func(e *Encoder) { e.Int64(-1) }, "\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"unsigned hyper", func(e *Encoder) { e.Uint64(1 << 40) }, "\x00\x00\x01\x00\x00\x00\x00\x00"},
		{"double", func(e *Encoder) { e.Float64(1.5) }, "\x3f\xf8\x00\x00\x00\x00\x00\x00"},
		{"bool", func(e *Encoder) { e.Bool(true); e.Bool(false) }, "\x00\x00\x00\x01\x00\x00\x00\x00"},
		{"string", func(e *Encoder) { e.String("vz-01", 5) }, "\x00\x00\x00\x05vz-01\x00\x00\x00"},
		{"whole words", func(e *Encoder) { e.String("four", 9) }, "\x00\x00\x00\x04four"},
		{"empty string", func(e *Encoder) { e.String("", 0) }, "\x00\x00\x00\x00"},
		{"string with NUL", func(e *Encoder) { e.String("ab\x00cd", 2) }, "\x00\x00\x00\x02ab\x00\x00"},
		{"opaque", func(e *Encoder) { e.Opaque([]byte{1, 0, 2}, 3) }, "\x00\x00\x00\x03\x01\x00\x02\x00"},
		{"fixed opaque", func(e *Encoder) { e.FixedOpaque([]byte{1, 2, 3, 4, 5}) }, "\x01\x02\x03\x04\x05\x00\x00\x00"},
		{"chars", func(e *Encoder) { e.Chars([]byte{'a', 0xff}, 2) }, "\x00\x00\x00\x02\x00\x00\x00a\xff\xff\xff\xff"},
		{"fixed chars", func(e *Encoder) { e.FixedChars([]byte("ab")) }, "\x00\x00\x00a\x00\x00\x00b"},
		{"count", func(e *Encoder) { e.Count(3, 3) }, "\x00\x00\x00\x03"},
	} {
		var e Encoder
		tt.encode(&e)
		if got := string(e.Bytes()); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	var e Encoder
	e.Int32(math.MinInt32)
	e.Int64(math.MinInt64)
	e.Float64(math.Inf(-1))
	e.Bool(true)
	e.String("grüße", 100)
	e.Opaque([]byte{0, 1, 2, 3, 4}, 5)
	e.FixedOpaque([]byte{9, 8})
	e.Chars([]byte{0, 127, 128, 255}, 4)

	d := NewDecoder(e.Bytes())
	fixed := make([]byte, 2)
	if v := d.Int32(); v != math.MinInt32 {
		t.Error("int", v)
	}
	if v := d.Int64(); v != math.MinInt64 {
		t.Error("hyper", v)
	}
	if v := d.Float64(); !math.IsInf(v, -1) {
		t.Error("double", v)
	}
	if !d.Bool() {
		t.Error("bool")
	}
	if v := d.String(100); v != "grüße" {
		t.Error("string", v)
	}
	if v := d.Opaque(5); !bytes.Equal(v, []byte{0, 1, 2, 3, 4}) {
		t.Error("opaque", v)
	}
	if d.FixedOpaque(fixed); !bytes.Equal(fixed, []byte{9, 8}) {
		t.Error("fixed opaque", fixed)
	}
	if v := d.Chars(4); !bytes.Equal(v, []byte{0, 127, 128, 255}) {
		t.Error("chars", v)
	}
	if d.Err() != nil || d.Rest() != 0 {
		t.Error(d.Err(), d.Rest())
	}
}

func TestLeniency(t *testing.T) {
	if !NewDecoder([]byte{1, 0, 0, 0}).Bool() {
		t.Error("a flag of 0x01000000 is not taken as present")
	}
	if s := NewDecoder([]byte("\x00\x00\x00\x03a\x00b\xff")).String(9); s != "a" {
		t.Errorf("string ends at NUL: %q", s)
	}
	if err := Unmarshal([]byte("left over"), &Void{}); err != nil {
		t.Error("bytes after the last field:", err)
	}
}

func TestLimits(t *testing.T) {
	for name, write := range map[string]func(*Encoder){
		"string": func(e *Encoder) { e.String("abc", 2) }, "opaque": func(e *Encoder) { e.Opaque(make([]byte, 3), 2) },
		"chars": func(e *Encoder) { e.Chars(make([]byte, 3), 2) }, "count": func(e *Encoder) { e.Count(3, 2) },
		"negative": func(e *Encoder) { e.Count(-1, 2) },
	} {
		var e Encoder
		if write(&e); e.Err() == nil || e.Len() != 0 {
			t.Errorf("encoding a %s over its limit: error %v, %d bytes written", name, e.Err(), e.Len())
		}
		first := e.Err()
		if e.Fail(ErrShort); e.Err() != first {
			t.Errorf("%s: a later error hides the first", name)
		}
	}
	over := []byte{0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 0, 0, 0, 0, 0}
	for name, read := range map[string]func(*Decoder){
		"string": func(d *Decoder) { d.String(2) }, "opaque": func(d *Decoder) { d.Opaque(2) },
		"chars": func(d *Decoder) { d.Chars(2) }, "count": func(d *Decoder) { d.Count(2, 0) },
	} {
		d := NewDecoder(over)
		if read(d); d.Err() == nil || !strings.Contains(d.Err().Error(), "allows 2") {
			t.Errorf("decoding a %s over its limit: %v", name, d.Err())
		}
	}
}

// A length word that lies must cost nothing. The lies are small enough for a
// decoder that believes them to fail this test soon rather than exhaust memory.
func TestLyingLengths(t *testing.T) {
	const max = 1 << 24
	for name, read := range map[string]func(*Decoder){
		"string": func(d *Decoder) { d.String(max) }, "opaque": func(d *Decoder) { d.Opaque(max) },
		"chars": func(d *Decoder) { d.Chars(max) }, "count": func(d *Decoder) { d.Count(max, 1) },
	} {
		for _, length := range []string{"\x01\x00\x00\x00", "\x00\x00\x00\x01", "\x00\x00"} {
			var before, after runtime.MemStats
			d := NewDecoder([]byte(length))
			runtime.ReadMemStats(&before)
			read(d)
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<14 {
				t.Errorf("%s with length %x allocates %d bytes", name, length, n)
			}
			if d.Err() != ErrShort {
				t.Errorf("%s with length %x: %v", name, length, d.Err())
			}
		}
		d := NewDecoder([]byte("\xff\xff\xff\xff"))
		if read(d); d.Err() == nil {
			t.Errorf("%s: the largest length passes", name)
		}
	}
}

func TestErrorsStick(t *testing.T) {
	d := NewDecoder([]byte{0, 0, 0})
	d.Uint32()
	d.Fail(nil)
	if d.Err() != ErrShort || d.Int64() != 0 || d.Float64() != 0 || d.Bool() || d.String(1) != "" || d.Rest() != 0 {
		t.Error("reads after an error do not return zero values")
	}
	b := []byte{7}
	if d.FixedOpaque(b); b[0] != 7 {
		t.Error("FixedOpaque writes after an error")
	}
}
