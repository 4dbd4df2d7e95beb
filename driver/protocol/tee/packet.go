package tee

import (
	"bytes"
	"fmt"
	"slices"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// A Packet is a frame, its length word in front, and who sent it.
type Packet struct {
	FromServer bool
	Frame      []byte
}

// Check decodes and encodes the packet. It returns the packet's kind, such as
// "DOMAIN_CREATE call", and an error unless the bytes come out the same.
func (p Packet) Check() (kind string, err error) {
	d := xdr.NewDecoder(p.Frame)
	d.Uint32()
	var h protocol.MessageHeader
	h.DecodeXDR(d)
	kind, body, err := p.body(h)
	if err != nil || body == nil {
		return kind, err
	}
	body.DecodeXDR(d)
	if d.Err() != nil {
		return kind, d.Err()
	}
	e := xdr.NewEncoder(nil)
	e.Uint32(uint32(len(p.Frame)))
	h.EncodeXDR(e)
	if err := body.EncodeXDR(e); err != nil {
		return kind, err
	}
	if !bytes.Equal(e.Bytes(), p.Frame) {
		return kind, fmt.Errorf("decoded and encoded again it differs:\nwas %x\nis  %x\nas  %+v", p.Frame, e.Bytes(), body)
	}
	return kind, nil
}

// byNumber finds procedures by program and number.
var byNumber = func() map[[2]uint32]*protocol.Info {
	m := map[[2]uint32]*protocol.Info{}
	for _, i := range slices.Concat(protocol.Remote(), protocol.Qemu(), protocol.Lxc(), protocol.Admin()) {
		m[[2]uint32{i.Program, i.Number}] = i
	}
	return m
}()

// body makes the empty body that belongs to a header.
func (p Packet) body(h protocol.MessageHeader) (kind string, body protocol.Payload, err error) {
	if h.Prog == protocol.KeepaliveProgram && h.Type == protocol.Message {
		return fmt.Sprintf("keepalive %d", h.Proc), new(xdr.Void), nil
	}
	i := byNumber[[2]uint32{h.Prog, uint32(h.Proc)}]
	if i == nil || i.Version != h.Vers {
		return "unknown", nil, fmt.Errorf("no procedure %d in program %x version %d", h.Proc, h.Prog, h.Vers)
	}
	kind = i.Name
	if i.Program == protocol.AdminProgram {
		kind = "admin " + kind
	}
	switch t, s := h.Type, h.Status; {
	case t == protocol.Call && s == protocol.StatusOK && !p.FromServer:
		kind, body = kind+" call", i.NewArgs()
	case t == protocol.Reply && s == protocol.StatusOK && p.FromServer:
		kind, body = kind+" reply", i.NewRet()
	case t == protocol.Message && s == protocol.StatusOK && p.FromServer:
		kind, body = kind+" event", i.NewMsg()
	case t == protocol.Reply && s == protocol.StatusError && p.FromServer:
		kind, body = kind+" error", new(protocol.Error)
	case t == protocol.Stream && s == protocol.StatusError && p.FromServer:
		kind, body = kind+" stream error", new(protocol.Error)
	case t == protocol.Stream && s == protocol.StatusError, t == protocol.Stream && s == protocol.StatusOK:
		kind, body = kind+" stream end", new(xdr.Void)
	case t == protocol.Stream && s == protocol.StatusContinue:
		return kind + " stream data", nil, nil // not encoded at all
	case t == protocol.StreamHole && s == protocol.StatusContinue:
		kind, body = kind+" stream hole", new(protocol.StreamHoleBody)
	}
	if body == nil {
		return kind, nil, fmt.Errorf("a packet of type %d and status %d, sent by the server: %v", h.Type, h.Status, p.FromServer)
	}
	return kind, body, nil
}
