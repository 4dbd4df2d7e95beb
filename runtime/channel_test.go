package runtime

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// frameBytes is a frame as it is on the wire.
func frameBytes(kind byte, body string) string {
	var b bytes.Buffer
	writeRecord(&b, kind, []byte(body))
	return b.String()
}

// stranger is the other end of a connection: it says something, drops what it is
// told, and goes or stays.
func stranger(t *testing.T, says string, stays bool) io.ReadWriteCloser {
	t.Helper()
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	go func() {
		io.WriteString(theirs, says)
		if !stays {
			theirs.Close()
		}
	}()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours
}

// TestChannelFrames has a message be waited for from hosts that say something
// else.
func TestChannelFrames(t *testing.T) {
	message := frameBytes(frameMessage, `{"What":"disk"}`)
	for name, c := range map[string]struct {
		says string
		want string // of the error; "": none
	}{
		"a message":           {message, ""},
		"after pings":         {strings.Repeat(frameBytes(framePing, ""), 5) + message, ""},
		"after others' pages": {frameBytes(framePages, "abc") + message, ""},
		"more than is known":  {frameBytes(frameMessage, `{"What":"disk","New":[1]}`), ""},
		"nothing":             {"", "the connection with the other host has ended: unexpected EOF"},
		"half a head":         {message[:3], "has ended: unexpected EOF"},
		"no body":             {message[:5], "has ended: unexpected EOF"},
		"half a body":         {message[:9], "has ended: unexpected EOF"},
		"too long":            {"m\x00\x10\x00\x01", "a frame of 1048577 bytes is longer than any can be"},
		"as long as it gets":  {"p\xff\xff\xff\xff", "a frame of 4294967295 bytes is longer than any can be"},
		"HTTP":                {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "is longer than any can be"},
		"TLS":                 {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "is longer than any can be"},
		"data":                {frameBytes(frameData, "x"), "sent a frame of the kind 'd' where a message was due"},
		"the end of data":     {frameBytes(frameEnd, ""), "sent a frame of the kind 'e' where a message was due"},
		"no kind":             {"\x00\x00\x00\x00\x00", `sent a frame of the kind '\x00' where a message was due`},
		"no JSON":             {frameBytes(frameMessage, "{"), "unexpected end of JSON input"},
		"no object":           {frameBytes(frameMessage, "[]"), "cannot unmarshal array"},
		"another type":        {frameBytes(frameMessage, `{"What":1}`), "cannot unmarshal number"},
		"gives up":            {frameBytes(frameFailure, "no \x1b[31mroom\n") + message, "the other host says: no "},
	} {
		t.Run(name, func(t *testing.T) {
			ch := newChannel(stranger(t, c.says, false))
			defer ch.close(nil)
			var p part
			err := ch.receive(t.Context(), &p)
			switch {
			case c.want == "" && (err != nil || p.What != partDisk):
				t.Errorf("got %+v, %v", p, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %s", err, c.want)
			case err != nil && strings.ContainsAny(err.Error(), "\x1b\n"):
				t.Errorf("%q goes to a terminal", err)
			}
		})
	}
}

// TestChannelData has data be waited for.
func TestChannelData(t *testing.T) {
	d := func(body string) string { return frameBytes(frameData, body) }
	end, next := frameBytes(frameEnd, ""), frameBytes(frameMessage, `{"What":"switch"}`)
	for name, c := range map[string]struct {
		says, got string
		want      string // of the error
	}{
		"in parts":    {d("a") + d("") + d("bc") + end + next, "abc", ""},
		"none":        {end + next, "", ""},
		"with pings":  {d("a") + frameBytes(framePing, "") + d("b") + end + next, "ab", ""},
		"a message":   {d("a") + next + end, "a", "sent a frame of the kind 'm' among data"},
		"unknown":     {d("a") + frameBytes('?', "b") + end, "a", "sent a frame of the kind '?' among data"},
		"cut":         {d("a") + d("bcd")[:6], "a", "unexpected EOF"},
		"without end": {d("a"), "a", "unexpected EOF"},
		"given up":    {d("a") + frameBytes(frameFailure, "disk full"), "a", "the other host says: disk full"},
		"too long":    {d("a") + "d\x00\x20\x00\x00", "a", "longer than any can be"},
	} {
		t.Run(name, func(t *testing.T) {
			ch := newChannel(stranger(t, c.says, false))
			defer ch.close(nil)
			var got []byte
			err := ch.receiveData(t.Context(), func(r io.Reader) (err error) {
				got, err = io.ReadAll(r)
				return err
			})
			if string(got) != c.got || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q and %v, want %q and %q", got, err, c.got, c.want)
			}
			var p part
			if err := ch.receive(t.Context(), &p); c.want == "" && (err != nil || p.What != partSwitch) {
				t.Errorf("then %+v, %v", p, err)
			}
		})
	}
	// What is not read is dropped, and what follows is a message again.
	ch := newChannel(stranger(t, d("abc")+d("def")+end+next, false))
	defer ch.close(nil)
	var p part
	err := ch.receiveData(t.Context(), func(r io.Reader) error { _, err := r.Read(make([]byte, 2)); return err })
	if err = errors.Join(err, ch.receive(t.Context(), &p)); err != nil || p.What != partSwitch {
		t.Errorf("got %+v, %v", p, err)
	}
}

