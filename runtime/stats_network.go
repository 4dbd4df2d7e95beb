package runtime

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// InterfaceStats counts what a network interface received and sent.
type InterfaceStats struct{ Received, Sent Traffic }

// Traffic is in one direction.
type Traffic struct{ Bytes, Packets, Errors, Dropped Number }

// HostInterfaces are the network interfaces of the host by name. Of a pair
// whose other end is in an environment, Received is what the environment sent.
func HostInterfaces() (map[string]InterfaceStats, error) { return readInterfaces("/proc/net/dev") }

// maxProcFile bounds files whose length an environment decides.
const maxProcFile = 4 << 20

func readProc(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

func readInterfaces(path string) (map[string]InterfaceStats, error) {
	text, err := readProc(path)
	if err != nil {
		return nil, err
	}
	return parseInterfaces(string(text)), nil
}

// parseInterfaces reads /proc/net/dev: two lines of headings, then sixteen
// numbers for each interface, half of them received.
func parseInterfaces(text string) map[string]InterfaceStats {
	list := map[string]InterfaceStats{}
	for line := range strings.Lines(text) {
		// A name can have a colon (an old alias), the numbers cannot.
		colon := strings.LastIndexByte(line, ':')
		if colon < 0 {
			continue
		}
		f := strings.Fields(line[colon+1:])
		if len(f) < 16 {
			continue
		}
		n := func(k int) Number { return parseNumber([]byte(f[k])) }
		list[strings.TrimSpace(line[:colon])] = InterfaceStats{
			Received: Traffic{n(0), n(1), n(2), n(3)}, Sent: Traffic{n(8), n(9), n(10), n(11)},
		}
	}
	return list
}

// Sockets counts the sockets in an environment's network namespace.
type Sockets struct {
	TCP   Number // listening, connecting or connected, of IPv4 and IPv6
	Other Number // of all other kinds, and TCP's that do none of this yet
}

// Sockets reads them.
func (i *Instance) Sockets() Sockets {
	v4, v6 := i.sockstat.read(i.rec.Init)
	if dead(i.pidfd) {
		return Sockets{Unknown, Unknown}
	}
	return parseSockets(v4, v6)
}

// sockstat keeps its files open from the first reading on: to find the
// process, and its network namespace, takes /proc ten times as long as to read.
type sockstat struct {
	mu     sync.Mutex
	v4, v6 *os.File // without IPv6 there is no v6
	closed bool
}

func (s *sockstat) read(pid int) (v4, v6 []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.v4 == nil && !s.closed {
		s.v4, _ = os.Open(fmt.Sprintf("/proc/%d/net/sockstat", pid))
		s.v6, _ = os.Open(fmt.Sprintf("/proc/%d/net/sockstat6", pid))
	}
	return readStart(s.v4), readStart(s.v6)
}

// readStart reads what a file of less than 1 KiB has now.
func readStart(f *os.File) []byte {
	if f == nil {
		return nil
	}
	text := make([]byte, 1024)
	n, _ := unix.Pread(int(f.Fd()), text, 0) // once, where ReadAt would look for an end
	return text[:max(0, n)]
}

func (s *sockstat) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v4.Close() // of nil an error
	s.v6.Close()
	s.v4, s.v6, s.closed = nil, nil, true
}

func parseSockets(v4, v6 []byte) Sockets {
	used, tcp, tcp6 := Unknown, Unknown, Unknown
	for line := range bytes.Lines(append(v4, v6...)) {
		f := bytes.Fields(line)
		if len(f) < 3 {
			continue
		}
		switch string(f[0]) + string(f[1]) {
		case "sockets:used":
			used = parseNumber(f[2])
		case "TCP:inuse":
			tcp = parseNumber(f[2])
		case "TCP6:inuse":
			tcp6 = parseNumber(f[2])
		}
	}
	s := Sockets{TCP: Sum(tcp, max(0, tcp6)), Other: Unknown}
	if used.Known() && s.TCP.Known() {
		s.Other = max(0, used-s.TCP)
	}
	return s
}
