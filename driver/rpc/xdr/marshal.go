package xdr

// A Marshaler writes itself. It returns an error when one of its fields is
// larger than the protocol allows; the peer would refuse the whole message.
type Marshaler interface {
	EncodeXDR(*Encoder) error
}

// An Unmarshaler reads itself. Errors stay in the Decoder.
type Unmarshaler interface {
	DecodeXDR(*Decoder)
}

// Void is the argument or result of a procedure that has none.
type Void struct{}

// EncodeXDR writes nothing.
func (Void) EncodeXDR(*Encoder) error { return nil }

// DecodeXDR reads nothing.
func (*Void) DecodeXDR(*Decoder) {}

// Marshal returns the encoded form of m.
func Marshal(m Marshaler) ([]byte, error) {
	var e Encoder
	if err := m.EncodeXDR(&e); err != nil {
		return nil, err
	}
	return e.Bytes(), nil
}

// Unmarshal fills u from b. Bytes after the last field are ignored, as
// libvirt's virNetMessageDecodePayload does; a caller that cares decodes with
// its own Decoder and looks at Rest.
//
// The result shares no memory with b.
func Unmarshal(b []byte, u Unmarshaler) error {
	d := NewDecoder(b)
	u.DecodeXDR(d)
	return d.Err()
}