// TestChannelBoth sends both ways at once, more than a frame has, and the reason
// why one side gives up.
func TestChannelBoth(t *testing.T) {
	one, other := net.Pipe()
	a, b := newChannel(one), newChannel(other)
	defer a.close(nil)
	body := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	sent, received := make(chan error, 2), make(chan []byte, 2)
	both := func(ch *channel) {
		go func() {
			sent <- ch.sendData(t.Context(), func(int) {}, func(w io.Writer) error { _, err := w.Write(body); return err })
		}()
		go ch.receiveData(t.Context(), func(r io.Reader) error {
			got, err := io.ReadAll(r)
			received <- got
			return err
		})
	}
	both(a)
	both(b)
	for range 2 {
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if got := <-received; !bytes.Equal(got, body) {
			t.Errorf("%d of %d bytes came", len(got), len(body))
		}
	}
	if err := a.send(make([]byte, maxFrame)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a long message: %v", err)
	}
	b.fail(errors.New(strings.Repeat("ö", 10_000)))
	var peer *PeerError
	if err := a.receive(t.Context(), &part{}); !errors.As(err, &peer) || len(peer.text) > 10_000 {
		t.Errorf("got %v", err)
	}
	if err := a.send(part{}); !errors.As(err, &peer) {
		t.Errorf("after that: %v", err)
	}
}

