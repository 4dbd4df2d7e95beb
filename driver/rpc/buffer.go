package rpc

import (
	"math/bits"
	"sync"
)

// buffer is memory that is used again. Sizes are powers of two, so that any
// message of a size finds the memory of an earlier one like it.
type buffer struct{ b []byte }

const (
	smallestBuffer = 512
	bufferSizes    = 11 // 512 bytes to 512 KiB, which holds a stream packet
)

var buffers [bufferSizes]sync.Pool

// getBuffer gives at least n bytes of any content.
func getBuffer(n int) *buffer {
	size := bits.Len(uint(max(n, 1)-1) / smallestBuffer)
	if size >= bufferSizes {
		return &buffer{make([]byte, n)}
	}
	if b, ok := buffers[size].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, smallestBuffer<<size)}
}

// free gives the memory back; nobody may use it any more. Larger ones are
// left to the garbage collector: they are rare.
func (b *buffer) free() {
	if b == nil {
		return
	}
	// What append made larger counts as the size below.
	size := bits.Len(uint(cap(b.b))/smallestBuffer) - 1
	if size < 0 || size >= bufferSizes {
		return
	}
	b.b = b.b[:smallestBuffer<<size]
	buffers[size].Put(b)
}
