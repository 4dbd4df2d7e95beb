package rpc

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

// BenchmarkCall is a call that does nothing, as a client in C makes it: one
// system call to send and one to wait for the reply.
func BenchmarkCall(b *testing.B) {
	for mode, procedure := range map[string]int32{"inline": procEcho, "pool": procUrgent} {
		b.Run(mode, func(b *testing.B) { benchmarkCall(b, procedure, 1) })
		b.Run(mode+"-4", func(b *testing.B) { benchmarkCall(b, procedure, 4) })
	}
}

func benchmarkCall(b *testing.B, procedure int32, inFlight int) {
	s := newTestServer(b, nil)
	file, err := rpctest.Dial(b, s.path).File()
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	fd := int(file.Fd()) // blocking, so that Go's scheduler is not measured on this side
	frame := rpctest.Frame(protocol.MessageHeader{Prog: testProgram, Vers: testVersion, Proc: procedure}, nil)
	var frames []byte
	for range inFlight {
		frames = append(frames, frame...)
	}
	in := make([]byte, len(frames))
	b.ReportAllocs()
	for done := 0; b.Loop(); done++ {
		if done%inFlight != 0 {
			continue
		}
		if _, err := unix.Write(fd, frames); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < len(frames); {
			n, err := unix.Read(fd, in[got:])
			if err != nil || n == 0 {
				b.Fatal(fmt.Errorf("read %d: %w", n, err))
			}
			got += n
		}
	}
}
