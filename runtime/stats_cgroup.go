package runtime

import (
	"bytes"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Number is a count, bytes or a time as the kernel tells it.
type Number int64

const (
	// Unknown is what this kernel does not tell, or not without a controller
	// that is off.
	Unknown Number = -1
	// Unlimited is a limit of "max".
	Unlimited Number = math.MaxInt64
)

// Known tells whether there is a value; Unlimited is one.
func (n Number) Known() bool { return n >= 0 }

// Sum adds up. It is Unknown as soon as a part is, and Unlimited likewise.
func Sum(parts ...Number) (total Number) {
	for _, n := range parts {
		switch {
		case !n.Known():
			return Unknown
		case n > Unlimited-total:
			total = Unlimited
		default:
			total += n
		}
	}
	return total
}

// Cgroup reads the numbers of one environment. They are those of the scope's
// cgroup, which the kernel keeps as long as the scope: a restart of the daemon
// changes none of them, a restart of the environment begins anew.
//
// The directory is opened once and each file relative to it, so a file costs
// three system calls, and none of them waits. Keeping the directory open from
// one reading to the next would save a seventieth. Not for concurrent use.
type Cgroup struct {
	dir int
	buf []byte
}

// maxCgroupFile bounds a file. The longest, io.stat, has a line of some 100
// bytes for each block device of the host.
const maxCgroupFile = 1 << 20

// OpenCgroup opens a cgroup by its directory.
func OpenCgroup(path string) (*Cgroup, error) {
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return &Cgroup{dir: dir, buf: make([]byte, 4096)}, nil
}

// Cgroup opens the cgroup of the environment's scope. It fails with ENOENT
// when the environment has just ended. The caller closes it.
func (i *Instance) Cgroup() (*Cgroup, error) { return OpenCgroup(i.CgroupPath()) }

// Close gives back the descriptor.
func (c *Cgroup) Close() { unix.Close(c.dir) }

// read gives the contents of a file, valid until the next read, and nothing
// for one that is not there. The environment's root owns the directory and can make
// directories in it, never files.
func (c *Cgroup) read(name string) []byte {
	fd, err := unix.Openat(c.dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	for n := 0; ; {
		m, err := unix.Read(fd, c.buf[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil
		}
		n += m
		// Such a file is a single record of the kernel's seq_file: a read that
		// leaves room has all of it.
		if n < len(c.buf) || n >= maxCgroupFile {
			return c.buf[:n]
		}
		c.buf = append(c.buf, make([]byte, len(c.buf))...)
	}
}

// number reads a file of one number.
func (c *Cgroup) number(name string) Number {
	return parseNumber(bytes.TrimSuffix(c.read(name), []byte("\n")))
}

// key says where a value goes.
type key struct {
	name  string
	value *Number
}

// keyed reads a file of "name value" lines. What it does not have is Unknown.
func (c *Cgroup) keyed(file string, keys ...key) {
	for _, k := range keys {
		*k.value = Unknown
	}
	var line []byte
	for text := c.read(file); len(text) > 0; {
		line, text, _ = bytes.Cut(text, []byte("\n"))
		name, value, _ := bytes.Cut(line, []byte(" "))
		assign(keys, name, value)
	}
}

func assign(keys []key, name, value []byte) {
	for _, k := range keys {
		if string(name) == k.name {
			*k.value = parseNumber(value)
			return
		}
	}
}

// parseNumber reads a whole number or "max". What a signed 64-bit number cannot
// hold, such as the memory limit of the host's root, limits nothing.
func parseNumber(text []byte) Number {
	if string(text) == "max" {
		return Unlimited
	}
	if len(text) == 0 {
		return Unknown
	}
	n := Number(0)
	for _, c := range text {
		if c < '0' || c > '9' {
			return Unknown
		}
		if n > (Unlimited-9)/10 {
			return Unlimited
		}
		n = n*10 + Number(c-'0')
	}
	return n
}
