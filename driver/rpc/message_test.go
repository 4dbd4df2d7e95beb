package rpc

import (
	"bytes"
	"encoding/binary"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

func TestFrameLength(t *testing.T) {
	for n, ok := range map[uint32]bool{
		0: false, 4: false, 27: false, 28: true, 32<<20 + 4: true, 32<<20 + 5: false, 1 << 31: false, 1<<32 - 1: false,
	} {
		got, err := frameLength(binary.BigEndian.AppendUint32(nil, n), MaxMessage)
		if (err == nil) != ok || ok && got != int(n) {
			t.Errorf("a length of %d gives %d, %v", n, got, err)
		}
	}
}

func TestEncodeFrame(t *testing.T) {
	h := protocol.MessageHeader{Prog: testProgram, Vers: 1, Proc: -5, Type: protocol.Stream, Serial: 77, Status: protocol.StatusContinue}
	for _, size := range []int{0, 4, 480, 484, 488, 512, 100_000, 1 << 20, MaxMessage - headerSize} {
		body := bytes.Repeat([]byte{1, 2, 3, 4}, size/4)
		for range 2 { // the second time in memory used before
			frame, err := encodeFrame(h, data(body))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(frame.b, rpctest.Frame(h, body)) || parseHeader(frame.b) != h {
				t.Errorf("a frame of %d bytes is wrong", size)
			}
			raw := encodeData(h, body[:max(0, size-3)])
			if !bytes.Equal(raw.b, rpctest.Frame(h, body[:max(0, size-3)])) {
				t.Errorf("a packet of %d bytes is wrong", size-3)
			}
			frame.free()
			raw.free()
		}
	}
	if _, err := encodeFrame(h, data(make([]byte, MaxMessage-headerSize+4))); err == nil {
		t.Error("a frame larger than the protocol allows was made")
	}
}

// TestBuffers checks that memory is never smaller than was asked for, nor of
// a changed size after it was used.
func TestBuffers(t *testing.T) {
	for n := 1; n < 2<<20; n = n*5/4 + 1 {
		b := getBuffer(n)
		if len(b.b) < n || n > smallestBuffer && len(b.b) > 2*n {
			t.Fatalf("asked for %d bytes, got %d", n, len(b.b))
		}
		b.b = append(b.b[:n/2], make([]byte, n)...)
		b.free()
	}
	(*buffer)(nil).free()
}
