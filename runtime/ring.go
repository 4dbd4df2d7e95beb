package runtime

// ring keeps the last bytes printed on a console. Positions count from the
// first byte ever printed, so a reader that fell behind sees that it did.
type ring struct {
	buf   []byte // grows up to limit: an idle environment costs little
	limit int
	end   uint64 // position after the last byte
}

// ringLimit is a screen's history: the boot messages of a whole system fit.
const ringLimit = 64 << 10

func (r *ring) start() uint64 { return r.end - uint64(min(uint64(len(r.buf)), r.end)) }

func (r *ring) Write(p []byte) {
	if len(r.buf) < r.limit && uint64(len(r.buf)) < r.end+uint64(len(p)) {
		r.grow(int(min(uint64(r.limit), r.end+uint64(len(p)))))
	}
	if extra := len(p) - len(r.buf); extra > 0 {
		r.end += uint64(extra)
		p = p[extra:]
	}
	for len(p) > 0 {
		n := copy(r.buf[r.end%uint64(len(r.buf)):], p)
		r.end += uint64(n)
		p = p[n:]
	}
}

// grow enlarges the buffer to at least n bytes. Before the ring is full nothing
// has wrapped, so what is in it stays where it is.
func (r *ring) grow(n int) {
	size := max(len(r.buf), 1<<10)
	for size < n {
		size *= 2
	}
	buf := make([]byte, min(size, r.limit))
	copy(buf, r.buf)
	r.buf = buf
}

// readAt copies what was printed from position pos on, or from the oldest byte
// there is, and returns the position to go on from.
func (r *ring) readAt(p []byte, pos uint64) (n int, next uint64) {
	pos = max(pos, r.start())
	for n < len(p) && pos < r.end {
		at := pos % uint64(len(r.buf))
		m := copy(p[n:], r.buf[at:min(uint64(len(r.buf)), at+r.end-pos)])
		n += m
		pos += uint64(m)
	}
	return n, pos
}

// lineStart is the position of the start of the last line.
func (r *ring) lineStart() uint64 {
	for pos := r.end; pos > r.start(); pos-- {
		if r.buf[(pos-1)%uint64(len(r.buf))] == '\n' {
			return pos
		}
	}
	return r.start()
}
