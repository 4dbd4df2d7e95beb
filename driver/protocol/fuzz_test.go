package protocol

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"virtvzd/driver/rpc/xdr"
)

// bodies returns the bodies of a procedure's packets.
func bodies(i *Info) []func() Payload {
	if i.IsEvent() {
		return []func() Payload{i.NewMsg}
	}
	return []func() Payload{i.NewArgs, i.NewRet}
}

// recorded calls f with the number and body of each packet that real peers
// exchanged; the tests of tee write them down.
func recorded(tb testing.TB, f func(h MessageHeader, body []byte)) {
	text, err := os.ReadFile("testdata/packets.txt")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		frame, err := hex.DecodeString(strings.Fields(line)[0])
		if err != nil {
			tb.Fatal(err)
		}
		var h MessageHeader
		d := xdr.NewDecoder(frame[MessageLenMax:])
		h.DecodeXDR(d)
		f(h, frame[MessageLenMax+MessageHeaderMax:])
	}
}

// FuzzDecode decodes anything as any body. Whatever decodes must encode again,
// to something that stays the same from then on.
func FuzzDecode(f *testing.F) {
	all := infos()
	r := rand.New(rand.NewPCG(2, 71))
	for n, i := range all {
		for k, empty := range bodies(i) {
			p := empty()
			fill(r, reflect.ValueOf(p).Elem())
			wire, err := xdr.Marshal(p)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint16(n), uint8(k), wire)
		}
	}
	recorded(f, func(h MessageHeader, body []byte) {
		for n, i := range all {
			if i.Program == h.Prog && int32(i.Number) == h.Proc {
				f.Add(uint16(n), uint8(h.Type), body) // a call decodes as arguments, a reply as a result
			}
		}
	})
	f.Add(uint16(0), uint8(0), []byte{0x7f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, n uint16, k uint8, wire []byte) {
		kinds := bodies(all[int(n)%len(all)])
		empty := kinds[int(k)%len(kinds)]
		p := empty()
		if xdr.Unmarshal(wire, p) != nil {
			return
		}
		first, err := xdr.Marshal(p)
		if err != nil {
			t.Fatalf("%T decodes but does not encode: %v", p, err)
		}
		q := empty()
		if err := xdr.Unmarshal(first, q); err != nil {
			t.Fatalf("%T does not decode its own encoding: %v", p, err)
		}
		second, err := xdr.Marshal(q)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%T changes when it is encoded again: %x, %x, %v", p, first, second, err)
		}
	})
}
