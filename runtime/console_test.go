package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRing compares with the obvious implementation.
func TestRing(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for range 200 {
		r := ring{limit: 1 << (10 + random.Intn(3))}
		var all []byte
		for range 40 {
			p := make([]byte, random.Intn(r.limit/4))
			if random.Intn(10) == 0 {
				p = make([]byte, r.limit+random.Intn(500))
			}
			random.Read(p)
			r.Write(p)
			all = append(all, p...)
			pos := uint64(random.Intn(len(all) + 1))
			out := make([]byte, random.Intn(2*r.limit))
			n, next := r.readAt(out, pos)
			from := max(pos, r.start())
			if want := all[from:min(uint64(len(all)), from+uint64(len(out)))]; !bytes.Equal(out[:n], want) || next != from+uint64(n) {
				t.Fatalf("read %d bytes at %d of %d (limit %d): got %d bytes, next %d", len(out), pos, len(all), r.limit, n, next)
			}
			if len(all) >= r.limit && r.end-r.start() != uint64(r.limit) {
				t.Fatalf("keeps %d of %d bytes", r.end-r.start(), r.limit)
			}
		}
	}
}

// openPty returns a console on the master of a fresh pty and the slave's name.
func openPty(t *testing.T, log *consoleLog) (*Console, string) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	c := newConsole(masterFile(fd), recordedConsole{Path: "/dev/console"}, log)
	t.Cleanup(c.finish)
	return c, fmt.Sprintf("/dev/pts/%d", n)
}

// say opens the slave, prints and closes it, as systemd does.
func say(t *testing.T, slave, text string) {
	t.Helper()
	f, err := os.OpenFile(slave, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		buf := make([]byte, len(want))
		n, _ := io.ReadFull(r, buf)
		got <- string(buf[:n])
	}()
	select {
	case g := <-got:
		if g != want {
			t.Fatalf("read %q, want %q", g, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%q did not come", want)
	}
}

func TestConsoleSurvivesClosedSlave(t *testing.T) {
	c, slave := openPty(t, nil)
	a, err := c.Attach(false)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		text := fmt.Sprintf("line %d", n)
		say(t, slave, text+"\n")
		expect(t, a, text+"\r\n")
	}
}

func TestConsoleAttach(t *testing.T) {
	c, slave := openPty(t, nil)
	say(t, slave, "boot\nlogin: ")
	a, err := c.Attach(false)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, a, "boot\r\nlogin: ") // what was printed before anybody came
	if _, err := c.Attach(false); !errors.Is(err, ErrBusy) {
		t.Fatalf("second attach: %v", err)
	}
	blocked := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); blocked <- err }()
	b, err := c.Attach(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-blocked; err != io.EOF {
		t.Fatalf("the first reader got %v", err)
	}
	if _, err := a.Write([]byte("x")); err == nil {
		t.Fatal("the first one can still type")
	}
	expect(t, b, "login: ") // the current line once more
	a.Close()               // must not detach b
	if _, err := c.Attach(false); !errors.Is(err, ErrBusy) {
		t.Fatalf("after the old one closed: %v", err)
	}
	f, err := os.OpenFile(slave, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := b.Write([]byte("root\r")); err != nil {
		t.Fatal(err)
	}
	expect(t, f, "root\n")
	expect(t, b, "root\r\n") // the echo
	b.Close()
	say(t, slave, "unseen\n")
	d, err := c.Attach(false)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, d, "unseen\r\n")
	if _, err := f.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	c.finish()
	rest, err := io.ReadAll(d)
	if string(rest) != "last words" || err != nil {
		t.Fatalf("at the end: %q, %v", rest, err)
	}
}

// A client that does not read loses output; the environment is not blocked.
func TestConsoleSlowReader(t *testing.T) {
	c, slave := openPty(t, nil)
	a, _ := c.Attach(false)
	line := strings.Repeat("x", 97) + "\n"
	done := make(chan bool)
	go func() {
		for range 3000 {
			say(t, slave, line)
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("printing blocks")
	}
	printed := func() uint64 { c.mu.Lock(); defer c.mu.Unlock(); return c.ring.end }
	for end := time.Now().Add(20 * time.Second); printed() < 3000*99; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("only %d bytes arrive", printed())
		}
	}
	if n, _ := a.Read(make([]byte, 2*ringLimit)); n != ringLimit {
		t.Fatalf("read %d bytes, want the last %d", n, ringLimit)
	}
}

func TestConsoleCloseUnblocksWrite(t *testing.T) {
	c, _ := openPty(t, nil)
	a, _ := c.Attach(false)
	done := make(chan error, 1)
	go func() {
		for {
			if _, err := a.Write(make([]byte, 4096)); err != nil {
				done <- err
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	a.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a blocked write outlives its attachment")
	}
}

func TestConsoleLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console.log")
	os.WriteFile(name, []byte("old\n"), 0o600)
	log, err := openLog(name, true)
	if err != nil {
		t.Fatal(err)
	}
	c, slave := openPty(t, log)
	say(t, slave, "hello\n")
	c.finish()
	deadline := time.Now().Add(20 * time.Second)
	for {
		got, _ := os.ReadFile(name)
		if string(got) == "old\nhello\r\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("log has %q", got)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestConsoleLogRotates(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console.log")
	log, err := openLog(name, false)
	if err != nil {
		t.Fatal(err)
	}
	for range 12 {
		log.write(make([]byte, 1<<20))
	}
	log.close()
	log.write([]byte("after close"))
	files, _ := filepath.Glob(name + "*")
	if len(files) != 1+logBackups {
		t.Fatalf("there are %v", files)
	}
	for _, f := range files {
		if info, _ := os.Stat(f); info.Size() > logLimit {
			t.Errorf("%s has %d bytes", f, info.Size())
		}
	}
}
