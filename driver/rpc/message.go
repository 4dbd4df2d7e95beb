package rpc

import (
	"encoding/binary"
	"fmt"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

const (
	lengthSize = 4     // the length word, which counts itself
	headerSize = 4 * 6 // program, version, procedure, type, serial, status
	frameStart = lengthSize + headerSize

	// MaxMessage is the most a message may hold after its length word
	// (VIR_NET_MESSAGE_MAX).
	MaxMessage = 32 << 20
	// MaxFiles is how many descriptors one message may carry
	// (VIR_NET_MESSAGE_NUM_FDS_MAX).
	MaxFiles = 32
	// MaxStreamData is the payload of one stream packet, chosen by libvirt
	// so that old clients' 256 KiB messages hold it.
	MaxStreamData = 262120
)

// frameLength checks a length word and gives the size of the whole frame.
func frameLength(word []byte, longest int) (int, error) {
	n := binary.BigEndian.Uint32(word)
	if n < frameStart {
		return 0, fmt.Errorf("a message of %d bytes is shorter than its header", n)
	}
	if int64(n) > int64(longest)+lengthSize {
		return 0, fmt.Errorf("a message of %d bytes is larger than the limit of %d", n, longest)
	}
	return int(n), nil
}

// parseHeader reads the header of a whole frame.
func parseHeader(frame []byte) protocol.MessageHeader {
	word := func(i int) uint32 { return binary.BigEndian.Uint32(frame[lengthSize+4*i:]) }
	return protocol.MessageHeader{
		Prog: word(0), Vers: word(1), Proc: int32(word(2)),
		Type: protocol.MessageType(word(3)), Serial: word(4), Status: protocol.MessageStatus(word(5)),
	}
}

// fileCount reads how many descriptors follow a message of the types that
// carry some, and gives the body behind that number.
func fileCount(body []byte) (n int, rest []byte, err error) {
	d := xdr.NewDecoder(body)
	count := d.Uint32()
	if d.Err() != nil {
		return 0, nil, fmt.Errorf("a message with descriptors does not tell their number")
	}
	if count > MaxFiles {
		return 0, nil, fmt.Errorf("a message announces %d descriptors, the limit is %d", count, MaxFiles)
	}
	return int(count), body[4:], nil
}

// encodeFrame makes a frame; no body is an empty one.
func encodeFrame(h protocol.MessageHeader, body xdr.Marshaler) (*buffer, error) {
	buf := getBuffer(smallestBuffer)
	e := xdr.NewEncoder(buf.b[:lengthSize])
	h.EncodeXDR(e)
	if body != nil {
		if err := body.EncodeXDR(e); err != nil {
			return nil, err
		}
	}
	if err := e.Err(); err != nil {
		return nil, err
	}
	buf.b = e.Bytes()
	if len(buf.b) > MaxMessage+lengthSize {
		return nil, fmt.Errorf("it takes %d bytes, a message may have %d: ask for less at a time", len(buf.b), MaxMessage)
	}
	binary.BigEndian.PutUint32(buf.b, uint32(len(buf.b)))
	return buf, nil
}

// Raw is a body that is encoded already, to be passed on.
type Raw []byte

// EncodeXDR writes it as it is.
func (r Raw) EncodeXDR(e *xdr.Encoder) error {
	e.FixedOpaque(r)
	return nil
}

// withFiles puts the number of descriptors before a body.
type withFiles struct {
	count int
	body  xdr.Marshaler
}

func (w withFiles) EncodeXDR(e *xdr.Encoder) error {
	e.Uint32(uint32(w.count))
	return w.body.EncodeXDR(e)
}

// encodeData makes a stream packet: its data is not padded.
func encodeData(h protocol.MessageHeader, data []byte) *buffer {
	buf := getBuffer(frameStart + len(data))
	e := xdr.NewEncoder(buf.b[:lengthSize])
	h.EncodeXDR(e)
	buf.b = append(e.Bytes(), data...)
	binary.BigEndian.PutUint32(buf.b, uint32(len(buf.b)))
	return buf
}
