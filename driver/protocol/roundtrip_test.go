package protocol

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"virtvzd/driver/rpc/xdr"
)

// arms are the cases of the one union.
var arms = []TypedParamValue{IntValue(0), UintValue(0), LlongValue(0), UllongValue(0), DoubleValue(0), BooleanValue(0), StringValue("")}

// fill sets v to something random that the protocol allows.
func fill(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(4), 4))
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem())
		}
	case reflect.Interface:
		arm := reflect.New(reflect.TypeOf(arms[r.IntN(len(arms))])).Elem()
		fill(r, arm)
		v.Set(arm)
	case reflect.String:
		v.SetString([]string{"", "vz-01", "käfig", "\xff\x01\n"}[r.IntN(4)])
	case reflect.Int8, reflect.Int32, reflect.Int64:
		v.SetInt(int64(r.Uint64()) >> (64 - v.Type().Bits()))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> (64 - v.Type().Bits()))
	case reflect.Float64:
		v.SetFloat(r.NormFloat64())
	default:
		panic(fmt.Sprint("a kind of field that fill does not know: ", v.Type()))
	}
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 3))
	forEach(func(name string, empty func() Payload) {
		for range 20 {
			in := empty()
			fill(r, reflect.ValueOf(in).Elem())
			wire, err := xdr.Marshal(in)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(wire)%4 != 0 {
				t.Errorf("%s: %d bytes are not whole words", name, len(wire))
			}
			out := empty()
			d := xdr.NewDecoder(wire)
			if out.DecodeXDR(d); d.Err() != nil || d.Rest() != 0 {
				t.Fatalf("%s: decoding its own encoding: error %v, %d bytes left", name, d.Err(), d.Rest())
			}
			if !reflect.DeepEqual(in, out) {
				t.Fatalf("%s: sent %+v, received %+v", name, in, out)
			}
		}
	})
}

// One value of every shape of field, spelt out: the round trip alone would not
// notice if both directions were wrong in the same way.
func TestWire(t *testing.T) {
	name := "ct"
	uuid := UUID{0x4d, 0xea, 0x22, 0xb3, 0x1d, 0x52, 0xd8, 0xf3, 0x25, 0x16, 0x78, 0x2e, 0x98, 0xab, 0x3f, 0xa0}
	const ct = "\x00\x00\x00\x02ct\x00\x00" + "\x4d\xea\x22\xb3\x1d\x52\xd8\xf3\x25\x16\x78\x2e\x98\xab\x3f\xa0" + "\xff\xff\xff\xff"
	dom := NonnullDomain{Name: name, UUID: uuid, ID: -1}
	node := NodeGetInfoRet{Memory: 1, Cpus: 2, Mhz: 3, Nodes: 4, Sockets: 5, Cores: 6, Threads: 7}
	copy(node.Model[:], "x")
	for _, tt := range []struct {
		in   xdr.Marshaler
		want string
	}{
		{MessageHeader{Prog: RemoteProgram, Vers: RemoteVersion, Proc: 9, Type: Reply, Serial: 5, Status: StatusError},
			"\x20\x00\x80\x86\x00\x00\x00\x01\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00\x05\x00\x00\x00\x01"},
		{ConnectOpenArgs{Name: nil, Flags: 1}, "\x00\x00\x00\x00\x00\x00\x00\x01"},
		{ConnectOpenArgs{Name: &name}, "\x00\x00\x00\x01\x00\x00\x00\x02ct\x00\x00\x00\x00\x00\x00"},
		{DomainCreateArgs{Dom: dom}, ct},
		{ConnectListAllDomainsRet{Domains: []NonnullDomain{dom}, Ret: 1}, "\x00\x00\x00\x01" + ct + "\x00\x00\x00\x01"},
		{DomainPinVcpuArgs{Dom: dom, Vcpu: 1, Cpumap: []byte{3, 0, 1, 0, 7}}, ct + "\x00\x00\x00\x01\x00\x00\x00\x05\x03\x00\x01\x00\x07\x00\x00\x00"},
		{DomainGetInfoRet{State: 1, MaxMem: 1 << 33, Memory: 2, NrVirtCPU: 3, CPUTime: 4},
			"\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04"},
		{node, "\x00\x00\x00x" + string(make([]byte, 31*4)) +
			"\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x04\x00\x00\x00\x05\x00\x00\x00\x06\x00\x00\x00\x07"},
		{NodeGetSecurityModelRet{Model: []byte("a\x00"), Doi: []byte{0}},
			"\x00\x00\x00\x02\x00\x00\x00a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00"},
		{TypedParam{Field: "f", Value: IntValue(-1)}, "\x00\x00\x00\x01f\x00\x00\x00" + "\x00\x00\x00\x01\xff\xff\xff\xff"},
		{TypedParam{Field: "f", Value: UllongValue(1024)}, "\x00\x00\x00\x01f\x00\x00\x00" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x04\x00"},
		{TypedParam{Field: "f", Value: Bool(true)}, "\x00\x00\x00\x01f\x00\x00\x00" + "\x00\x00\x00\x06\x00\x00\x00\x01"},
		{TypedParam{Field: "f", Value: StringValue("s")}, "\x00\x00\x00\x01f\x00\x00\x00" + "\x00\x00\x00\x07\x00\x00\x00\x01s\x00\x00\x00"},
	} {
		got, err := xdr.Marshal(tt.in)
		if err != nil || !bytes.Equal(got, []byte(tt.want)) {
			t.Errorf("%+v:\n got %q %v\nwant %q", tt.in, got, err, tt.want)
		}
	}
}

func TestUnionErrors(t *testing.T) {
	if _, err := xdr.Marshal(TypedParam{Field: "f"}); err == nil {
		t.Error("a typed parameter without a value is encoded")
	}
	for _, label := range []byte{0, 8, 255} {
		var p TypedParam
		if err := xdr.Unmarshal([]byte{0, 0, 0, 0, 0, 0, 0, label, 0, 0, 0, 0, 0, 0, 0, 0}, &p); err == nil {
			t.Errorf("a typed parameter of type %d is decoded", label)
		}
	}
}

// go-libvirt sends 01 00 00 00 where the C library sends 00 00 00 01.
func TestOptionalFlag(t *testing.T) {
	var a ConnectOpenArgs
	if err := xdr.Unmarshal([]byte("\x01\x00\x00\x00\x00\x00\x00\x05vz://\x00\x00\x00\x00\x00\x00\x00"), &a); err != nil || a.Name == nil || *a.Name != "vz://" {
		t.Errorf("%v %+v", err, a)
	}
}
