package protocol

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"virtvzd/driver/rpc/xdr"
)

// longText is longer than any limit of bytes; the limits of lists differ more,
// and trying them from below spares the time of making long ones.
const longText = CpumapsMax + 1

var longLists = []int{DomainListMax + 1, NodeDeviceListMax + 1, ConnectGetAllDomainStatsMax + 1}

// Shared, because there are hundreds of fields to try them on.
var (
	longString = strings.Repeat("x", longText)
	longBytes  = make([]byte, longText)
)

// sized calls f with every string, byte slice and list inside v, which fill has
// made. resize gives it n elements.
func sized(v reflect.Value, path string, f func(path string, isList bool, resize func(n int))) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			sized(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		sized(v.Elem(), path, f)
	case reflect.String:
		f(path, false, func(n int) { v.SetString(longString[:n]) })
	case reflect.Slice:
		elem := v.Type().Elem()
		if elem.Kind() == reflect.Uint8 {
			f(path, false, func(n int) { v.SetBytes(longBytes[:n]) })
			return
		}
		f(path, true, func(n int) {
			old := v.Len()
			v.Set(reflect.AppendSlice(v.Slice(0, min(old, n)), reflect.MakeSlice(v.Type(), max(0, n-old), max(0, n-old))))
			if elem.Kind() == reflect.Struct && n < 3 {
				for i := range n {
					fill(rand.New(rand.NewPCG(1, 1)), v.Index(i))
				}
			}
		})
		if elem.Kind() == reflect.Struct {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(rand.New(rand.NewPCG(1, 1)), v.Index(0))
			sized(v.Index(0), path+"[]", f)
		}
	}
}

// Every field of variable size refuses, in both directions, what is over its
// limit. For decoding, the count is found as the first byte in which encodings
// with no and with one element differ, and enough bytes follow for ErrShort not
// to come first.
func TestLimits(t *testing.T) {
	const front = 1 << 20
	buf := make([]byte, front+64<<20)
	fields := 0
	forEach(func(name string, empty func() Payload) {
		p := empty()
		fill(rand.New(rand.NewPCG(1, 1)), reflect.ValueOf(p).Elem())
		sized(reflect.ValueOf(p).Elem(), name, func(path string, isList bool, resize func(int)) {
			fields++
			longs := []int{longText}
			if isList {
				longs = longLists
			}
			resize(0)
			none, _ := xdr.Marshal(p)
			resize(1)
			one, err := xdr.Marshal(p)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			long := 0
			for _, long = range longs {
				resize(long)
				if _, err = xdr.Marshal(p); err != nil && strings.Contains(err.Error(), "protocol allows") {
					break
				}
			}
			if err == nil || !strings.Contains(err.Error(), "protocol allows") {
				t.Errorf("%s: encoding %d elements: %v", path, long, err)
			}
			resize(1)
			at := 0
			for none[at] == one[at] {
				at++
			}
			at &^= 3
			wire := buf[front-at-4:]
			copy(wire, none[:at])
			binary.BigEndian.PutUint32(wire[at:], uint32(long))
			if err := xdr.Unmarshal(wire, empty()); err == nil || !strings.Contains(err.Error(), "protocol allows") {
				t.Errorf("%s: decoding %d elements: %v", path, long, err)
			}
			clear(wire[:at+4])
		})
	})
	if fields < 500 {
		t.Errorf("only %d fields were tried", fields)
	}
}

// A message costs at most memory in proportion to its own length, whatever its
// length words say and wherever it ends.
func TestHostile(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 28))
	var before, after runtime.MemStats
	decode := func(name string, wire []byte, empty func() Payload) {
		p := empty()
		runtime.ReadMemStats(&before)
		xdr.Unmarshal(wire, p)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > uint64(32*len(wire)+16<<10) {
			t.Errorf("%s: %d bytes on the wire allocate %d: %x", name, len(wire), got, wire)
		}
	}
	forEach(func(name string, empty func() Payload) {
		p := empty()
		fill(r, reflect.ValueOf(p).Elem())
		wire, err := xdr.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < min(len(wire), 400); at += 4 {
			for _, lie := range []uint32{0x7fffffff, 16384} {
				lying := append([]byte{}, wire...)
				binary.BigEndian.PutUint32(lying[at:], lie)
				decode(name, lying, empty)
			}
			decode(name, wire[:at], empty)
		}
		if len(wire) == 0 {
			return
		}
		for _, cut := range []int{1, 2, 3, 4} {
			if err := xdr.Unmarshal(wire[:len(wire)-cut], empty()); err == nil {
				t.Errorf("%s: decodes although %d bytes are missing", name, cut)
			}
		}
	})
}
