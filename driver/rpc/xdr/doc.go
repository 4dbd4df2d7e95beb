// Package xdr reads and writes XDR (RFC 4506) the way libvirt's peers do: with
// the C library's xdr_* functions, whose small departures from the RFC are part
// of the wire.
//
// Its path in the whole: socket -> rpc (frames) -> xdr (this package) ->
// protocol (the generated types, which call the Encoder and Decoder here).
//
// Three habits of the C side are kept, because clients depend on them:
//
//   - A C char or short travels as a whole word, so `char x[32]` is 128 bytes.
//     Only opaque data and strings are packed.
//   - An optional pointer is present when its flag is anything but zero
//     (go-libvirt sends 01 00 00 00).
//   - Bytes left over after the last field are ignored.
//
// Nothing is allocated on the word of a length: each variable-size read takes
// the protocol's limit and is refused when the bytes are not there.
package xdr
