package runtime

import (
	"bytes"
	"strconv"
)

// Pressure tells how much time was lost to waiting for a resource: by some
// task, and by all at once.
type Pressure struct{ Some, Full Stall }

// Stall is the share of the last 10, 60 and 300 seconds, in percent, and the
// time since the start, in microseconds. Total is Unknown, and the rest
// means nothing, when the kernel does not account pressure (psi=0).
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                Number
}

// Pressure reads that of "cpu", "memory" or "io".
func (c *Cgroup) Pressure(resource string) (p Pressure) {
	p.Some.Total, p.Full.Total = Unknown, Unknown
	var line []byte
	for text := c.read(resource + ".pressure"); len(text) > 0; {
		line, text, _ = bytes.Cut(text, []byte("\n"))
		kind, rest, _ := bytes.Cut(line, []byte(" "))
		switch string(kind) {
		case "some":
			p.Some = parseStall(rest)
		case "full":
			p.Full = parseStall(rest)
		}
	}
	return p
}

func parseStall(text []byte) Stall {
	s := Stall{Total: Unknown}
	for field := range bytes.FieldsSeq(text) {
		name, value, _ := bytes.Cut(field, []byte("="))
		switch string(name) {
		case "avg10":
			s.Avg10, _ = strconv.ParseFloat(string(value), 64)
		case "avg60":
			s.Avg60, _ = strconv.ParseFloat(string(value), 64)
		case "avg300":
			s.Avg300, _ = strconv.ParseFloat(string(value), 64)
		case "total":
			s.Total = parseNumber(value)
		}
	}
	return s
}
