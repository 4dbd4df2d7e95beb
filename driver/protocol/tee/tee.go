// Package tee is a proxy between a libvirt client and a libvirt daemon that
// decodes every packet, encodes it again and compares the bytes. Real peers are
// the only authority on the wire; this is how the codec is held against them.
//
//	virsh <-> Proxy <-> libvirtd
//	            |
//	          Check: frame -> protocol types -> frame, the same bytes
//
// It is a tool of the tests and no part of the daemon.
package tee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"virtvzd/driver/protocol"
)

// A Proxy passes packets between clients and one daemon and keeps the count.
type Proxy struct {
	dial func() (net.Conn, error)
	l    net.Listener
	wg   sync.WaitGroup

	mu       sync.Mutex
	packets  int
	kinds    map[string]Packet // the first of each kind
	problems []string
}

// Listen starts a Proxy at the unix socket path. It calls dial for a connection
// to the daemon whenever a client comes.
func Listen(path string, dial func() (net.Conn, error)) (*Proxy, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	p := &Proxy{dial: dial, l: l, kinds: map[string]Packet{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Close stops listening and waits until the last client has gone.
func (p *Proxy) Close() error {
	err := p.l.Close()
	p.wg.Wait()
	return err
}

// Result returns how many packets went through, the first of each kind by the
// kind's name, and a sentence for each packet that did not come out the same.
func (p *Proxy) Result() (packets int, kinds map[string]Packet, problems []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.packets, maps.Clone(p.kinds), slices.Clone(p.problems)
}

func (p *Proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		daemon, err := p.dial()
		if err != nil {
			p.problem("connect to the daemon: %v", err)
			client.Close()
			continue
		}
		w := &watch{make(chan struct{}, 1)}
		p.wg.Go(func() { p.pass(daemon, client, false, w) })
		p.wg.Go(func() { p.pass(client, daemon, true, w) })
	}
}

// pass copies packets one way until either side ends, then ends both.
func (p *Proxy) pass(to, from net.Conn, fromServer bool, w *watch) {
	defer to.Close()
	defer from.Close()
	for {
		frame, err := readFrame(from)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				p.problem("%v", err)
			}
			return
		}
		w.await(p.note(frame, fromServer))
		if _, err := to.Write(frame); err != nil {
			return // the other direction knows why
		}
	}
}

// readFrame returns one packet with the length word in front.
func readFrame(r io.Reader) ([]byte, error) {
	var word [protocol.MessageLenMax]byte
	if _, err := io.ReadFull(r, word[:]); err != nil {
		return nil, io.EOF // between packets or not, the client decides when to go
	}
	n := binary.BigEndian.Uint32(word[:])
	if n < protocol.MessageLenMax+protocol.MessageHeaderMax || n > protocol.MessageLenMax+protocol.MessageMax {
		return nil, fmt.Errorf("a packet of %d bytes", n)
	}
	frame := make([]byte, n)
	copy(frame, word[:])
	if _, err := io.ReadFull(r, frame[len(word):]); err != nil {
		return nil, io.EOF
	}
	return frame, nil
}

// watch is how virsh watches a job. One thread asks for the job, and has the
// event loop end that another runs until then, which asks how far the job is. A
// job that ends before that loop has begun is waited for without end (seen with
// virsh 9.0 on a busy host): its answer is held back until the loop has asked.
type watch struct{ asked chan struct{} }

// watched are the procedures that virsh watches so.
var watched = []string{"DOMAIN_SAVE", "DOMAIN_SAVE_FLAGS", "DOMAIN_SAVE_PARAMS", "DOMAIN_MANAGED_SAVE", "DOMAIN_CORE_DUMP", "DOMAIN_CORE_DUMP_WITH_FORMAT"}

// await is called with each packet of a connection before it is passed on.
func (w *watch) await(kind string) {
	name, what, _ := strings.Cut(kind, " ")
	switch isWatched := slices.Contains(watched, name); {
	case kind == "DOMAIN_GET_JOB_INFO call":
		select {
		case w.asked <- struct{}{}:
		default:
		}
	case isWatched && what == "call":
		select {
		case <-w.asked: // how far another job was
		default:
		}
	case isWatched:
		select {
		case <-w.asked:
		case <-time.After(10 * time.Second): // it is not virsh
		}
	}
}

func (p *Proxy) note(frame []byte, fromServer bool) (kind string) {
	packet := Packet{FromServer: fromServer, Frame: frame}
	kind, err := packet.Check()
	p.mu.Lock()
	p.packets++
	if _, seen := p.kinds[kind]; !seen {
		p.kinds[kind] = packet
	}
	p.mu.Unlock()
	if err != nil {
		p.problem("%s: %v", kind, err)
	}
	return kind
}

func (p *Proxy) problem(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}
