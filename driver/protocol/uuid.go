package protocol

import (
	"encoding/hex"
	"fmt"
	"strings"

	"virtvzd/driver/rpc/xdr"
)

// UUID identifies an object in 16 bytes, in the order they are printed in.
type UUID [16]byte

// String returns the form libvirt prints: 8-4-4-4-12 lower-case digits.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// ParseUUID accepts what virUUIDParse does: 32 hexadecimal digits of either
// case, with dashes and spaces before each pair, and white space around.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	bad := fmt.Errorf("%q is not a UUID: write 32 hexadecimal digits, such as 4dea22b3-1d52-d8f3-2516-782e98ab3fa0", s)
	rest := strings.Trim(s, " \t\n\f\r")
	for i := range u {
		rest = strings.TrimLeft(rest, "- ")
		if len(rest) < 2 {
			return UUID{}, bad
		}
		if _, err := hex.Decode(u[i:i+1], []byte(rest[:2])); err != nil {
			return UUID{}, bad
		}
		rest = rest[2:]
	}
	if rest != "" {
		return UUID{}, bad
	}
	return u, nil
}

// EncodeXDR implements xdr.Marshaler.
func (u UUID) EncodeXDR(e *xdr.Encoder) error {
	e.FixedOpaque(u[:])
	return e.Err()
}

// DecodeXDR implements xdr.Unmarshaler.
func (u *UUID) DecodeXDR(d *xdr.Decoder) { d.FixedOpaque(u[:]) }
