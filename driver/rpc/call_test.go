package rpc

import (
	"bytes"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/rpctest"
)

func TestCalls(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for _, size := range []int{0, 4, 100, 4096, 1 << 20, 30 << 20} {
		body := bytes.Repeat([]byte{7, 8, 9, 1}, size/4)
		for _, procedure := range []uint32{procEcho, procUrgent} {
			if p := call(c, procedure, body); p.Status != protocol.StatusOK || !bytes.Equal(p.Body, body) {
				t.Fatalf("%d bytes came back as %d, status %d", size, len(p.Body), p.Status)
			}
		}
	}
	if e := call(c, procFail, nil).Error(t); *e.Message != "it failed" {
		t.Errorf("got %q", *e.Message)
	}
	if p := call(c, procBye, nil); string(p.Body) != "bye!" {
		t.Errorf("got %q before the connection was closed", p.Body)
	}
	c.Closed()
}

func TestUnknown(t *testing.T) {
	s := newTestServer(t, nil)
	c := rpctest.Dial(t, s.path)
	for _, u := range []struct {
		program, version, procedure uint32
		want                        string
	}{
		{1234, 1, 1, "Cannot find program 1234 version 1"},
		{testProgram, 9, 1, "Cannot find program 536903814 version 9"},
		{0xffffffff, 1, 1, "Cannot find program -1 version 1"},
		{testProgram, testVersion, 999, "unknown procedure: 999"},
	} {
		e := c.Call(u.program, u.version, u.procedure, nil).Error(t)
		if e.Code != 39 || e.Domain != 7 || e.Level != 2 || *e.Message != u.want {
			t.Errorf("got code %d domain %d level %d %q, want %q", e.Code, e.Domain, e.Level, *e.Message, u.want)
		}
	}
	// The connection goes on.
	if p := call(c, procEcho, []byte("abcd")); string(p.Body) != "abcd" {
		t.Error("the connection is of no more use")
	}
}
