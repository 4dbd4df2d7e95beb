package runtime

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// The ids given to environments are systemd's container range
// (systemd's UIDS-GIDS.md): nothing else on a systemd host hands these out, and
// systemd-nspawn, which shares the range, is avoided as found in use.
const (
	rangeSize  = 65536
	firstRange = 524288
	lastRange  = 1879048191 // the last id, not the last base
)

// span is a set of host ids, [First, First+Count).
type span struct{ First, Count uint32 }

func (s span) overlaps(o span) bool {
	return uint64(s.First) < uint64(o.First)+uint64(o.Count) &&
		uint64(o.First) < uint64(s.First)+uint64(s.Count)
}

// pickRange chooses a free, aligned base for an environment. The search starts at
// a place given by the UUID, so the same environment usually gets the same ids
// again and two starts at once rarely meet.
func pickRange(uuid [16]byte, taken []span) (uint32, error) {
	const slots = (lastRange + 1 - firstRange) / rangeSize
	start := binary.BigEndian.Uint64(uuid[8:]) ^ binary.BigEndian.Uint64(uuid[:8])
	for n := uint64(0); n < slots; n++ {
		base := uint32(firstRange + (start%slots+n)%slots*rangeSize)
		if free(span{base, rangeSize}, taken) {
			return base, nil
		}
	}
	return 0, fmt.Errorf("no free range of %d ids is left between %d and %d", rangeSize, firstRange, lastRange)
}

func free(s span, taken []span) bool {
	for _, t := range taken {
		if s.overlaps(t) {
			return false
		}
	}
	return true
}

// foreignSpans reads the ids that others on the host use: /etc/subuid and
// /etc/subgid (NAME:FIRST:COUNT) and the accounts of /etc/passwd. A file that
// is not there takes nothing; a malformed line is somebody else's error.
func foreignSpans(etc string) []span {
	var spans []span
	for _, name := range []string{"subuid", "subgid", "passwd"} {
		f, err := os.Open(etc + "/" + name)
		if err != nil {
			continue
		}
		spans = append(spans, parseSpans(f, name == "passwd")...)
		f.Close()
	}
	return spans
}

func parseSpans(r io.Reader, passwd bool) []span {
	var spans []span
	lines := bufio.NewScanner(io.LimitReader(r, 4<<20))
	for lines.Scan() {
		f := strings.Split(lines.Text(), ":")
		if len(f) < 3 {
			continue
		}
		if passwd {
			f[1], f[2] = f[2], "1"
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && count > 0 {
			spans = append(spans, span{uint32(first), uint32(count)})
		}
	}
	return spans
}