// TestChannelSilence: a host that says nothing is given up, one that has nothing
// to say is not, nor is one that is kept waiting.
func TestChannelSilence(t *testing.T) {
	pipe := func(t *testing.T) (*channel, net.Conn) {
		ours, theirs := net.Pipe()
		ch := newChannel(ours)
		t.Cleanup(func() { ch.close(nil); theirs.Close() })
		return ch, theirs
	}
	ended := func(t *testing.T, began time.Time, err error) {
		t.Helper()
		if took := time.Since(began); err != errChannelSilent || took < channelPatience || took > channelPatience+3*channelPulse {
			t.Errorf("after %s: %v", took, err)
		}
	}
	for name, test := range map[string]func(*testing.T){
		"reads and says nothing": func(t *testing.T) {
			ch, theirs := pipe(t)
			go io.Copy(io.Discard, theirs)
			ended(t, time.Now(), ch.receive(t.Context(), &part{}))
		},
		"does not read": func(t *testing.T) {
			ch, _ := pipe(t)
			ended(t, time.Now(), ch.send(part{}))
		},
		"stops in a frame": func(t *testing.T) {
			ch, theirs := pipe(t)
			go io.Copy(io.Discard, theirs)
			go io.WriteString(theirs, frameBytes(frameMessage, "{}")[:6])
			ended(t, time.Now(), ch.receive(t.Context(), &part{}))
		},
		"reads no reason": func(t *testing.T) {
			ch, _ := pipe(t)
			began := time.Now()
			ch.fail(io.ErrShortBuffer)
			if took := time.Since(began); took > channelPulse || ch.ended() != io.ErrShortBuffer {
				t.Errorf("after %s: %v", took, ch.ended())
			}
		},
		"has nothing to say": func(t *testing.T) {
			ch, theirs := pipe(t)
			other := newChannel(theirs)
			defer other.close(nil)
			time.Sleep(time.Hour)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			if err := ch.receive(ctx, &part{}); err != context.DeadlineExceeded || ch.ended() != nil {
				t.Errorf("got %v, %v", err, ch.ended())
			}
		},
		"has to wait": func(t *testing.T) {
			for _, kind := range []byte{frameMessage, framePages} {
				ch, theirs := pipe(t)
				go io.Copy(io.Discard, theirs)
				go io.WriteString(theirs, strings.Repeat(frameBytes(kind, "{}"), 20))
				time.Sleep(time.Hour)
				if err := ch.ended(); err != nil {
					t.Errorf("%c: %v", kind, err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}

// TestCarryPages passes on what both CRIUs say, until one has said all.
func TestCarryPages(t *testing.T) {
	one, other := net.Pipe()
	source, destination := newChannel(one), newChannel(other)
	defer source.close(nil)
	defer destination.close(nil)
	carried := make(chan error, 2)
	criu := func(ch *channel) net.Conn {
		theirs, ours := net.Pipe()
		go func() {
			carried <- ch.carryPages(ours)
			ours.Close()
		}()
		return theirs
	}
	dump, restore := criu(source), criu(destination)
	page := bytes.Repeat([]byte("page"), maxFrameData)
	for range 3 {
		go io.WriteString(restore, "which")
		asked := make([]byte, 5)
		if _, err := io.ReadFull(dump, asked); err != nil || string(asked) != "which" {
			t.Fatalf("%q %v", asked, err)
		}
		go dump.Write(page)
		got := make([]byte, len(page))
		if _, err := io.ReadFull(restore, got); err != nil || !bytes.Equal(got, page) {
			t.Fatal(err)
		}
	}
	restore.Close()
	if err := <-carried; err != nil {
		t.Errorf("the end of it is an error: %v", err)
	}
	source.close(nil)
	if err := <-carried; err == nil {
		t.Error("the end of the connection is none")
	}
}

// TestCarryPagesSlowly: memory that follows keeps to the limit that it has.
func TestCarryPagesSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link, theirs := net.Pipe()
		ch := newChannel(link)
		go io.Copy(io.Discard, theirs)
		control := NewMigrationControl(0, 0)
		control.use(ch)
		control.SetPostCopyBandwidth(1 << 20)
		ours, dump := net.Pipe()
		go ch.carryPages(ours)
		began := time.Now()
		dump.Write(make([]byte, 5<<20))
		if took := time.Since(began); took < 4*time.Second || took > 6*time.Second {
			t.Errorf("5 MiB take %v, with 1 MiB a second", took)
		}
		dump.Close()
		ch.close(nil)
		time.Sleep(time.Second) // who still waits for its turn
	})
}

// FuzzChannel receives what any host may send, as messages and data in turn.
func FuzzChannel(f *testing.F) {
	f.Add([]byte(frameBytes(frameMessage, "{}") + frameBytes(frameData, "x") + frameBytes(frameEnd, "") + frameBytes(frameFailure, "why")))
	f.Add([]byte(frameBytes(framePing, "") + frameBytes(framePages, "p") + "d\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, says []byte) {
		ch := answerChannel(&script{Reader: bytes.NewReader(says)})
		defer ch.close(nil)
		for ch.receive(t.Context(), &part{}) == nil {
			ch.receiveData(t.Context(), func(r io.Reader) error {
				n, err := io.Copy(io.Discard, r)
				if n > int64(len(says)) {
					t.Errorf("%d bytes of data in %d", n, len(says))
				}
				return err
			})
		}
		ch.close(nil)
		if err := ch.send(part{}); err == nil {
			t.Error("it has ended, and something can be sent")
		}
	})
}

// script is a connection on which all was said in advance.
type script struct{ io.Reader }

func (*script) Write(p []byte) (int, error) { return len(p), nil }
func (*script) Close() error                { return nil }
