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
func frameLength(word []byte) (int, error) {
	n := binary.BigEndian.Uint32(word)
	if n < frameStart {
		return 0, fmt.Errorf("a message of %d bytes is shorter than its header", n)
	}
	if n > MaxMessage+lengthSize {
		return 0, fmt.Errorf("a message of %d bytes is larger than the limit of %d", n, MaxMessage)
	}
	return int(n), nil
}

// parseHeader reads the header of a whole frame.
func parseHeader(frame []byte) (h protocol.MessageHeader) {
	d := xdr.NewDecoder(frame[lengthSize:frameStart])
	h.DecodeXDR(d)
	return h
}

// encodeFrame makes a frame.
func encodeFrame(h protocol.MessageHeader, body xdr.Marshaler) ([]byte, error) {
	e := xdr.NewEncoder(make([]byte, lengthSize, 256))
	h.EncodeXDR(e)
	if body != nil {
		if err := body.EncodeXDR(e); err != nil {
			return nil, err
		}
	}
	if err := e.Err(); err != nil {
		return nil, err
	}
	frame := e.Bytes()
	if len(frame) > MaxMessage+lengthSize {
		return nil, fmt.Errorf("the answer of %d bytes is larger than a message may be", len(frame))
	}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)))
	return frame, nil
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
func encodeData(h protocol.MessageHeader, data []byte) []byte {
	e := xdr.NewEncoder(make([]byte, lengthSize, frameStart+len(data)))
	h.EncodeXDR(e)
	frame := append(e.Bytes(), data...)
	binary.BigEndian.PutUint32(frame, uint32(len(frame)))
	return frame
}
